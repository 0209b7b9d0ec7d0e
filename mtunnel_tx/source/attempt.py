"""One attempt to bring a VM to the target: a tunnel, its disks, its memory, and the hand-over.

What is owned by whom is in the journal; where an attempt fails, it has the target clean up if that can harm nobody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from twisted.internet.defer import CancelledError

from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.ports.moves import MovePhase, NamedTask, Reached
from mtunnel_tx.source.channel import CommandRefused, TargetGone
from mtunnel_tx.source.departure import Power, Stage
from mtunnel_tx.source.disks import Shipment, Shipping
from mtunnel_tx.source.inventory import SourceDisk
from mtunnel_tx.source.journal import DepartureJournal
from mtunnel_tx.source.leftout import without
from mtunnel_tx.source.links import Json
from mtunnel_tx.source.order import Order, Plan, SourceWorld
from mtunnel_tx.source.owner import POSTCOPY
from mtunnel_tx.source.pace import Pace, agree
from mtunnel_tx.source.qemu.forwards import Forwards
from mtunnel_tx.source.qemu.live import LiveMove, is_online, sent_drive, wants_trim
from mtunnel_tx.source.rewriting import find_bridges, rewrite_config, sent_firewall
from mtunnel_tx.source.settling import Settling
from mtunnel_tx.source.target import is_ours
from mtunnel_tx.source.tunnel import TargetTunnel, read_text
from mtunnel_tx.waiting import finish

DIGEST_S = 60.0
DIGEST_BYTES_S = 5_000_000


class Attempt:
    """Sends what a plan names; `run` returns once the target has said that the VM is its own."""

    def __init__(self, order: Order, world: SourceWorld, plan: Plan, journal: DepartureJournal) -> None:
        self._order = order
        self._world = world
        self._plan = plan
        self._journal = journal
        self._say = world.progress.say

    async def run(self) -> None:
        """Raises: TunnelError: it failed; the journal says how far it came."""
        is_off = self._journal.departure.power is Power.OFF
        async with self._opened() as tunnel:
            try:
                await (self._move_stopped(tunnel) if is_off else self._move_live(tunnel))
            except TunnelError as error:
                explained = tunnel.explain(error)
                if explained is error:
                    raise
                raise explained from error

    async def _move_stopped(self, tunnel: TargetTunnel) -> None:
        plan = self._plan
        volids = await self._send_disks(plan.disks, tunnel, await self._agree(tunnel))
        await self._define(tunnel, volids)
        self._world.progress.tell(Reached(phase=MovePhase.HAND_OVER))
        await self._see_through(self._give(tunnel))
        if self._order.delete and is_ours(plan.repoid):
            await self._compare(volids)

    async def _move_live(self, tunnel: TargetTunnel) -> None:
        world, vmid = self._world, self._order.vmid
        assert world.machines is not None, "the survey has seen to that"
        forwards = Forwards(world.reactor, tunnel, world.runtime_dir, vmid)
        world.impatient.addCallback(lambda _: self._unless_in_parts(forwards.close))
        try:
            async with world.machines.attached(vmid) as running:
                live = LiveMove(tunnel, running, forwards, world, self._journal)
                pace = await self._agree(tunnel)
                drives = await self._prepare(tunnel, pace)
                await live.approach(drives, pace, self._order.patience)
                await self._see_through(self._hand_over(tunnel, live, drives))
        finally:
            forwards.close()

    async def _prepare(self, tunnel: TargetTunnel, pace: Pace) -> dict[str, dict[str, Json]]:
        """Everything that the VM needs there before it is started. Returns: the disks to be mirrored, by their keys."""
        plan = self._plan
        online = [disk for disk in plan.disks if is_online(plan.conf, disk)]
        others = [disk for disk in plan.disks if disk not in online]
        volids = await self._send_disks(others, tunnel, pace)
        drives = {disk.label: await self._make_disk(disk, tunnel) for disk in online}
        volids |= {str(disk.volid): drives[disk.label]["volid"] for disk in online}
        await self._define(tunnel, volids)
        return drives

    async def _hand_over(self, tunnel: TargetTunnel, live: LiveMove, drives: Mapping[str, Json]) -> None:
        """A VM that runs there ends here at once; the memory of a paused one stays until the target has said yes."""
        await live.hand_over(drives)
        if self._journal.departure.stage is Stage.RESUMED:
            await self._attempt("the end of QEMU here", self._end_here())
            if wants_trim(self._plan.conf) and self._plan.disks:
                await self._attempt("fstrim", tunnel.trim())
        await self._give(tunnel)

    async def _see_through(self, work: Coroutine[Any, Any, None]) -> None:
        """Too late to be interrupted; but what was to be deleted here then stays."""
        try:
            await finish(work)
        except CancelledError:
            if self._order.delete:
                raise

    def _unless_in_parts(self, end: Callable[[], object]) -> None:
        """A VM that runs there by post-copy needs its connections until all of its memory is there."""
        departure = self._journal.departure
        if departure.stage in (Stage.RESUMING, Stage.RESUMED) and departure.is_in_parts:
            self._say("it runs there already, and needs the rest of its memory: that is waited for")
        else:
            end()

    async def _end_here(self) -> None:
        assert self._world.machines is not None
        await self._world.machines.stop(self._order.vmid)

    async def _attempt(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        """Do what may fail without harm."""
        try:
            await work
        except TunnelError as error:
            self._say(f"{what}: {error.text}")

    async def _give(self, tunnel: TargetTunnel) -> None:
        """The VM is the target's from now on; where it runs there, it is so already."""
        if self._journal.departure.stage is Stage.RESUMED:
            await self._unlock_running(tunnel)
        else:
            await self._journal.announce("handing_over")
            try:
                await tunnel.unlock()
            except CommandRefused:
                await self._journal.note("refused")
                raise
        await self._journal.note("handed_over")

    async def _unlock_running(self, tunnel: TargetTunnel) -> None:
        try:
            await tunnel.unlock()
        except TunnelError as error:
            there = f"VM {self._order.target_vmid} runs at the target"
            raise BackendFailed(f"{there}, but its lock there may stand: {error.text}") from error

    # The tunnel

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[TargetTunnel]:
        """A tunnel, and its end: what is left there after a failure is removed where that can harm nobody."""
        world = self._world
        tunnel = TargetTunnel(
            world.reactor,
            world.target,
            world.dial,
            node=self._plan.node,
            vmid=self._order.target_vmid,
            outages=world.outages,
        )
        world.impatient.addCallback(lambda _: self._unless_in_parts(tunnel.drop))
        try:
            upid = await finish(tunnel.open(*self._places()))
            await self._journal.note("opened", upid=upid)
            world.progress.tell(NamedTask(upid=upid))
            if is_ours(self._plan.repoid):
                world.progress.connect(tunnel.report)
            yield tunnel
        except Exception:
            world.progress.disconnect()
            await finish(self._abandon(tunnel))
            raise
        else:
            world.progress.disconnect()
            await finish(self._leave(tunnel))
        finally:
            await finish(tunnel.close())

    def _places(self) -> tuple[list[str], list[str]]:
        """The storages and bridges that the VM will use there, each once."""
        order, plan = self._order, self._plan
        storages = dict.fromkeys(order.storages.target(disk.volid.storage) for disk in plan.disks)
        sent = without(plan.conf, order.drop)
        bridges = dict.fromkeys(order.bridge(name) for name in find_bridges(sent))
        return list(storages), list(bridges)

    async def _leave(self, tunnel: TargetTunnel) -> None:
        """The last word is a courtesy: `unlock` was answered. But in doubt nothing is deleted."""
        there = f"VM {self._order.target_vmid} is the target's"
        try:
            await tunnel.quit(cleanup=False)
        except TunnelError as error:
            if self._order.delete and not isinstance(error, TargetGone):
                raise BackendFailed(
                    f"{there}, complete and unlocked; nothing was deleted here: {error.text}"
                ) from error
            self._say(f"{there}; it did not say goodbye: {error.text}")

    async def _abandon(self, tunnel: TargetTunnel) -> None:
        """Where the VM is the target's, or only the target has it, nothing may be ended or removed there."""
        if not tunnel.is_connected:
            return
        try:
            if self._journal.departure.stage is Stage.HANDED_OVER:
                await tunnel.quit(cleanup=False)
                self._say(f"VM {self._order.target_vmid} is complete at the target and stays there")
            elif await self._may_clean_up():
                await self._clean_up(tunnel)
        except TunnelError as error:
            # Without `quit` it cleans up at the end of the connection.
            if self._world.impatient.called:
                self._say(f"cleanup at the target was not waited for: {error.text}")
            else:
                self._world.progress.warn(f"cleanup at the target failed: {error.text}")

    async def _may_clean_up(self) -> bool:
        """Whether this host still has all of the VM, and the target was not told to run it."""
        departure = self._journal.departure
        match departure.stage:
            case Stage.RESUMING | Stage.RESUMED:
                return False
            case Stage.COMPLETING | Stage.HANDING_OVER if departure.power is not Power.OFF:
                machine = await Settling(self._world, self._journal).look()
                return machine.status != "off" and machine.migration not in POSTCOPY
        return True

    async def _clean_up(self, tunnel: TargetTunnel) -> None:
        departure = self._journal.departure
        # One of ours may run the VM though it said no; where it certainly does not, `quit` ends QEMU there as well.
        may_run = departure.asked and departure.power is Power.RUNNING and is_ours(self._plan.repoid)
        if departure.is_started and not may_run:
            await tunnel.stop()
        await tunnel.quit(cleanup=True)
        await self._journal.note("kept")
        self._say("the target has removed what was sent")

    # What is sent

    async def _agree(self, tunnel: TargetTunnel) -> Pace:
        return await agree(self._order, self._plan, self._world.storage, tunnel)

    async def _make_disk(self, disk: SourceDisk, tunnel: TargetTunnel) -> dict[str, Json]:
        storage = self._order.storages.target(disk.volid.storage)
        return await tunnel.make_disk(storage, sent_drive(self._plan.conf, disk), disk.becomes)

    async def _send_disks(self, disks: Sequence[SourceDisk], tunnel: TargetTunnel, pace: Pace) -> dict[str, str]:
        if disks:
            self._world.progress.tell(Reached(phase=MovePhase.DISKS))
        shipping = Shipping(self._world.reactor, tunnel, self._world.storage, self._world.progress)
        return {str(disk.volid): await shipping.send(self._ship(disk, pace)) for disk in disks}

    def _ship(self, disk: SourceDisk, pace: Pace) -> Shipment:
        order = self._order
        storage = order.storages.target(disk.volid.storage)
        name = disk.name_for(order.vmid, order.target_vmid)
        return Shipment(disk=disk, name=name, storage=storage, limit_bytes_s=pace.disks[disk.label])

    async def _define(self, tunnel: TargetTunnel, volids: Mapping[str, str]) -> None:
        order = self._order
        sent = without(self._plan.conf, order.drop)
        conf = rewrite_config(sent, volids, order.bridge, order.storages.target)
        firewall = sent_firewall(self._world.guests.read_firewall(order.vmid))
        await tunnel.set_config(conf, firewall, order.drop if self._plan.checked else ())

    async def _compare(self, volids: Mapping[str, str]) -> None:
        """Raises: BackendFailed: a disk there is not the disk here."""
        for disk in self._plan.disks:
            theirs = await self._digest_there(disk, volids[str(disk.volid)])
            if await self._world.storage.digest(str(disk.volid), content=disk.is_converted) != theirs:
                raise BackendFailed(
                    f"{disk.label}: the copy at the target has another SHA-256; nothing was deleted, "
                    f"VM {self._order.target_vmid} is still there"
                )
            self._say(f"{disk.label}: SHA-256 {'of its content ' if disk.is_converted else ''}agrees")

    async def _digest_there(self, disk: SourceDisk, volid: str) -> str:
        path = ("nodes", self._plan.node, "qemu", str(self._order.target_vmid), "mtunneldigest")
        wait_s = DIGEST_S + disk.stream_bytes / DIGEST_BYTES_S
        what = {"content": "1"} if disk.is_converted else {}
        return read_text(await self._world.target.get(*path, volume=volid, wait_s=wait_s, **what), "sha256")
