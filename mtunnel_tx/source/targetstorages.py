"""The target's storages, looked at before anything is sent: are they there, is there room, do the disks fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mtunnel_tx.checks import clean, split_list
from mtunnel_tx.errors import BadRequest, Forbidden, NotFound, TunnelError
from mtunnel_tx.pve.findings import Findings, Severity, judge_leftover, judge_room
from mtunnel_tx.pve.storagetypes import (
    IMAGES,
    STORAGE_TYPES,
    STREAM_FORMATS,
    StorageType,
    describe_mismatch,
    match_offers,
)
from mtunnel_tx.source.inventory import SourceDisk
from mtunnel_tx.source.links import Json
from mtunnel_tx.source.order import Order, SourceWorld
from mtunnel_tx.source.report import DiskPlace
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

    Args: here, there: take what is found about the disks, and about the target.
    """

    def __init__(self, order: Order, world: SourceWorld, here: Findings, there: Findings) -> None:
        self._order = order
        self._world = world
        self._here = here
        self._found = there
        self._listed: Mapping[str, Mapping[str, Json]] = {}
        self.is_listed = False

    async def fetch(self) -> None:
        """To be called first; `is_listed` tells that it went well. Raises: TunnelError: the target does not answer."""
        listed = objects(await self._world.target.get("nodes", "localhost", "storage"))
        self._listed = {str(entry.get("storage")): entry for entry in listed}
        self.is_listed = True

    def fit(self, disks: Sequence[SourceDisk]) -> list[SourceDisk]:
        """Returns: the disks, as images of formats that the storages there have."""
        return [self._fit(disk, self._listed.get(self._order.storage_or_same(disk.volid.storage))) for disk in disks]

    async def check(
        self, disks: Sequence[SourceDisk], repoid: str, *, vmid_taken: bool = False
    ) -> Mapping[str, DiskPlace]:
        """Args: repoid: what the target says it is. vmid_taken: a guest there has the VMID.

        Returns: what would become of the disks, by their keys. Raises: TunnelError: it does not answer.
        """
        destinations: dict[str, DiskPlace] = {}
        for name in self._names(disks):
            there = self._listed.get(name)
            if there is None:
                self._add(name, await self._why_absent(name))
            elif there.get("enabled") in (0, False, "0"):
                self._add(name, f"storage '{name}' is disabled")
            elif "images" not in split_list(str(there.get("content", ""))):
                self._add(name, f"storage '{name}' does not support vm images")
            else:
                mapped = [disk for disk in disks if self._target(disk) == name]
                free = there.get("avail")
                free_bytes = free if isinstance(free, int) and not isinstance(free, bool) else None
                self._check_space(name, free_bytes, mapped)
                destinations |= dict(self._destinations(there, mapped, free_bytes))
                self._check_sizes(mapped, repoid)
                if not vmid_taken:
                    await self._find_leftovers(name, mapped, repoid)
        return destinations

    def _add(self, storage: str, text: str, severity: Severity = Severity.REFUSE) -> None:
        self._found.add("storage", storage, text, severity)

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

    def _check_space(self, name: str, free_bytes: int | None, disks: Sequence[SourceDisk]) -> None:
        """What will be written must fit; what the guests may write later is worth a warning."""
        for finding in judge_room(
            name,
            size_bytes=sum(disk.size_bytes for disk in disks),
            written_bytes=sum(disk.data_bytes for disk in disks),
            free_bytes=free_bytes,
            strict=self._order.strict_space,
        ):
            self._add(name, finding.text, finding.severity)

    def _fit(self, disk: SourceDisk, there: Mapping[str, Json] | None) -> SourceDisk:
        """The disk as what it becomes on a storage there."""
        kind = STORAGE_TYPES.get(str(there.get("type"))) if there is not None else None
        if there is None or kind is None:
            return disk
        becomes = choose_format(disk, self._order.target_format, kind)
        if becomes not in kind.formats:
            only = ", ".join(format for format in kind.formats if format in IMAGES)
            text = f"{disk.label} cannot be {becomes}: storage '{there['storage']}' has only {only}"
            self._found.add("disk", disk.label, text)
            becomes = kind.formats[0]
        if becomes == disk.format:
            return disk
        own = self._world.storage
        offers = own.config()[disk.volid.storage].kind.offers(disk.format, becomes)
        text = f"{disk.label}: becomes {becomes} there, from {disk.format}"
        self._here.add("disk", disk.label, text, Severity.CHANGE)
        return disk.converted(becomes, tuple(offer for offer in offers if offer.stream in own.stream_formats))

    def _destinations(
        self, there: Mapping[str, Json], disks: Sequence[SourceDisk], free_bytes: int | None
    ) -> Iterator[tuple[str, DiskPlace]]:
        """Disks of a running VM are written by QEMU, into whatever image there is; others must fit as a stream."""
        name, type = str(there.get("storage")), str(there.get("type"))
        target = STORAGE_TYPES.get(type)
        converts = there.get("converts") in (1, True, "1")
        for disk in disks:
            place = DiskPlace(storage=name, free_bytes=free_bytes)
            if target is None:
                yield disk.label, place
            elif disk.mirrored:
                yield disk.label, replace(place, format=disk.becomes)
            elif offer := match_offers(disk.offers, target, with_snapshots=disk.with_snapshots, converts=converts):
                stream = STREAM_FORMATS[offer.stream].dense or offer.stream
                yield disk.label, replace(place, format=disk.becomes, stream=stream)
            else:
                reason = f"{disk.label} cannot go to storage '{name}': {self._why_not(disk, type, target)}"
                self._found.add("disk", disk.label, reason)

    def _why_not(self, disk: SourceDisk, type: str, target: StorageType) -> str:
        if match_offers(disk.offers, target, with_snapshots=disk.with_snapshots, converts=True):
            return f"the program there makes no {disk.becomes} of a raw stream; only mtunnel-tx's own does"
        own = self._world.storage.config()[disk.volid.storage].type
        return describe_mismatch(disk.offers, own, type)

    def _check_sizes(self, disks: Sequence[SourceDisk], repoid: str) -> None:
        """Proxmox makes disks in KiB: rounded up, a copy is no copy, and QEMU refuses to mirror into it."""
        for disk in (disk for disk in disks if disk.format == "raw" and disk.size_bytes % 1024 and not is_ours(repoid)):
            size = f"{disk.size_bytes} bytes"
            text = f"{disk.label} has {size}, but Proxmox makes disks in KiB only: resize it first"
            self._found.add("disk", disk.label, text)

    async def _find_leftovers(self, name: str, disks: Sequence[SourceDisk], repoid: str) -> None:
        """Volumes of a VM that is not there may hold what somebody wants, and would be removed with the new one.

        A cloud-init drive is made of a config, but its name is needed; an mtunnel-tx makes it anew.
        """
        vmid = self._order.target_vmid
        try:
            listed = await self._world.target.get("nodes", "localhost", "storage", name, "content", vmid=str(vmid))
        except TunnelError:
            return  # it does not say; the import itself will tell
        images = [entry for entry in objects(listed) if entry.get("content", "images") in ("images", "rootdir")]
        generated = {disk.name_for(self._order.vmid, vmid) for disk in disks if disk.is_cloudinit}
        for volid in sorted(clean(str(entry.get("volid"))) for entry in images):
            finding = judge_leftover(name, volid, vmid, generated, remakes=is_ours(repoid))
            self._found.add(finding.about, finding.name, finding.text, finding.severity)
