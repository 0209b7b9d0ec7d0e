"""The target's storages, looked at before anything is sent: are they there, is there room, do the disks fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from mtunnel_tx.checks import clean, split_list
from mtunnel_tx.errors import BadRequest, Forbidden, NotFound, TunnelError
from mtunnel_tx.pve.drive import Drive
from mtunnel_tx.pve.sizes import format_size
from mtunnel_tx.pve.storagetypes import IMAGES, STORAGE_TYPES, StorageType, describe_mismatch, match_offers
from mtunnel_tx.source.inventory import SourceDisk
from mtunnel_tx.source.links import Json
from mtunnel_tx.source.order import Order, SourceWorld
from mtunnel_tx.source.target import NotImplementedThere, is_ours, objects


def choose_format(disk: SourceDisk, wanted: str | None, kind: StorageType) -> str:
    """What a disk's image becomes on a storage of that type.

    Args: wanted: None: as it is, if possible. It is not for a TPM's state and a cloud-init drive, which are no disks of
        the guest's.
    """
    if wanted is not None and not disk.is_tpm_state and not disk.is_cloudinit:
        return wanted
    return disk.format if disk.format in kind.formats else kind.formats[0]


_MAY_SEE = ("Datastore.AllocateSpace", "Datastore.Audit")


class TargetStorages:
    """Asks about the storages of one order.

    Args: obstructed: takes what stands in the way, a sentence each. What is only worth knowing is said to who watches.
    """

    def __init__(self, order: Order, world: SourceWorld, obstructed: Callable[[str], None]) -> None:
        self._order = order
        self._world = world
        self._obstructed = obstructed

    async def check(self, disks: Sequence[SourceDisk], repoid: str) -> Sequence[SourceDisk]:
        """Args: repoid: what the target says it is.

        Returns: the disks, as images of formats that the storages there have. Raises: TunnelError: it does not answer.
        """
        fitted = {disk.volid: disk for disk in disks}
        listed = objects(await self._world.target.get("nodes", "localhost", "storage"))
        storages = {str(entry.get("storage")): entry for entry in listed}
        for name in self._names(disks):
            there = storages.get(name)
            if there is None:
                self._obstructed(f"target: {await self._why_absent(name)}")
            elif there.get("enabled") in (0, False, "0"):
                self._obstructed(f"target: storage '{name}' is disabled")
            elif "images" not in split_list(str(there.get("content", ""))):
                self._obstructed(f"target: storage '{name}' does not support vm images")
            else:
                mapped = [self._fit(disk, there) for disk in disks if self._target(disk) == name]
                fitted |= {disk.volid: disk for disk in mapped}
                self._check_space(name, there.get("avail"), mapped)
                self._check_streams(there, mapped)
                self._check_sizes(mapped, repoid)
                await self._find_leftovers(name, mapped, repoid)
        return list(fitted.values())

    def _names(self, disks: Sequence[SourceDisk]) -> Sequence[str]:
        storages = self._order.storages
        return sorted({disk.volid.storage for disk in disks}) if storages.is_identity else storages.targets

    def _target(self, disk: SourceDisk) -> str | None:
        try:
            return self._order.storages.target(disk.volid.storage)
        except BadRequest:
            return None

    async def _why_absent(self, name: str) -> str:
        """A target shows only what the token may see; where it tells its rights, the two can be told apart."""
        path = f"/storage/{name}"
        try:
            held = await self._world.target.get("access", "permissions", path=path)
        except (NotImplementedThere, NotFound, Forbidden):
            held = None
        rights = held.get(path) or {} if isinstance(held, dict) else None
        if not isinstance(rights, dict):
            return f"storage '{name}' is not there, or the token may not use it"
        if not any(rights.get(privilege) is not None for privilege in _MAY_SEE):
            return f"the token may not use storage '{name}'"
        return f"storage '{name}' is not there"

    def _check_space(self, name: str, avail: Json, disks: Sequence[SourceDisk]) -> None:
        """What will be written must fit; what the guests may write later is worth a warning."""
        size_bytes = sum(disk.size_bytes for disk in disks)
        needed_bytes = size_bytes if self._order.strict_space else sum(disk.data_bytes for disk in disks)
        if not isinstance(avail, int) or size_bytes <= avail:
            return
        there = f"{format_size(avail)} available"
        if needed_bytes > avail:
            self._obstructed(f"target: storage '{name}' has no space: {format_size(needed_bytes)} needed, {there}")
        else:
            full = f"the disks can grow to {format_size(size_bytes)}, {there}"
            self._world.progress.say(f"target: storage '{name}' may become full: {full}")

    def _fit(self, disk: SourceDisk, there: Mapping[str, Json]) -> SourceDisk:
        """The disk as what it becomes on a storage there."""
        kind = STORAGE_TYPES.get(str(there.get("type")))
        if kind is None:
            return disk
        becomes = choose_format(disk, self._order.target_format, kind)
        if becomes not in kind.formats:
            only = ", ".join(format for format in kind.formats if format in IMAGES)
            self._obstructed(f"target: {disk.label} cannot be {becomes}: storage '{there['storage']}' has only {only}")
            becomes = kind.formats[0]
        if becomes == disk.format:
            return disk
        own = self._world.storage
        offers = own.config()[disk.volid.storage].kind.offers(disk.format, becomes)
        self._world.progress.say(f"{disk.label}: becomes {becomes} there, from {disk.format}")
        return disk.converted(becomes, tuple(offer for offer in offers if offer.stream in own.stream_formats))

    def _check_streams(self, there: Mapping[str, Json], disks: Sequence[SourceDisk]) -> None:
        """Disks of a running VM are written by QEMU, into whatever image there is; others must fit as a stream."""
        type = str(there.get("type"))
        target = STORAGE_TYPES.get(type)
        if target is None:
            return
        match = partial(match_offers, target=target)
        converts = there.get("converts") in (1, True, "1")
        for disk in (disk for disk in disks if not disk.mirrored):
            if match(disk.offers, with_snapshots=disk.with_snapshots, converts=converts):
                continue
            own = self._world.storage.config()[disk.volid.storage].type
            reason = describe_mismatch(disk.offers, own, type)
            if match(disk.offers, with_snapshots=disk.with_snapshots, converts=True):
                reason = f"the program there makes no {disk.becomes} of a raw stream; only mtunnel-tx's own does"
            self._obstructed(f"target: {disk.label} cannot go to storage '{there['storage']}': {reason}")

    def _check_sizes(self, disks: Sequence[SourceDisk], repoid: str) -> None:
        """Proxmox makes disks in KiB: rounded up, a copy is no copy, and QEMU refuses to mirror into it."""
        for disk in (disk for disk in disks if disk.format == "raw" and disk.size_bytes % 1024 and not is_ours(repoid)):
            size = f"{disk.size_bytes} bytes"
            self._obstructed(f"target: {disk.label} has {size}, but Proxmox makes disks in KiB only: resize it first")

    async def _find_leftovers(self, name: str, disks: Sequence[SourceDisk], repoid: str) -> None:
        """Volumes of a VM that is not there: a disk takes another name beside them, a cloud-init drive cannot.

        An mtunnel-tx makes that anew.
        """
        vmid = self._order.target_vmid
        try:
            listed = await self._world.target.get("nodes", "localhost", "storage", name, "content", vmid=str(vmid))
        except TunnelError:
            return  # it does not say; the import itself will tell
        found = sorted(clean(str(entry.get("volid"))) for entry in objects(listed))
        if not found:
            return
        text = f"storage '{name}' has volumes of VM {vmid}, which no VM has: {', '.join(found)}"
        generated = {disk.name_for(self._order.vmid, vmid) for disk in disks if disk.is_cloudinit}
        in_the_way = [volid for volid in found if Drive(volid).is_cloudinit and volid.rpartition("/")[2] in generated]
        if in_the_way and not is_ours(repoid):
            self._obstructed(f"target: {text}; remove {', '.join(in_the_way)} first")
        else:
            self._world.progress.say(f"target: {text}")
