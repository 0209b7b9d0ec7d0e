"""What a sparse file really holds, and the stream formats that leave its holes out (`raw+sparse`, `qcow2+sparse`, …).

Proxmox does not know these formats; between two of ours they take the place of `raw+size`, `qcow2+size`, …: eight
bytes, little endian, the virtual size; then for each extent of data, in the order of the file, its offset and its
length (eight bytes each, little endian) and the data; at last the length of the file and a length of 0.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

EXTENT = struct.Struct("<QQ")
"""Offset and length of an extent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileExtents:
    """What a file holds: its length, the bytes of it that are no hole, and how many extents these are in."""

    length_bytes: int
    data_bytes: int
    count: int

    @property
    def stream_bytes(self) -> int:
        """The length of a sparse stream of it, without the virtual size in front."""
        return self.data_bytes + EXTENT.size * (self.count + 1)


def measure_extents(fd: int, length_bytes: int) -> FileExtents:
    """Look at a file's first `length_bytes`; blocks, but reads none of them."""
    sizes = [end - start for start, end, has_data in segments(fd, length_bytes) if has_data]
    return FileExtents(length_bytes=length_bytes, data_bytes=sum(sizes), count=len(sizes))


def segments(fd: int, length_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """Data and holes in turn: (start, end, has data). A file system that knows no holes has data alone."""
    position = 0
    while position < length_bytes:
        data = min(_seek_data(fd, position, length_bytes), length_bytes)
        if data > position:
            yield position, data, False
        if data < length_bytes:
            position = min(os.lseek(fd, data, os.SEEK_HOLE), length_bytes)
            yield data, position, True
        else:
            position = length_bytes


def _seek_data(fd: int, position: int, length_bytes: int) -> int:
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return length_bytes
        raise
