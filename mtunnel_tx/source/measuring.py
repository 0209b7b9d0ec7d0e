"""What the disks of a VM hold, looked at before they are sent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from mtunnel_tx.errors import BadRequest, NotFound, TunnelError
from mtunnel_tx.extents import FileExtents
from mtunnel_tx.pve.drive import TPM_STATE_BYTES
from mtunnel_tx.pve.imagefile import SECTOR_BYTES, ImageFacts
from mtunnel_tx.source.inventory import SourceDisk
from mtunnel_tx.source.order import Order, SourceWorld

HEADER_BYTES = 8


class Measuring:
    """Measures disks.

    Args: mirrored: whether a disk would be copied while the VM runs. obstructed: takes what keeps a disk here.
    """

    def __init__(
        self,
        order: Order,
        world: SourceWorld,
        mirrored: Callable[[SourceDisk], bool],
        obstructed: Callable[[SourceDisk, str], None],
    ) -> None:
        self._order = order
        self._storage = world.storage
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
        if disk.is_tpm_state:
            # swtpm cuts the file to what it uses, which no stream format can carry.
            await self._storage.extend(volid, TPM_STATE_BYTES)
        size_bytes = await self._size(disk)
        facts = await self._storage.image_facts(volid)
        if facts is not None:
            self._look_inside(disk, facts, mirrored=mirrored)
        measured = _measured(disk, size_bytes, await self._storage.extents(volid), self._storage.stream_formats)
        if not (mirrored and disk.with_snapshots):
            return replace(measured, mirrored=mirrored)
        # What is read through QEMU is not what the file has: snapshots, and what was freed in it, stay behind.
        written_bytes = await self._storage.written_bytes(volid)
        return replace(
            measured, mirrored=True, data_bytes=measured.data_bytes if written_bytes is None else written_bytes
        )

    async def _size(self, disk: SourceDisk) -> int:
        size_bytes = await self._storage.size_bytes(str(disk.volid))
        if size_bytes is None:
            raise NotFound(f"volume '{disk.volid}' does not exist")
        if not size_bytes:
            raise BadRequest(f"volume '{disk.volid}' has a size of 0 bytes")
        if size_bytes % SECTOR_BYTES:
            raise BadRequest(f"'{disk.volid}' has {size_bytes} bytes, no multiple of {SECTOR_BYTES}: resize it first")
        return size_bytes

    def _look_inside(self, disk: SourceDisk, facts: ImageFacts, *, mirrored: bool) -> None:
        """What an image holds that cannot go with it. Raises: BadRequest: it is no whole image alone."""
        if facts.elsewhere is not None:
            raise BadRequest(f"'{disk.volid}' is not complete in itself: {facts.elsewhere}")
        if facts.encrypted:
            raise BadRequest(f"'{disk.volid}' is encrypted, and no key goes with it")
        if mirrored and not self._order.drop_snapshots:
            for reason in _lost_by_a_mirror(facts):
                self._obstructed(disk, reason)


def _lost_by_a_mirror(facts: ImageFacts) -> Iterator[str]:
    """What a copy of a running disk does not have; a copy of the file has it."""
    hint = "--drop-snapshots lets them go, and a move of the VM while it is off keeps them"
    for kind, names in (("snapshots", facts.snapshots), ("bitmaps", facts.bitmaps)):
        if names:
            yield f"the {kind} in its image would be lost by a move while it runs: {', '.join(names)}; {hint}"


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
