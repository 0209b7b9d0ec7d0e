"""Check that a qcow2 file contains everything that its tables point at, internal snapshots included.

For images with subclusters only the tables are checked, because the last cluster of a good image may be incomplete.

Source: QEMU's docs/interop/qcow2.txt. The image has passed `qemu-img check` before.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from mtunnel_tx.pve.imagefile import ImageRefused, Read

_HEADER = struct.Struct(">20xIQ4xIQ12xIQ")
_SNAPSHOT = struct.Struct(">QIHH20xI")
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED = 1 << 62
_ZERO = 1
_SECTOR_BYTES = 512
_EXTENDED_L2 = 1 << 4
_INCOMPATIBLE = slice(72, 80)
_HEADER_BYTES = 80
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Image:
    """A file, and the facts of its header that are needed to read its tables."""

    read: Read
    length: int
    cluster_bits: int
    needed_bytes: int
    extended: bool

    def words(self, offset: int, count_bytes: int) -> Iterator[array[int]]:
        """A table that must be in the file as a whole, in pieces."""
        self.need(offset + count_bytes)
        for start in range(0, count_bytes, _PIECE_BYTES):
            piece = array("Q", self.read(offset + start, min(_PIECE_BYTES, count_bytes - start)))
            if sys.byteorder == "little":
                piece.byteswap()
            yield piece

    def need(self, end: int) -> None:
        if end > self.length:
            raise ImageRefused(f"image is cut short: it ends at {self.length} of {end} bytes")


def refuse_missing_clusters(read: Read, length: int) -> None:
    """Raises: ImageRefused: the tables point behind the end of the file."""
    head = read(0, _HEADER_BYTES)
    cluster_bits, size_bytes, l1_entries, l1_offset, snapshots, snapshots_offset = _HEADER.unpack_from(head)
    version, incompatible = head[7], int.from_bytes(head[_INCOMPATIBLE], "big")
    extended = version > 2 and bool(incompatible & _EXTENDED_L2)
    # The last cluster may end with the disk, and snapshots may have other sizes: require only so much of any cluster.
    image = _Image(read, length, cluster_bits, size_bytes % (1 << cluster_bits) or 1 << cluster_bits, extended)
    tables = {(l1_offset, l1_entries), *_snapshot_tables(image, snapshots, snapshots_offset)}
    for offset in {l2 for table in tables for l2 in _l2_offsets(image, *table)}:
        _refuse_missing_data(image, offset)


def _snapshot_tables(image: _Image, count: int, offset: int) -> Iterator[tuple[int, int]]:
    for _ in range(count):
        image.need(offset + _SNAPSHOT.size)
        l1_offset, l1_entries, id_bytes, name_bytes, extra_bytes = _SNAPSHOT.unpack(image.read(offset, _SNAPSHOT.size))
        yield l1_offset, l1_entries
        end = offset + _SNAPSHOT.size + extra_bytes + id_bytes + name_bytes
        image.need(end)
        offset = -(-end // 8) * 8


def _l2_offsets(image: _Image, offset: int, entries: int) -> Iterator[int]:
    for piece in image.words(offset, 8 * entries):
        yield from (word & _OFFSET for word in piece if word & _OFFSET)


def _refuse_missing_data(image: _Image, offset: int) -> None:
    for piece in image.words(offset, 1 << image.cluster_bits):
        for word in piece[::2] if image.extended else piece:
            if word & _COMPRESSED:
                _refuse_missing_sectors(image, word)
            elif word & _OFFSET and not word & _ZERO and not image.extended:
                image.need((word & _OFFSET) + image.needed_bytes)


def _refuse_missing_sectors(image: _Image, word: int) -> None:
    """Compressed data may end anywhere in its last sector; if that is cut, only unpacking tells if it is whole."""
    shift = 62 - (image.cluster_bits - 8)
    start = word & ((1 << shift) - 1)
    end = (start // _SECTOR_BYTES + 1 + ((word & (_COMPRESSED - 1)) >> shift)) * _SECTOR_BYTES
    if end <= image.length:
        return
    if end - _SECTOR_BYTES >= image.length or not _unpacks(image, start):
        image.need(end)


def _unpacks(image: _Image, start: int) -> bool:
    wanted = 1 << image.cluster_bits
    try:
        found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(image.read(start, image.length - start), wanted)
    except zlib.error:
        return False
    return len(found) == wanted
