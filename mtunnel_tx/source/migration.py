"""A migration, from the first look to the last word; read `run` from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from twisted.internet.defer import CancelledError, Deferred

from mtunnel_tx.errors import TunnelError, WrongState
from mtunnel_tx.ports.moves import Expected, MovePhase, Reached, TransferKind
from mtunnel_tx.pve.memory import configured_bytes
from mtunnel_tx.source.asking import Inquiry
from mtunnel_tx.source.attempt import Attempt
from mtunnel_tx.source.departure import Power, Record, claim
from mtunnel_tx.source.earlier import abandon_earlier, finish_earlier
from mtunnel_tx.source.host import LOCK_S
from mtunnel_tx.source.journal import DepartureJournal
from mtunnel_tx.source.marking import check_unchanged, lock_config
from mtunnel_tx.source.order import Order, Plan, SourceWorld
from mtunnel_tx.source.owner import Owner
from mtunnel_tx.source.qemu.live import is_online
from mtunnel_tx.source.qemu.meters import MEMORY
from mtunnel_tx.source.removal import announce_removal
from mtunnel_tx.source.report import Report
from mtunnel_tx.source.settling import Settling
from mtunnel_tx.source.survey import Survey
from mtunnel_tx.source.target import is_ours
from mtunnel_tx.waiting import finish, first_of, pause

LAST_WORDS_S = 1.0
"""After a second Ctrl-C: for a target that is asked to remove what it holds."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What was moved, and how long all of it took."""

    disks: int
    size_bytes: int
    seconds: float


class Migration:
    """One VM on its way."""

    def __init__(self, order: Order, world: SourceWorld) -> None:
        self._order = order
        self._world = world

    async def check(self) -> Report:
        """Look, and touch nothing. Raises: Obstructed: everything that stands in the way."""
        _, report = await Survey(self._order, self._world).plan(thorough=True)
        return report

    async def run(self) -> Summary:
        """Move the VM.

        Raises: TunnelError: why not. It was told whose the VM is; where nobody knows, its journal stands.
        """
        world, order = self._world, self._order
        earlier = await finish_earlier(world, order.vmid, world.target)
        if earlier is not None:
            await abandon_earlier(world.target, earlier)
        plan = await self._plan()
        for expected in expect_transfers(plan):
            world.progress.tell(expected)
        started_s = world.reactor.seconds()
        journal = await finish(self._claim(plan))
        settling = Settling(world, journal)
        try:
            await Attempt(order, world, plan, journal).run()
            if order.delete:
                await finish(announce_removal(world, journal, [str(disk.volid) for disk in plan.disks]))
        except Exception as error:
            has_arrived = await self._ask(plan, journal, error)
            owner = await finish(self._tell_end(settling, "" if has_arrived else getattr(error, "text", "interrupted")))
            if owner is Owner.HERE and is_ours(plan.repoid):
                await finish(self._tell_kept(journal))
            if not has_arrived:
                raise
        else:
            world.progress.tell(Reached(phase=MovePhase.DONE))
            await finish(settling.end())
        moved_bytes = sum(disk.stream_bytes for disk in plan.disks)
        return Summary(len(plan.disks), moved_bytes, world.reactor.seconds() - started_s)

    async def _tell_kept(self, journal: DepartureJournal) -> None:
        """Last words for a target that may not have noticed yet; whoever is in a hurry waits for them a moment only."""
        world = self._world
        hurried = Deferred.fromCoroutine(self._wait_in_a_hurry())
        hurried.addErrback(lambda failure: failure.trap(CancelledError))
        await first_of(Inquiry(world, journal, world.target).tell_kept(), hurried)
        if hurried.called:
            world.progress.warn(
                f"{world.target.host} was not waited for: it may hold VM {self._order.target_vmid} for a while"
            )
        hurried.cancel()

    async def _wait_in_a_hurry(self) -> None:
        """Ends a moment after nobody wants to wait any more."""
        fired: Deferred[None] = Deferred()
        self._world.impatient.addCallback(lambda _: None if fired.called else fired.callback(None))
        await fired
        await pause(self._world.reactor, LAST_WORDS_S)

    async def _plan(self) -> Plan:
        plan, report = await Survey(self._order, self._world).plan()
        progress = self._world.progress
        for text in report.remarks:
            (progress.warn if text in report.warnings else progress.say)(text)
        for key in report.dropped:
            progress.say(f"{key}: is left out (--drop)")
        return plan

    async def _claim(self, plan: Plan) -> DepartureJournal:
        """The journal first, then the lock in the config. Raises: WrongState: somebody was there first."""
        vmid, guests = self._order.vmid, self._world.guests
        async with guests.locked(vmid, LOCK_S):
            check_unchanged(guests, vmid, plan.conf)
            if self._world.running(vmid) != plan.runs:
                raise WrongState(f"VM {vmid} was {'stopped' if plan.runs else 'started'} meanwhile")
            # Under the lock: whoever starts a VM holds it until that is done.
            journal = await DepartureJournal.open(self._world, vmid, await self._claim_record())
            try:
                await lock_config(guests, vmid)
            except TunnelError:
                await journal.close()
                raise
        return journal

    async def _claim_record(self) -> Record:
        world, order = self._world, self._order
        return claim(
            program=world.programs.this(),
            host=world.target.host,
            target_vmid=order.target_vmid,
            token=world.target.token,
            power=await self._find_power(),
            at_s=int(world.wall_s()),
            delete=order.delete,
        )

    async def _find_power(self) -> Power:
        vmid, machines = self._order.vmid, self._world.machines
        if not self._world.running(vmid):
            return Power.OFF
        assert machines is not None, "the survey has seen to that"
        async with machines.attached(vmid) as running:
            return Power.RUNNING if await running.status() == "running" else Power.PAUSED

    async def _ask(self, plan: Plan, journal: DepartureJournal, error: Exception) -> bool:
        """Where the network was lost, only the target may know whose the VM is; it is waited for as before.

        Returns: it has got there after all, and nothing is left to do.
        """
        world = self._world
        if not is_ours(plan.repoid):
            return False
        is_wanted = not isinstance(error, CancelledError)
        wait_s = world.outages.longest_s if is_wanted and world.outages else 0.0
        try:
            has_arrived = await Inquiry(world, journal, world.target).run(wait_s)
        except CancelledError:  # whoever interrupts is told how it stands
            return False
        return has_arrived and is_wanted and not self._order.delete

    async def _tell_end(self, settling: Settling, reason: str) -> Owner:
        """What becomes of the VM; the reason why the move came to nothing is told by whoever called."""
        owner, phase = Owner.UNKNOWN, MovePhase.HELD
        try:
            owner = await settling.end()
            phase = MovePhase.DONE if owner is Owner.THERE else MovePhase.ROLLED_BACK
        except TunnelError as error:
            self._world.progress.warn(error.text)
        self._world.progress.tell(Reached(phase=phase, reason=reason))
        return owner


def expect_transfers(plan: Plan) -> Iterator[Expected]:
    """What is going to be sent, with the sizes that are known now."""
    for disk in plan.disks:
        is_mirrored = plan.runs and is_online(plan.conf, disk)
        kind = TransferKind.MIRROR if is_mirrored else TransferKind.DISK
        total_bytes = disk.size_bytes if is_mirrored else disk.stream_bytes
        yield Expected(label=disk.label, kind=kind, total_bytes=total_bytes)
    if plan.runs:
        yield Expected(label=MEMORY, kind=TransferKind.MEMORY, total_bytes=configured_bytes(plan.conf.options))
