"""A migration, from the first look to the last word; read `run` from top to bottom."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.source.channel import TargetGone
from mtunnel_tx.source.disks import Shipment, Shipping
from mtunnel_tx.source.inventory import SourceDisk
from mtunnel_tx.source.links import Json, Machines, Running
from mtunnel_tx.source.marking import LOCK_S, Mark, check_marked, marked
from mtunnel_tx.source.order import Order, Plan, SourceWorld
from mtunnel_tx.source.pace import Pace, agree
from mtunnel_tx.source.qemu.forwards import Forwards
from mtunnel_tx.source.qemu.live import LiveMove, is_online, sent_drive, wants_trim
from mtunnel_tx.source.rewriting import find_bridges, rewrite_config
from mtunnel_tx.source.survey import Survey
from mtunnel_tx.source.tunnel import TargetTunnel, read_text
from mtunnel_tx.waiting import finish

OURS = "mtunnel-tx"
"""How our own `repoid` begins: such a target can be asked for digests."""
DIGEST_S = 60.0
DIGEST_BYTES_S = 5_000_000


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
        self._say = world.progress.say
        self._cleaned = False

    async def check(self) -> Plan:
        """Look, and touch nothing. Raises: Obstructed: everything that stands in the way."""
        return await Survey(self._order, self._world).plan(ask_privileges=True)

    async def run(self) -> Summary:
        """Move the VM. Raises: TunnelError: it is still here, as it was, and the target was told to clean up."""
        plan = await Survey(self._order, self._world).plan()
        started_s = self._world.reactor.seconds()
        async with marked(self._world.guests, self._order.vmid, plan.conf) as mark:
            if self._world.running(self._order.vmid):
                await self._move_running(plan, mark)
            else:
                await self._move_stopped(plan)
            if self._order.delete:
                await finish(self._remove(plan))
        moved_bytes = sum(disk.stream_bytes for disk in plan.disks)
        return Summary(len(plan.disks), moved_bytes, self._world.reactor.seconds() - started_s)

    async def _move_stopped(self, plan: Plan) -> None:
        async with self._opened(plan) as tunnel:
            volids = await self._send_disks(plan.disks, tunnel, await self._agree(plan, tunnel))
            await self._define(plan, tunnel, volids)
            await finish(tunnel.unlock())
            if self._order.delete and plan.repoid.startswith(OURS):
                await self._compare(plan, volids)

    async def _move_running(self, plan: Plan, mark: Mark) -> None:
        machines = self._world.machines
        assert machines is not None, "the survey has seen to that"
        async with machines.attached(self._order.vmid) as running:
            live: LiveMove | None = None
            try:
                async with self._opened(plan) as tunnel:
                    live = self._live(tunnel, running)
                    await self._hand_over(plan, tunnel, live)
                    await finish(self._let_go(machines, tunnel))
            except Exception:
                if live is not None:
                    mark.stays = True
                    mark.stays = not await finish(self._go_back(live))
                raise

    async def _let_go(self, machines: Machines, tunnel: TargetTunnel) -> None:
        """It runs there: end what is left of it here, and tell the target that it is its own."""
        await machines.stop(self._order.vmid)
        await tunnel.unlock()

    def _live(self, tunnel: TargetTunnel, running: Running) -> LiveMove:
        world = self._world
        forwards = Forwards(world.reactor, tunnel, world.runtime_dir, self._order.vmid)
        return LiveMove(tunnel, running, forwards, world.progress, world.guests.node)

    async def _hand_over(self, plan: Plan, tunnel: TargetTunnel, live: LiveMove) -> None:
        pace = await self._agree(plan, tunnel)
        online = [disk for disk in plan.disks if is_online(plan.conf, disk)]
        volids = await self._send_disks([disk for disk in plan.disks if disk not in online], tunnel, pace)
        drives = {disk.label: await self._make_disk(plan, disk, tunnel) for disk in online}
        volids |= {str(disk.volid): drives[disk.label]["volid"] for disk in online}
        await self._define(plan, tunnel, volids)
        await live.move(drives, pace, trim=wants_trim(plan.conf) and bool(plan.disks))

    async def _agree(self, plan: Plan, tunnel: TargetTunnel) -> Pace:
        return await agree(self._order, plan, self._world.storage, tunnel)

    async def _make_disk(self, plan: Plan, disk: SourceDisk, tunnel: TargetTunnel) -> dict[str, Json]:
        storage = self._order.storages.target(disk.volid.storage)
        return await tunnel.make_disk(storage, sent_drive(plan.conf, disk), disk.format)

    async def _go_back(self, live: LiveMove) -> bool:
        """It runs on here, unless it might run there. Returns: the VM is this side's again."""
        vmid, there = self._order.vmid, self._order.target_vmid
        if live.resumed:
            self._say(f"VM {there} runs at the target, so VM {vmid} stays locked here: look there first")
            return False
        if live.completed and not self._cleaned:
            self._say(
                f"VM {vmid} stays paused and locked here: the target has its whole state and did not say what became "
                f"of it. Look there first (mtunnel status); then mtunnel vm unlock {vmid}, and mtunnel vm stop {vmid} "
                f"if the VM is the target's, mtunnel vm resume {vmid} if it is not"
            )
            return False
        if await live.restore():
            self._say(f"VM {vmid} runs on here")
        return True

    @asynccontextmanager
    async def _opened(self, plan: Plan) -> AsyncIterator[TargetTunnel]:
        """A tunnel, and its end: a failure before `unlock` has the target clean up; afterwards the VM is its own."""
        world = self._world
        tunnel = TargetTunnel(world.reactor, world.target, world.dial, node=plan.node, vmid=self._order.target_vmid)
        world.impatient.addCallback(lambda _: tunnel.drop())
        try:
            await finish(tunnel.open(*self._places(plan)))
            yield tunnel
        except Exception:
            await finish(self._abandon(tunnel))
            raise
        else:
            await finish(self._leave(tunnel))
        finally:
            await finish(tunnel.close())

    async def _leave(self, tunnel: TargetTunnel) -> None:
        """The last word is a courtesy: `unlock` was answered. But in doubt nothing is deleted."""
        there = f"VM {self._order.target_vmid} is the target's"
        try:
            await tunnel.quit()
        except TunnelError as error:
            if self._order.delete and not isinstance(error, TargetGone):
                raise BackendFailed(
                    f"{there}, complete and unlocked; nothing was deleted here: {error.text}"
                ) from error
            self._say(f"{there}; it did not say goodbye: {error.text}")

    def _places(self, plan: Plan) -> tuple[list[str], list[str]]:
        """The storages and bridges that the VM will use there, each once."""
        storages = dict.fromkeys(self._order.storages.target(disk.volid.storage) for disk in plan.disks)
        bridges = dict.fromkeys(self._order.bridge(name) for name in find_bridges(plan.conf))
        return list(storages), list(bridges)

    async def _send_disks(self, disks: Sequence[SourceDisk], tunnel: TargetTunnel, pace: Pace) -> dict[str, str]:
        shipping = Shipping(self._world.reactor, tunnel, self._world.storage, self._world.progress)
        return {str(disk.volid): await shipping.send(self._ship(disk, pace)) for disk in disks}

    def _ship(self, disk: SourceDisk, pace: Pace) -> Shipment:
        order = self._order
        storage = order.storages.target(disk.volid.storage)
        name = disk.name_for(order.vmid, order.target_vmid)
        return Shipment(disk=disk, name=name, storage=storage, limit_bytes_s=pace.disks[disk.label])

    async def _define(self, plan: Plan, tunnel: TargetTunnel, volids: Mapping[str, str]) -> None:
        order = self._order
        conf = rewrite_config(plan.conf, volids, order.bridge, order.storages.target)
        await tunnel.set_config(conf, self._world.guests.read_firewall(order.vmid))

    async def _abandon(self, tunnel: TargetTunnel) -> None:
        if not tunnel.is_connected:
            self._cleaned = True
            return
        if tunnel.may_be_theirs:
            return  # nothing may be ended or removed there: at the end of the connection the target decides
        try:
            if tunnel.is_started and not tunnel.is_unlocked:
                await tunnel.stop()
            await tunnel.quit()
            self._cleaned = not tunnel.is_unlocked
        except TunnelError as error:
            # Without `quit` it cleans up at the end of the connection.
            how = "was not waited for" if tunnel.is_dropped else "failed"
            self._say(f"cleanup at the target {how}: {error.text}")
        else:
            kept = f"VM {self._order.target_vmid} is complete at the target and stays there"
            self._say(kept if tunnel.is_unlocked else "the target has removed what was sent")

    async def _compare(self, plan: Plan, volids: Mapping[str, str]) -> None:
        """Raises: BackendFailed: a disk there is not the disk here."""
        for disk in plan.disks:
            theirs = await self._digest_there(plan, disk, volids[str(disk.volid)])
            if await self._world.storage.digest(str(disk.volid)) != theirs:
                raise BackendFailed(
                    f"{disk.label}: the copy at the target has another SHA-256; nothing was deleted, "
                    f"VM {self._order.target_vmid} is still there"
                )
            self._say(f"{disk.label}: SHA-256 agrees")

    async def _digest_there(self, plan: Plan, disk: SourceDisk, volid: str) -> str:
        path = ("nodes", plan.node, "qemu", str(self._order.target_vmid), "mtunneldigest")
        wait_s = DIGEST_S + disk.stream_bytes / DIGEST_BYTES_S
        return read_text(await self._world.target.get(*path, volume=volid, wait_s=wait_s), "sha256")

    async def _remove(self, plan: Plan) -> None:
        """The target has the VM: config first, so that nobody starts it here again."""
        guests, vmid = self._world.guests, self._order.vmid
        async with guests.locked(vmid, LOCK_S):
            check_marked(guests, vmid)
            await guests.remove(vmid)
        await guests.remove_firewall(vmid)
        failed = [reason for disk in plan.disks if (reason := await self._free(disk))]
        if failed:
            raise BackendFailed(f"VM {vmid} was moved, but these volumes are left here: {'; '.join(failed)}")
        self._say(f"VM {vmid} was removed here")

    async def _free(self, disk: SourceDisk) -> str | None:
        """Returns: why the volume is still there."""
        try:
            await self._world.storage.free(str(disk.volid))
        except TunnelError as error:
            return f"'{disk.volid}' ({error.text})"
        return None
