"""Looks at both hosts before anything is changed, and names everything that stands in the way.

Only GET requests: nothing at the target notices.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BadRequest, Forbidden, NotFound, TimedOut, TunnelError, Unauthenticated, WrongState
from mtunnel_tx.extents import FileExtents
from mtunnel_tx.pve.drive import TPM_STATE_BYTES
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.imagefile import SECTOR_BYTES, ImageFacts
from mtunnel_tx.source.inventory import HEADER_BYTES, SourceDisk, custom_cpu, find_disks, find_obstacles
from mtunnel_tx.source.journal import check_abandoned, find_departure
from mtunnel_tx.source.order import Order, Plan, SourceWorld
from mtunnel_tx.source.owner import describe
from mtunnel_tx.source.qemu.live import is_online
from mtunnel_tx.source.rewriting import find_bridges
from mtunnel_tx.source.target import NotImplementedThere, TargetUnreachable, objects
from mtunnel_tx.source.targetstorages import TargetStorages
from mtunnel_tx.source.tunnel import read_text

T = TypeVar("T")


class Obstructed(WrongState):
    """Something stands in the way of a migration; `obstacles` has one sentence for each."""

    def __init__(self, obstacles: Sequence[str]) -> None:
        super().__init__("; ".join(obstacles))
        self.obstacles = tuple(obstacles)


class Survey:
    """One look at both hosts."""

    def __init__(self, order: Order, world: SourceWorld) -> None:
        self._order = order
        self._world = world
        self._obstacles: dict[str, None] = {}

    async def plan(self, *, ask_privileges: bool = False) -> Plan:
        """Check all that can be checked.

        Args: ask_privileges: also ask what a tunnel's own answers would tell: what the token may do, which bridges
                there are. A target that does not say is no obstacle.
        Raises: Obstructed: with everything that stands in the way; NotFound: there is no such VM here.
        """
        conf = self._world.guests.read(self._order.vmid)
        disks = await self._look_here(conf)
        plan = None
        try:
            plan = await self._look_there(conf, disks)
            if ask_privileges:
                await self._look_at_privileges(disks)
                await self._look_at_bridges(plan.node, conf)
        except (Unauthenticated, TargetUnreachable, TimedOut) as error:
            self._add(f"target: {error.text}")
        if self._obstacles or plan is None:
            raise Obstructed(tuple(self._obstacles))
        return plan

    def _add(self, *obstacles: str) -> None:
        self._obstacles.update(dict.fromkeys(obstacles))

    # Here

    async def _look_here(self, conf: GuestConfig) -> tuple[SourceDisk, ...]:
        order = self._order
        self._look_for_journal()
        if self._world.running(order.vmid) and not (order.online and self._world.machines):
            how = "it cannot be moved while it runs" if order.online else "give --online, or shut it down first"
            self._add(f"VM {order.vmid} is running: {how}")
        if order.delete and conf.options.get("protection") == "1":
            self._add(f"VM {order.vmid} is protected against removal: leave --delete out, or its `protection`")
        self._add(*find_obstacles(order.vmid, conf))
        disks, obstacles = find_disks(order.vmid, conf, self._world.storage.config())
        self._add(*obstacles, *self._find_gaps(conf, disks))
        measured = [await self._measure(conf, disk) for disk in disks]
        return tuple(disk for disk in measured if disk is not None)

    def _look_for_journal(self) -> None:
        """What an earlier program left; before a migration it was settled."""
        try:
            departure = find_departure(self._world, self._order.vmid)
            if departure is not None:
                check_abandoned(self._world, departure)
                vmid = departure.vmid
                self._add(f"VM {vmid} {describe(departure)}; first run 'mtunnel settle {vmid}'")
        except WrongState as error:
            self._add(error.text)

    def _find_gaps(self, conf: GuestConfig, disks: Sequence[SourceDisk]) -> Iterator[str]:
        """What the maps leave out."""
        storages = [disk.volid.storage for disk in disks]
        storages += [conf.options["vmstatestorage"]] if "vmstatestorage" in conf.options else []
        for name in dict.fromkeys(storages):
            yield from _reason(f"storage '{name}'", partial(self._order.storages.target, name))
        for name in find_bridges(conf):
            yield from _reason(f"bridge '{name}'", partial(self._order.bridge, name))

    async def _measure(self, conf: GuestConfig, disk: SourceDisk) -> SourceDisk | None:
        try:
            if disk.is_tpm_state:
                # swtpm cuts the file to what it uses, which no stream format can carry.
                await self._world.storage.extend(str(disk.volid), TPM_STATE_BYTES)
            size_bytes = await self._world.storage.size_bytes(str(disk.volid))
            if size_bytes is None:
                raise NotFound(f"volume '{disk.volid}' does not exist")
            if not size_bytes:
                raise BadRequest(f"volume '{disk.volid}' has a size of 0 bytes")
            if size_bytes % SECTOR_BYTES:
                raise BadRequest(
                    f"'{disk.volid}' has {size_bytes} bytes, no multiple of {SECTOR_BYTES}: resize it first"
                )
            facts = await self._world.storage.image_facts(str(disk.volid))
            inside = _look_inside(disk, facts) if facts is not None else {}
            extents = await self._world.storage.extents(str(disk.volid))
        except TunnelError as error:
            self._add(f"{disk.label}: {clean(error.text)}")
            return None
        mirrored = self._world.running(self._order.vmid) and is_online(conf, disk)
        found = replace(disk, inside=inside, mirrored=mirrored)
        return _measured(found, size_bytes, extents, self._world.storage.stream_formats)

    # There

    async def _look_there(self, conf: GuestConfig, disks: Sequence[SourceDisk]) -> Plan:
        node = await self._ask(self._find_node(), "")
        repoid = await self._ask(self._find_repoid(), "")
        await self._ask(self._check_vmid(), None)
        fitted = await self._ask(TargetStorages(self._order, self._world, self._add).check(disks, repoid), disks)
        if not self._order.drop_snapshots:
            self._add(*(f"{disk.label}: {reason}" for disk in fitted for reason in _find_losses(disk)))
        await self._ask(self._check_cpu(conf), None)
        return Plan(conf=conf, disks=tuple(fitted), node=node, repoid=repoid)

    async def _ask(self, question: Awaitable[T], default: T) -> T:
        """A refusal is an obstacle like others; only where nobody can answer, more questions make no sense."""
        try:
            return await question
        except (Unauthenticated, TargetUnreachable, TimedOut):
            raise
        except TunnelError as error:
            self._add(f"target: {clean(error.text)}")
            return default

    async def _find_node(self) -> str:
        for entry in objects(await self._world.target.get("cluster", "status")):
            if entry.get("type") == "node" and entry.get("local") in (1, True, "1"):
                return read_text(entry, "name")
        raise NotFound("its cluster status names no local node")

    async def _find_repoid(self) -> str:
        version = await self._world.target.get("version")
        return str(version.get("repoid", "")) if isinstance(version, dict) else ""

    async def _check_vmid(self) -> None:
        vmid = self._order.target_vmid
        for entry in objects(await self._world.target.get("cluster", "resources", type="vm")):
            if str(entry.get("vmid")) == str(vmid):
                self._add(f"target: VM {vmid} already exists on node '{clean(str(entry.get('node')))}'")

    async def _check_cpu(self, conf: GuestConfig) -> None:
        name = custom_cpu(conf)
        if name is not None:
            await self._world.target.get("cluster", "qemu", "custom-cpu-models", name)

    async def _look_at_privileges(self, disks: Sequence[SourceDisk]) -> None:
        used = dict.fromkeys(_target_or_none(self._order, disk) for disk in disks)
        needed = {f"/vms/{self._order.target_vmid}": "VM.Allocate", "/": "Sys.Incoming"}
        needed |= {f"/storage/{name}": "Datastore.AllocateSpace" for name in used if name}
        for path, privilege in needed.items():
            await self._ask(self._check_privilege(path, privilege), None)

    async def _look_at_bridges(self, node: str, conf: GuestConfig) -> None:
        try:
            listed = await self._world.target.get("nodes", node, "network", type="any_bridge")
        except (NotImplementedThere, NotFound, Forbidden):
            return
        known = {str(entry.get("iface")) for entry in objects(listed)}
        for name in find_bridges(conf):
            there = _try(partial(self._order.bridge, name))
            if there is not None and there not in known:
                self._add(f"target: bridge '{there}' is not there, or the token may not use it")

    async def _check_privilege(self, path: str, privilege: str) -> None:
        try:
            held = await self._world.target.get("access", "permissions", path=path)
        except (NotImplementedThere, NotFound, Forbidden):
            return  # nothing is known then; the tunnel itself will tell
        there = held.get(path) or {} if isinstance(held, dict) else None
        if isinstance(there, dict) and privilege not in there:
            self._add(f"target: 403 Permission check failed ({path}, {privilege})")


def _look_inside(disk: SourceDisk, facts: ImageFacts) -> Mapping[str, tuple[str, ...]]:
    """Returns: what an image holds beside the disk. Raises: BadRequest: it is no whole image alone."""
    if facts.elsewhere is not None:
        raise BadRequest(f"'{disk.volid}' is not complete in itself: {facts.elsewhere}")
    if facts.encrypted:
        raise BadRequest(f"'{disk.volid}' is encrypted, and no key goes with it")
    return {"snapshots": facts.snapshots, "bitmaps": facts.bitmaps}


def _find_losses(disk: SourceDisk) -> Iterator[str]:
    """What a copy of a running disk, or of another format, does not have; a copy of the file has it."""
    hint = "--drop-snapshots lets them go"
    if disk.mirrored:
        why, hint = "by a move while it runs", f"{hint}, and a move of the VM while it is off keeps them"
    elif disk.is_converted:
        why = f"where it becomes {disk.becomes}"
    else:
        return
    for kind, names in disk.inside.items():
        if names:
            yield f"the {kind} in its image would be lost {why}: {', '.join(names)}; {hint}"


def _measured(disk: SourceDisk, size_bytes: int, extents: FileExtents | None, known: Collection[str]) -> SourceDisk:
    """Args: known: the stream formats that our own program can write."""
    length = extents.length_bytes if extents and disk.with_snapshots else size_bytes
    return replace(
        disk,
        offers=tuple(offer for offer in disk.offers if offer.stream in known),
        size_bytes=size_bytes,
        data_bytes=extents.data_bytes if extents else size_bytes,
        stream_bytes=length + HEADER_BYTES,
        sparse_bytes=extents.stream_bytes + HEADER_BYTES if extents else 0,
    )


def _reason(what: str, ask: Callable[[], str]) -> Iterator[str]:
    try:
        ask()
    except BadRequest as error:
        yield f"{what}: {error.text}"


def _try(ask: Callable[[], str]) -> str | None:
    """A name at the target; None: the map leaves it out."""
    try:
        return ask()
    except BadRequest:
        return None


def _target_or_none(order: Order, disk: SourceDisk) -> str | None:
    return _try(partial(order.storages.target, disk.volid.storage))
