"""The end of a VM's way out, by the handover rule (owner.py, docs/states.md).

The program that sends a VM ends with this, whatever happened; and where it was killed, `mtunnel settle` and the next
`mtunnel migrate` do the same.
"""

from __future__ import annotations

from mtunnel_tx.errors import TunnelError, WrongState
from mtunnel_tx.source.departure import STANDING, Departure, Power, Stage
from mtunnel_tx.source.host import LOCK_S, SourceHost
from mtunnel_tx.source.journal import DepartureJournal
from mtunnel_tx.source.leftcopy import mark_copy
from mtunnel_tx.source.links import Running
from mtunnel_tx.source.marking import unlock_config
from mtunnel_tx.source.owner import MIGRATION_OVER, POSTCOPY_BROKEN_OFF, LocalMachine, Owner, explain, judge
from mtunnel_tx.source.removal import Removal, is_another, name_left
from mtunnel_tx.waiting import pause

SENDING_S = 60.0
"""How long QEMU may take to send what it has left to send, or to give up."""
_POLL_S = 0.1
_BUSY = frozenset({"device", "cancelling"})


class OwnerUnknown(WrongState):
    """Nobody knows whose the VM is; the text says which command decides."""


class Settling:
    """Ends what was begun with one VM."""

    def __init__(self, host: SourceHost, journal: DepartureJournal) -> None:
        self._host = host
        self._journal = journal
        self._vmid = journal.departure.vmid

    @property
    def _departure(self) -> Departure:
        return self._journal.departure

    async def end(self) -> Owner:
        """Do what the rule says. Returns: whose the VM is.

        Raises: OwnerUnknown: nothing was touched. TunnelError: why not everything could be done; the journal stands.
        """
        machine = await self.look()
        owner = judge(self._departure, machine)
        match owner:
            case Owner.HERE:
                await self._keep(machine)
            case Owner.THERE:
                await self._let_go(machine)
            case Owner.UNKNOWN:
                raise OwnerUnknown(explain(self._departure, machine))
        return owner

    async def decide(self, owner: Owner) -> None:
        """Do what somebody decided. Raises: WrongState: that is not open; what `end` raises."""
        known = judge(self._departure, await self.look())
        if known is Owner.UNKNOWN:
            await self._journal.announce("kept" if owner is Owner.HERE else "handed_over")
        elif known is not owner:
            raise WrongState(f"nothing is to be decided: VM {self._vmid} is {self._name(known)}; run 'mtunnel settle'")
        await self.end()

    @property
    def _is_anothers(self) -> bool:
        """Whether what is here by now, config and QEMU, are a new VM's."""
        return self._departure.stage is Stage.REMOVING and is_another(self._host, self._departure)

    def _name(self, owner: Owner) -> str:
        there = f"VM {self._departure.target_vmid} at {self._departure.host}"
        return there if owner is Owner.THERE else "this host's"

    async def look(self) -> LocalMachine:
        """What QEMU says here, once it has sent what it has to send. Raises: TunnelError: it does not answer."""
        if not self._host.running(self._vmid) or self._is_anothers:
            return LocalMachine()
        if self._host.machines is None:
            return LocalMachine(status="running")
        async with self._host.machines.attached(self._vmid) as running:
            until_s = self._host.reactor.seconds() + SENDING_S
            while (migration := await running.migration()) in _BUSY and self._host.reactor.seconds() < until_s:
                await pause(self._host.reactor, _POLL_S)
            return LocalMachine(status=await running.status(), migration=migration)

    # It is ours

    async def _keep(self, machine: LocalMachine) -> None:
        self._remove_sockets()
        status = machine.status
        if self._departure.power is not Power.OFF and status != "off" and self._host.machines is not None:
            if self._departure.stage is Stage.COMPLETING and self._departure.power is Power.RUNNING:
                await self._journal.note("runs_on")  # also where the disk is full: nobody else runs it
            async with self._host.machines.attached(self._vmid) as running:
                status = await self._restore(running)
        async with self._host.guests.locked(self._vmid, LOCK_S):
            await unlock_config(self._host.guests, self._vmid)
            await self._journal.close()
        self._tell_kept(status)

    def _tell_kept(self, status: str) -> None:
        power = self._departure.power
        is_well = power is Power.OFF or status in ("running", "paused")
        tell = self._host.progress.say if is_well else self._host.progress.warn
        tell(f"VM {self._vmid} {_kept(power, status)}")

    async def _restore(self, running: Running) -> str:
        """End the migration and the mirrors; then it runs on, or stays paused. Returns: what QEMU says.

        QEMU takes no VM back whose post-copy was broken off: that one ends, as somebody has decided.
        """
        if await running.migration() == POSTCOPY_BROKEN_OFF:
            assert self._host.machines is not None
            await self._host.machines.stop(self._vmid)
            return "off"
        if await running.migration() not in MIGRATION_OVER:
            await running.cancel_migration()
        await running.adopt_mirrors()
        await running.end_mirrors()
        status = await running.status()
        if self._departure.power is Power.RUNNING and status in STANDING:
            await running.run()
        elif self._departure.power is Power.PAUSED and status == "postmigrate":
            await running.pause()
        return await running.status()

    def _remove_sockets(self) -> None:
        """Those that led to the target; a program that was killed leaves them behind."""
        for path in self._host.runtime_dir.glob(f"{self._vmid}.out[0-9]*"):
            path.unlink(missing_ok=True)

    # It is the target's

    async def _let_go(self, machine: LocalMachine) -> None:
        if self._is_anothers:
            await name_left(self._host, self._departure)
            await self._journal.close()
            return
        there = self._name(Owner.THERE)
        if machine.status == "running":
            raise WrongState(f"VM {self._vmid} is {there} now, but it runs here too: stop it at once where it is wrong")
        if self._host.machines is not None and self._departure.power is not Power.OFF:
            await self._host.machines.stop(self._vmid)
        self._remove_sockets()
        try:
            await self._leave_nothing()
        except TunnelError as error:
            raise WrongState(
                f"VM {self._vmid} was moved and is {there} now, but something is left to do here: {error.text}; "
                f"then run 'mtunnel settle {self._vmid}'"
            ) from error

    async def _leave_nothing(self) -> None:
        if self._departure.stage is Stage.REMOVING:
            await Removal(self._host, self._journal).run()
            await self._journal.close()
            return
        async with self._host.guests.locked(self._vmid, LOCK_S):
            await mark_copy(self._host, self._departure)
            await self._journal.close()


def _kept(power: Power, status: str) -> str:
    if power is Power.OFF:
        return "stays here as it was"
    if status == "off":
        return f"stays here, but is off now: it was {power.value} when it was to leave"
    return {"running": "runs on here", "paused": "stays here, paused"}.get(status, f"stays here; QEMU says '{status}'")
