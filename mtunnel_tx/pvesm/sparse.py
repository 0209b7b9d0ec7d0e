"""Copy bytes between a stream and a file quickly, and keep holes as holes."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.extents import EXTENT, segments
from mtunnel_tx.pvesm.signals import wait_for

CHUNK_BYTES = 2 << 20
_BLOCK_BYTES = 4096
_ZEROS = bytes(CHUNK_BYTES)
_ZERO_BLOCK = bytes(_BLOCK_BYTES)


def fill(fd: int, buffer: memoryview) -> int:
    """Read until the buffer is full or the stream has ended. Returns: bytes read."""
    filled = 0
    while filled < len(buffer):
        wait_for(fd, select.POLLIN)
        try:
            count = os.readv(fd, [buffer[filled:]])
        except BlockingIOError:
            continue
        if count == 0:
            break
        filled += count
    return filled


def store(fd: int, buffer: bytearray, count: int, offset: int) -> None:
    """Write the first `count` bytes at `offset`; blocks of zeros are left out and become holes."""
    with memoryview(buffer) as view:
        for start, end in data_runs(buffer, count):
            _write_at(fd, view[start:end], offset + start)


def data_runs(buffer: bytearray, count: int) -> Iterator[tuple[int, int]]:
    """The longest runs of blocks that hold anything but zeros: (start, end)."""
    start = -1
    for position in range(0, count, _BLOCK_BYTES):
        if _is_empty(buffer, position, count):
            if start >= 0:
                yield start, position
            start = -1
        elif start < 0:
            start = position
    if start >= 0:
        yield start, count


def _is_empty(buffer: bytearray, position: int, count: int) -> bool:
    """Whether a block is all zeros; compares in place and stops at the first difference."""
    if position + _BLOCK_BYTES <= count:
        return buffer.startswith(_ZERO_BLOCK, position)
    return buffer.startswith(bytes(count - position), position)


def _write_at(fd: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def send_file(source: int, length_bytes: int, target: int) -> None:
    """Write a file's first `length_bytes` to a stream; holes are not read.

    Raises: BackendFailed: the file became shorter meanwhile.
    """
    for start, end, has_data in segments(source, length_bytes):
        if has_data:
            _send_data(source, start, end, target)
        else:
            _send_zeros(end - start, target)


def send_extents(source: int, length_bytes: int, target: int) -> None:
    """Write a file's first `length_bytes` to a stream of the format of `mtunnel_tx.extents`, without the size in front.

    Raises: BackendFailed: the file became shorter meanwhile.
    """
    for start, end, has_data in segments(source, length_bytes):
        if has_data:
            send_all(memoryview(EXTENT.pack(start, end - start)), target)
            _send_data(source, start, end, target)
    send_all(memoryview(EXTENT.pack(length_bytes, 0)), target)


def _send_data(source: int, start: int, end: int, target: int) -> None:
    while start < end:
        try:
            sent = _send_some(source, start, min(end - start, CHUNK_BYTES), target)
        except BlockingIOError:
            wait_for(target, select.POLLOUT)
            continue
        if sent == 0:
            raise BackendFailed("volume became shorter while it was read")
        start += sent


def _send_some(source: int, start: int, count: int, target: int) -> int:
    """Use sendfile, which does not work with every kind of target; otherwise read and write."""
    try:
        return os.sendfile(target, source, start, count)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
    return os.write(target, os.pread(source, count, start))


def _send_zeros(count: int, target: int) -> None:
    while count:
        with memoryview(_ZEROS) as zeros:
            count -= send_some(zeros[: min(count, CHUNK_BYTES)], target)


def send_all(view: memoryview, target: int) -> None:
    """Write everything."""
    while view:
        view = view[send_some(view, target) :]


def send_some(view: memoryview, target: int) -> int:
    """Write what fits, waiting until something does. Returns: bytes written."""
    while True:
        try:
            return os.write(target, view)
        except BlockingIOError:
            wait_for(target, select.POLLOUT)
