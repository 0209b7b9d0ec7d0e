"""The data extents of a sparse file, and the stream formats that do not send its holes (`raw+sparse`, …).

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
    """The length of a file, the number of its bytes that are not in holes, and the number of data extents."""

    length_bytes: int
    data_bytes: int
    count: int

    @property
    def stream_bytes(self) -> int:
        """The length of a sparse stream of the file, without the header."""
        return self.data_bytes + EXTENT.size * (self.count + 1)


def measure_extents(fd: int, length_bytes: int) -> FileExtents:
    """Measure a file's first `length_bytes` with SEEK_DATA and SEEK_HOLE; blocks, but reads no data."""
    sizes = [end - start for start, end, has_data in segments(fd, length_bytes) if has_data]
    return FileExtents(length_bytes=length_bytes, data_bytes=sum(sizes), count=len(sizes))


def segments(fd: int, length_bytes: int) -> Iterator[tuple[int, int, bool]]:
    """Yields: (start, end, has data) for data and holes in turn. Without support for holes all is data."""
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
