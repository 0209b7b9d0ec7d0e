"""What the disks of a VM hold, looked at before they are sent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace

from mtunnel_tx.errors import BackendFailed, BadRequest, NotFound, TunnelError
from mtunnel_tx.extents import FileExtents
from mtunnel_tx.ports.storage import Storage
from mtunnel_tx.pve.drive import TPM_STATE_BYTES
from mtunnel_tx.pve.imagefile import SECTOR_BYTES, ImageFacts
from mtunnel_tx.source.inventory import HEADER_BYTES, SourceDisk

Names = Mapping[str, tuple[str, ...]]


class Measuring:
    """Measures disks.

    Args: mirrored: whether a disk would be copied while the VM runs. obstructed: takes what keeps a disk here.
    """

    def __init__(
        self,
        storage: Storage,
        mirrored: Callable[[SourceDisk], bool],
        obstructed: Callable[[SourceDisk, str], None],
    ) -> None:
        self._storage = storage
        self._mirrored = mirrored
        self._obstructed = obstructed

    async def measure(self, disk: SourceDisk) -> SourceDisk | None:
        """Returns: the disk with its sizes; None: it cannot be sent."""
        try:
            return await self._measure(disk)
        except TunnelError as error:
            self._obstructed(disk, error.text)
            return None

    async def _measure(self, disk: SourceDisk) -> SourceDisk:
        volid, mirrored = str(disk.volid), self._mirrored(disk)
        size_bytes = await self._size(disk)
        facts = await self._storage.image_facts(volid)
        inside = _look_inside(disk, facts) if facts is not None else {}
        _check_size(disk, size_bytes)
        if disk.with_snapshots and not mirrored:
            await self._verify(disk)
        extents = await self._storage.extents(volid)
        found = _measured(disk, size_bytes, extents, self._storage.stream_formats)
        # What an image shows is not what its file has: snapshots, and what was freed in it, stay behind.
        shown_bytes = await self._storage.written_bytes(volid) if disk.with_snapshots else None
        shown_bytes = found.data_bytes if shown_bytes is None else shown_bytes
        data_bytes = shown_bytes if mirrored else found.data_bytes
        return replace(found, inside=inside, mirrored=mirrored, shown_bytes=shown_bytes, data_bytes=data_bytes)

    async def _size(self, disk: SourceDisk) -> int:
        size_bytes = await self._storage.size_bytes(str(disk.volid))
        if size_bytes is None:
            raise NotFound(f"volume '{disk.volid}' does not exist")
        if disk.is_tpm_state:
            # swtpm cuts the file to what it uses, which no stream format can carry: it is extended before it is sent.
            size_bytes = max(size_bytes, TPM_STATE_BYTES)
        return size_bytes

    async def _verify(self, disk: SourceDisk) -> None:
        """Raises: BadRequest: its copy would be refused, or its export would break off."""
        try:
            await self._storage.verify(str(disk.volid))
        except BackendFailed as error:
            reason = " ".join(error.text.partition(": ")[2].split())
            raise BadRequest(f"'{disk.volid}' cannot be sent: {reason}; 'qemu-img check' tells more") from error


def _check_size(disk: SourceDisk, size_bytes: int) -> None:
    if not size_bytes:
        raise BadRequest(f"volume '{disk.volid}' has a size of 0 bytes")
    if size_bytes % SECTOR_BYTES:
        raise BadRequest(f"'{disk.volid}' has {size_bytes} bytes, no multiple of {SECTOR_BYTES}: resize it first")


def _look_inside(disk: SourceDisk, facts: ImageFacts) -> Names:
    """Returns: what an image holds beside the disk. Raises: BadRequest: it is no whole image alone."""
    if facts.why_not_alone:
        raise BadRequest(f"'{disk.volid}' cannot be sent: {facts.why_not_alone}")
    return {"snapshots": facts.snapshots, "bitmaps": facts.bitmaps}


def find_losses(disk: SourceDisk) -> Iterator[str]:
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
