"""`export`: write a volume as a stream.

With snapshots, the file of a qcow2 or vmdk is sent as it is. Without, every format is sent as a raw disk in its current
state; qcow2 and vmdk are read through qemu-nbd, and what is known to be zeros is left out of a sparse stream. A linked
clone is refused in both cases, because the target would not have its base. Nothing is written before the image is known
to be readable.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path

from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.extents import EXTENT
from mtunnel_tx.pve.imagefile import ImageFacts, inspect_image
from mtunnel_tx.pve.storagetypes import IMAGES, STREAM_FORMATS
from mtunnel_tx.pve.volume import DirVolume, parse_dir_volume
from mtunnel_tx.pvesm.driver import ExportOrder
from mtunnel_tx.pvesm.failure import ExitError
from mtunnel_tx.pvesm.header import send_size
from mtunnel_tx.pvesm.images.folders import ImageFolders
from mtunnel_tx.pvesm.images.imagemap import data_ranges
from mtunnel_tx.pvesm.images.nbd import opened_image, read_disk
from mtunnel_tx.pvesm.images.qemuimg import verify_image
from mtunnel_tx.pvesm.sparse import send_all, send_extents, send_file

_MISSING = 1


def send_image(folders: ImageFolders, plugin: str, name: str, order: ExportOrder, target: int) -> None:
    """Write the stream. Raises: TunnelError: before the first byte if possible; OSError: the target failed."""
    volume = parse_dir_volume(name)
    if order.partial or order.stream_format not in _stream_formats(folders, volume, order):
        raise TunnelError(f"volume export format {order.stream_format} not available for {plugin}")
    path = folders.file(volume)
    with _opened(str(path)) as source:
        length = os.fstat(source).st_size
        facts = _inspect(order.volid, volume.format, source)
        if order.stream_format == f"{volume.format}+size":
            send_size(facts.size_bytes, target)
            send_file(source, length, target)
        elif order.stream_format == f"{volume.format}+sparse":
            send_size(facts.size_bytes, target)
            send_extents(source, length, target)
        else:
            with opened_image(path, volume.format) as connection:
                send = _send_disk if STREAM_FORMATS[order.stream_format].dense is None else _send_used
                send(connection, path, facts, target)


def verify_source(folders: ImageFolders, name: str, volid: str) -> None:
    """Raises: TunnelError: an import would refuse the image's file once all of it was sent."""
    volume = parse_dir_volume(name)
    path = folders.file(volume)
    with _opened(str(path)) as source:
        facts = _inspect(volid, volume.format, source)
        if facts.format != "raw":
            verify_image(path, facts, partial(_read, source))


def _inspect(volid: str, format: str, source: int) -> ImageFacts:
    facts = inspect_image(format, partial(_read, source), os.fstat(source).st_size)
    if facts.why_not_alone:
        raise BackendFailed(f"cannot export '{volid}': {facts.why_not_alone}")
    return facts


def _read(source: int, offset: int, count: int) -> bytes:
    return os.pread(source, count, offset)


def _stream_formats(folders: ImageFolders, volume: DirVolume, order: ExportOrder) -> list[str]:
    if volume.content != "images" or volume.format not in IMAGES:
        return []
    formats = folders.entry.kind.exports[volume.format]
    return [name for name in formats if STREAM_FORMATS[name].fits(with_snapshots=order.with_snapshots)]


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise ExitError(f"failed to stat '{path}'", _MISSING) from error
    except OSError as error:
        raise BackendFailed(f"unable to open '{path}': {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _send_disk(connection: socket.socket, _path: Path, facts: ImageFacts, target: int) -> None:
    pieces = read_disk(connection, facts.size_bytes, [(0, facts.size_bytes)])
    for _, piece in _behind_size(pieces, facts.size_bytes, target):
        send_all(piece, target)


def _send_used(connection: socket.socket, path: Path, facts: ImageFacts, target: int) -> None:
    with contextlib.closing(data_ranges(path, facts.format)) as ranges:
        pieces = read_disk(connection, facts.size_bytes, ranges)
        for offset, piece in _behind_size(pieces, facts.size_bytes, target):
            send_all(memoryview(EXTENT.pack(offset, len(piece))), target)
            send_all(piece, target)
    send_all(memoryview(EXTENT.pack(facts.size_bytes, 0)), target)


def _behind_size(
    pieces: Iterator[tuple[int, memoryview]], size_bytes: int, target: int
) -> Iterator[tuple[int, memoryview]]:
    """Read the first piece before the header is written, so that an unreadable disk sends nothing."""
    first = list(islice(pieces, 1))
    send_size(size_bytes, target)
    yield from chain(first, pieces)
