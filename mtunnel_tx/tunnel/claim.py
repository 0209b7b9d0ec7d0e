"""What one tunnel has taken of this host: a VMID with its journal and config, volumes, and perhaps a QEMU."""

from __future__ import annotations

from mtunnel_tx.errors import NotFound
from mtunnel_tx.ports.journal import TaskLog
from mtunnel_tx.ports.machines import MachineState
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.tunnel.ledger import Ledger, Owed
from mtunnel_tx.tunnel.ownership import Ownership
from mtunnel_tx.tunnel.services import Services


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
        """What QEMU says, if this tunnel may have started one. Raises: TunnelError: it does not answer."""
        if not self.owed.started:
            return MachineState(status="off")
        return await self.services.hypervisor.state(self.vmid)


def marked(conf: GuestConfig, lock: str | None) -> GuestConfig:
    """The same config under another lock, or none."""
    copy = conf.copy()
    copy.options.pop("lock", None)
    if lock is not None:
        copy.options["lock"] = lock
    return copy
