"""What one tunnel has taken of this host: a VMID with its journal and config, volumes, and perhaps a QEMU."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mtunnel_tx.errors import NotFound
from mtunnel_tx.ports.journal import TaskLog
from mtunnel_tx.ports.machines import MachineState
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.tunnel.ledger import Ledger, Owed
from mtunnel_tx.tunnel.ownership import Ownership
from mtunnel_tx.tunnel.services import Services
from mtunnel_tx.tunnel.verdict import ANOTHERS, Verdict
from mtunnel_tx.waiting import in_time

log = Logger()
RECORD_S = 3.0
"""How long the history may take to record what became of a VM."""


class Claim:
    """The same for a live tunnel and for one that a crash left; `ending.py` ends it."""

    def __init__(self, services: Services, ledger: Ledger, task: TaskLog) -> None:
        self.services = services
        self.ledger = ledger
        self.task = task
        self.own = Ownership(services, ledger, task)

    @property
    def vmid(self) -> int:
        """Whose it is."""
        return self.ledger.owed.vmid

    @property
    def owed(self) -> Owed:
        """What the journal adds up to."""
        return self.ledger.owed

    def config_state(self) -> str:
        """The config's lock, or what else it is.

        The config of a claim is nothing but its lock; one with more is somebody's VM in the making.
        """
        try:
            conf = self.services.guests.read(self.vmid)
        except NotFound:
            return "absent"
        if conf.lock == "create" and len(conf.options) > 1:
            return "somebody else's"
        return conf.lock or "unlocked"

    def is_config_untouched(self) -> bool:
        """The config is as this tunnel left it: nobody has taken it over."""
        return self.config_state() in self.owed.marks

    async def machine_state(self) -> MachineState:
        """What QEMU says, if this tunnel may have started it. Raises: TunnelError: it does not answer."""
        if not self.owed.started:
            return MachineState(status="off")
        if self.is_machine_anothers():
            return ANOTHERS
        return await self.services.hypervisor.state(self.vmid)

    def is_machine_anothers(self) -> bool:
        """Whether a QEMU runs under this number that is not the one which this tunnel has started: that has ended.

        False where the journal does not say which one it has started. Raises: BackendFailed: nobody knows which runs.
        """
        ours = self.owed.process
        found = self.services.hypervisor.process(self.vmid) if ours is not None else None
        return found not in (None, ours)

    def runs(self) -> bool:
        """Whether the QEMU that this tunnel has started is there. Raises: BackendFailed: nobody knows which one is."""
        return self.owed.started and self.services.hypervisor.running(self.vmid) and not self.is_machine_anothers()

    async def note_machine(self) -> None:
        """Record which process QEMU is, once it was started."""
        found = self.services.hypervisor.process(self.vmid)
        if found is not None:
            await self.ledger.note("started", boot=found.boot, pid=found.pid, since=found.started)

    async def stop_machine(self) -> None:
        """End the QEMU that this tunnel may have started, and none else; success where it has ended."""
        if not self.is_machine_anothers():
            await self.services.hypervisor.stop(self.vmid)

    async def discharge(self, verdict: Verdict) -> None:
        """Nothing is owed any more: the journal goes. What became of the VM is recorded first.

        A source that comes late is told that, also where the daemon is killed now. A history that cannot be written in
        time holds nothing up. Raises: TunnelError: the journal cannot be removed.
        """
        services, owed = self.services, self.owed
        if self.ledger.stands and owed.upid:
            recorded = Deferred.fromCoroutine(services.record(self.vmid, owed.token, owed.upid, verdict.value))
            try:
                await in_time(services.clock, RECORD_S, recorded)
            except Exception:
                log.failure("unexpected failure in the record of the end of VM {vmid}", vmid=self.vmid)
        await self.ledger.discharge()


def marked(conf: GuestConfig, lock: str | None) -> GuestConfig:
    """The same config under another lock, or none."""
    copy = conf.copy()
    copy.options.pop("lock", None)
    if lock is not None:
        copy.options["lock"] = lock
    return copy
