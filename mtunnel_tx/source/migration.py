"""A migration, from the first look to the last word; read `run` from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mtunnel_tx.errors import TunnelError, WrongState
from mtunnel_tx.ports.moves import Expected, MovePhase, Reached, TransferKind
from mtunnel_tx.pve.memory import configured_bytes
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
from mtunnel_tx.waiting import finish


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
        earlier = await finish_earlier(world, order.vmid)
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
            await finish(self._tell_end(settling, getattr(error, "text", "interrupted")))
            raise
        world.progress.tell(Reached(phase=MovePhase.DONE))
        await finish(settling.end())
        moved_bytes = sum(disk.stream_bytes for disk in plan.disks)
        return Summary(len(plan.disks), moved_bytes, world.reactor.seconds() - started_s)

    async def _plan(self) -> Plan:
        plan, report = await Survey(self._order, self._world).plan()
        for text in report.remarks:
            self._world.progress.say(text)
        for key in report.dropped:
            self._world.progress.say(f"{key}: is left out (--drop)")
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

    async def _tell_end(self, settling: Settling, reason: str) -> None:
        """What becomes of the VM; the reason why the move came to nothing is told by whoever called."""
        phase = MovePhase.HELD
        try:
            phase = MovePhase.DONE if await settling.end() is Owner.THERE else MovePhase.ROLLED_BACK
        except TunnelError as error:
            self._world.progress.say(error.text)
        self._world.progress.tell(Reached(phase=phase, reason=reason))


def expect_transfers(plan: Plan) -> Iterator[Expected]:
    """What is going to be sent, with the sizes that are known now."""
    for disk in plan.disks:
        is_mirrored = plan.runs and is_online(plan.conf, disk)
        kind = TransferKind.MIRROR if is_mirrored else TransferKind.DISK
        total_bytes = disk.size_bytes if is_mirrored else disk.stream_bytes
        yield Expected(label=disk.label, kind=kind, total_bytes=total_bytes)
    if plan.runs:
        yield Expected(label=MEMORY, kind=TransferKind.MEMORY, total_bytes=configured_bytes(plan.conf.options))
