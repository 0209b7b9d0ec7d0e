"""The end of a tunnel, by the handover rule (verdict.py, docs/states.md).

Rolled back, newest effect first; kept, without our lock; or held, untouched, until somebody decides. Where somebody
else has taken the config over, nothing of it is touched either: the journal stays and names what is left.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger

from mtunnel_tx.errors import NotFound, TunnelError, WrongState
from mtunnel_tx.ports.machines import MachineState
from mtunnel_tx.tunnel.ledger import Ledger
from mtunnel_tx.tunnel.ownership import Ownership
from mtunnel_tx.tunnel.services import Services
from mtunnel_tx.tunnel.tunnel import Tunnel, marked
from mtunnel_tx.tunnel.verdict import Verdict, explain, judge
from mtunnel_tx.wire.socketkinds import COMMANDS, DISK_IMPORT, MEMORY, NBD

log = Logger()


class Keeper:
    """Ends tunnels by the rule; the same code for a live end and for the recovery after a crash."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def end(self, tunnel: Tunnel) -> None:
        """The connection is over. Raises: TunnelError: why not everything could be undone; the journal stands."""
        await self._end_children(tunnel)
        await self.settle(tunnel.ledger, tunnel.own)

    async def roll_back(self, tunnel: Tunnel) -> None:
        """Undo a live tunnel; its command connection stays. Raises: TunnelError: why not everything went."""
        await self._announce_undo(tunnel.ledger)
        await self._end_children(tunnel)
        await self.undo(tunnel.ledger, tunnel.own)

    async def _end_children(self, tunnel: Tunnel) -> None:
        if tunnel.disk_import is not None and not tunnel.disk_import.over:
            await tunnel.disk_import.kill()
        tunnel.sockets.abort_streams(but=COMMANDS)
        tunnel.sockets.drop(DISK_IMPORT)

    async def settle(self, ledger: Ledger, own: Ownership) -> None:
        """Do what the rule says, alike after the end of a connection and after a crash.

        Raises: WrongState: it is held. TunnelError: why not everything could be undone.
        """
        if ledger.closed:
            return
        machine = await self.machine(ledger)
        verdict = judge(ledger.owed, machine)
        if verdict is Verdict.HOLD:
            raise WrongState(explain(ledger.owed, machine))
        if verdict is Verdict.KEEP:
            await self.keep(ledger)
            return
        await self._announce_undo(ledger)
        await self.undo(ledger, own)

    async def _announce_undo(self, ledger: Ledger) -> None:
        """Once announced, a missing config was removed by us; before, by somebody who may need the volumes."""
        if not ledger.owed.undo and self.is_ours(ledger):
            await ledger.write("undo")

    async def machine(self, ledger: Ledger) -> MachineState:
        """What QEMU says, if this tunnel may have started one."""
        if not ledger.owed.started:
            return MachineState(status="off")
        return await self._services.hypervisor.state(ledger.owed.vmid)

    async def undo(self, ledger: Ledger, own: Ownership, but: Sequence[str] = ()) -> None:
        """End QEMU, free the volumes but some, then remove firewall file and config, then the journal."""
        vmid = ledger.owed.vmid
        if ledger.owed.started:
            await self._services.hypervisor.stop(vmid)
            self._remove_sockets(vmid)
        if not await self._is_left_to_us(ledger):
            await self._step_back(ledger, own)
            return
        await own.free_all(but)
        if ledger.owed.firewall:
            await self._services.guests.remove_firewall(vmid)
        await self._remove_config(ledger)
        await ledger.close()

    def _remove_sockets(self, vmid: int) -> None:
        """A QEMU that was killed leaves them behind."""
        for kind in (MEMORY, NBD):
            (self._services.machine_dir / f"{vmid}{kind.suffix}").unlink(missing_ok=True)

    async def keep(self, ledger: Ledger) -> None:
        """The VM is ours: finish an `unlock` that was announced, and forget the journal."""
        vmid, guests = ledger.owed.vmid, self._services.guests
        async with guests.locked(vmid, self._services.limits.command_lock_s):
            if self._config_state(vmid) in ledger.owed.marks - {"absent"}:
                await guests.write(vmid, marked(guests.read(vmid), None))
        await ledger.close()

    async def _remove_config(self, ledger: Ledger) -> None:
        vmid = ledger.owed.vmid
        async with self._services.guests.locked(vmid, self._services.limits.command_lock_s):
            if self.is_ours(ledger):
                await self._services.guests.remove(vmid)

    async def _is_left_to_us(self, ledger: Ledger) -> bool:
        """Whoever restores a VM of this number has a config like ours, and volumes of the same names, under its lock.

        Raises: TimedOut: somebody is at work there.
        """
        async with self._services.guests.locked(ledger.owed.vmid, self._services.limits.command_lock_s):
            return self.is_ours(ledger)

    def is_ours(self, ledger: Ledger) -> bool:
        """The config is as this tunnel left it: nobody has taken it over."""
        return self._config_state(ledger.owed.vmid) in ledger.owed.marks

    async def _step_back(self, ledger: Ledger, own: Ownership) -> None:
        """Somebody else has the config now: what we made is theirs to judge."""
        left = await own.left()
        if left:
            raise WrongState(f"the config of VM {ledger.owed.vmid} is no longer ours; volumes left: {', '.join(left)}")
        await ledger.close()

    def _config_state(self, vmid: int) -> str:
        """Its lock, or what else it is; a claim has nothing but its lock, somebody's VM in the making may have more."""
        try:
            conf = self._services.guests.read(vmid)
        except NotFound:
            return "absent"
        if conf.lock == "create" and len(conf.options) > 1:
            return "somebody else's"
        return conf.lock or "unlocked"


async def finish(services: Services, tunnel: Tunnel, verdict: str) -> str | None:
    """End a tunnel whose connection is over, and its task log with it.

    Args: verdict: the task's end status; empty: OK, or its warnings.
    Returns: why not everything could be undone, or None.
    """
    problem = None
    try:
        await Keeper(services).end(tunnel)
    except TunnelError as error:
        problem = error.text
        tunnel.warn(problem)
        log.error("tunnel of VM {vmid} could not be ended cleanly: {problem}", vmid=tunnel.vmid, problem=problem)
    if tunnel.leaving:
        tunnel.task.line("mtunnel exited")
    tunnel.task.finish(verdict or _count(tunnel.warnings))
    return problem


def _count(warnings: int) -> str:
    return f"WARNINGS: {warnings}" if warnings else "OK"
