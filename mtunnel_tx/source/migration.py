"""A migration of a stopped VM, from the first look to the last word; read `run` from top to bottom."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.pve.bandwidth import effective_limit
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.users import ROOT, UserConfig
from mtunnel_tx.source.disks import Shipment, Shipping
from mtunnel_tx.source.inventory import Disk
from mtunnel_tx.source.links import Json
from mtunnel_tx.source.marking import LOCK_S, check_marked, marked
from mtunnel_tx.source.order import Order, Plan, World
from mtunnel_tx.source.rewriting import find_bridges, rewrite_config
from mtunnel_tx.source.survey import Survey
from mtunnel_tx.source.tunnel import Tunnel, read_text
from mtunnel_tx.source.waiting import finish

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

    def __init__(self, order: Order, world: World) -> None:
        self._order = order
        self._world = world
        self._say = world.progress.say

    async def check(self) -> Plan:
        """Look, and touch nothing. Raises: Obstructed: everything that stands in the way."""
        return await Survey(self._order, self._world).plan(ask_privileges=True)

    async def run(self) -> Summary:
        """Move the VM. Raises: TunnelError: it is still here, as it was, and the target was told to clean up."""
        plan = await Survey(self._order, self._world).plan()
        started_s = self._world.reactor.seconds()
        async with marked(self._world.guests, self._order.vmid, plan.conf):
            async with self._opened(plan) as tunnel:
                volids = await self._send_disks(plan, tunnel)
                await self._define(plan, tunnel, volids)
                await finish(tunnel.unlock())
                if self._order.delete and plan.repoid.startswith(OURS):
                    await self._compare(plan, volids)
            if self._order.delete:
                await finish(self._remove(plan))
        moved_bytes = sum(disk.stream_bytes for disk in plan.disks)
        return Summary(len(plan.disks), moved_bytes, self._world.reactor.seconds() - started_s)

    @asynccontextmanager
    async def _opened(self, plan: Plan) -> AsyncIterator[Tunnel]:
        """A tunnel, and its end: a failure before `unlock` has the target clean up; afterwards the VM is its own."""
        world = self._world
        tunnel = Tunnel(world.reactor, world.target, world.dial, node=plan.node, vmid=self._order.target_vmid)
        try:
            await finish(tunnel.open(*self._places(plan)))
            yield tunnel
        except Exception:
            await finish(self._abandon(tunnel))
            raise
        else:
            await finish(tunnel.quit())
        finally:
            await finish(tunnel.close())

    def _places(self, plan: Plan) -> tuple[list[str], list[str]]:
        """The storages and bridges that the VM will use there, each once."""
        storages = dict.fromkeys(self._order.storages.target(disk.volid.storage) for disk in plan.disks)
        bridges = dict.fromkeys(self._order.bridge(name) for name in find_bridges(plan.conf))
        return list(storages), list(bridges)

    async def _send_disks(self, plan: Plan, tunnel: Tunnel) -> dict[str, str]:
        shipments = [await self._ship(disk, tunnel) for disk in plan.disks]
        shipping = Shipping(self._world.reactor, tunnel, self._world.storage, self._world.progress)
        return {str(shipment.disk.volid): await shipping.send(shipment) for shipment in shipments}

    async def _ship(self, disk: Disk, tunnel: Tunnel) -> Shipment:
        order = self._order
        storage = order.storages.target(disk.volid.storage)
        theirs = read_limit(await tunnel.bandwidth_limit(storage, order.bwlimit_kib_s))
        limit = smaller_limit(self._own_limit(disk), theirs)
        name = disk.name_for(order.vmid, order.target_vmid)
        return Shipment(disk=disk, name=name, storage=storage, limit_kib_s=limit)

    def _own_limit(self, disk: Disk) -> int:
        """Our own files' limit; whoever runs a migration may override it."""
        if self._order.bwlimit_kib_s is not None:
            return self._order.bwlimit_kib_s
        storage = self._world.storage
        nobody = Rights(UserConfig(), ROOT)
        return read_limit(
            effective_limit(
                storage.config(), storage.datacenter_bwlimit(), nobody, [disk.volid.storage], "migration", None
            )
        )

    async def _define(self, plan: Plan, tunnel: Tunnel, volids: Mapping[str, str]) -> None:
        order = self._order
        conf = rewrite_config(plan.conf, volids, order.bridge, order.storages.target)
        await tunnel.set_config(conf, self._world.guests.read_firewall(order.vmid))

    async def _abandon(self, tunnel: Tunnel) -> None:
        if not tunnel.is_connected:
            return
        try:
            await tunnel.quit()
        except TunnelError as error:
            self._say(f"cleanup at the target failed: {error.text}")
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

    async def _digest_there(self, plan: Plan, disk: Disk, volid: str) -> str:
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

    async def _free(self, disk: Disk) -> str | None:
        """Returns: why the volume is still there."""
        try:
            await self._world.storage.free(str(disk.volid))
        except TunnelError as error:
            return f"'{disk.volid}' ({error.text})"
        return None


def read_limit(value: Json) -> int:
    """A limit in KiB/s as null, number, or text. Returns: 0: none. Raises: BackendFailed."""
    try:
        return max(0, int(float(value or 0)))
    except (TypeError, ValueError, OverflowError) as error:
        raise BackendFailed("the bandwidth limit is no number") from error


def smaller_limit(first: int, second: int) -> int:
    """The smaller of two limits, where 0 is none."""
    return min(first, second) if first and second else first or second
