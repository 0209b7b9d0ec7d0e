"""`import`: make a volume from a stream, or leave nothing.

The image is written under a temporary name, checked, and fsynced; only then it gets its name. A raw disk can become an
image of another format (`convert`): it is written through qemu-nbd as it comes. A thin storage (see `allocation`) may
run out of space while it is written; then the import fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import chain

from mtunnel_tx.errors import BackendFailed, BadRequest, TunnelError
from mtunnel_tx.pve.imagefile import SECTOR_BYTES, ImageFacts, ImageRefused, inspect_image
from mtunnel_tx.pve.storagetypes import IMAGES, STREAM_FORMATS
from mtunnel_tx.pve.volume import DirVolume, next_disk_name, parse_dir_volume
from mtunnel_tx.pvesm.driver import Announce, ImportOrder
from mtunnel_tx.pvesm.header import read_size
from mtunnel_tx.pvesm.images.allocation import create, preallocation
from mtunnel_tx.pvesm.images.folders import ImageFolders
from mtunnel_tx.pvesm.images.nbd import opened_image, write_disk
from mtunnel_tx.pvesm.images.qemuimg import delete_snapshot, verify_image
from mtunnel_tx.pvesm.images.reservation import Choose, Reservation, reserve
from mtunnel_tx.pvesm.output import say, warn
from mtunnel_tx.pvesm.pieces import Piece, dense_pieces, sparse_pieces
from mtunnel_tx.pvesm.sparse import store

_GRANULARITY_BYTES = 1024
"""Proxmox's pvesm makes no image of another size."""


def receive_image(folders: ImageFolders, name: str, order: ImportOrder, stream: int, announce: Announce) -> None:
    """Read the stream to its end, then announce the volume. Raises: TunnelError."""
    volume = _check_name(name, order)
    assert volume.vmid is not None
    with reserve(folders, volume.vmid, _namer(folders, volume, allow_rename=order.allow_rename)) as reservation:
        size_bytes = read_size(stream)
        read_pieces = sparse_pieces if STREAM_FORMATS[order.stream_format].dense else dense_pieces
        if volume.format not in STREAM_FORMATS[order.stream_format].images:
            _receive_converted(read_pieces(stream, size_bytes), size_bytes, reservation, folders, volume.format)
        elif volume.format == "raw":
            _receive_raw(read_pieces(stream, size_bytes), size_bytes, reservation, folders)
        else:
            _receive_image(read_pieces(stream), size_bytes, reservation, folders, volume.format)
        if order.delete_snapshot:
            delete_snapshot(reservation.part, order.delete_snapshot)
        _refuse_orphan(order.requester)
        reservation.publish(lambda: announce(reservation.volid))


def _check_name(name: str, order: ImportOrder) -> DirVolume:
    volume = parse_dir_volume(name)
    if volume.content != "images":
        raise TunnelError(f"unable to parse directory volume name '{name}'")
    stream = STREAM_FORMATS[order.stream_format]
    possible = {*stream.images, *(stream.converted if order.convert else ())}
    if volume.format not in possible.intersection(IMAGES):
        raise TunnelError(f"cannot import format {order.stream_format} into a file of format {volume.format}")
    return volume


def _namer(folders: ImageFolders, volume: DirVolume, *, allow_rename: bool) -> Choose:
    def choose(taken: frozenset[str]) -> str:
        if volume.name not in taken:
            return volume.name
        known = f"file '{folders.file(volume)}' already exists"
        if not allow_rename:
            raise BackendFailed(known)
        warn(f"{known} - importing with a different name")
        assert volume.vmid is not None
        return next_disk_name(volume.vmid, taken, volume.format)

    return choose


def _round_up(size_bytes: int) -> int:
    """Keep a size of whole sectors, which QEMU can use exactly; round another one up to 1 KiB, as Proxmox does."""
    if size_bytes % SECTOR_BYTES == 0:
        return size_bytes
    rounded = -(-size_bytes // _GRANULARITY_BYTES) * _GRANULARITY_BYTES
    if rounded != size_bytes:
        say(f"size {size_bytes} is not aligned to granularity {_GRANULARITY_BYTES}, rounding up to {rounded}")
    return rounded


def _receive_raw(pieces: Iterator[Piece], size_bytes: int, reservation: Reservation, folders: ImageFolders) -> None:
    """Receive a raw disk, which must have exactly as many bytes as the header says."""
    create(reservation, folders, "raw", _round_up(size_bytes))
    _check_end(_receive(pieces, reservation), size_bytes)


def _receive_converted(
    pieces: Iterator[Piece], size_bytes: int, reservation: Reservation, folders: ImageFolders, format: str
) -> None:
    """Receive a raw disk as `_receive_raw` does, into an image of another format."""
    rounded = _round_up(size_bytes)
    create(reservation, folders, format, rounded)
    with opened_image(reservation.part, format, writable=True) as connection:
        _check_end(write_disk(connection, rounded, pieces), size_bytes)


def _check_end(received: int, size_bytes: int) -> None:
    if received != size_bytes:
        raise BadRequest(f"import: stream ended after {received} of {size_bytes} bytes")


def _receive_image(
    pieces: Iterator[Piece], size_bytes: int, reservation: Reservation, folders: ImageFolders, format: str
) -> None:
    """Receive an image file byte for byte, internal snapshots included, then verify it."""
    rounded = _round_up(size_bytes)
    chosen = preallocation(folders.entry, format)

    def begin(first: memoryview) -> None:
        """Check the header with the first bytes, so that a bad image is refused at once and not after hours."""
        if format == "qcow2":
            facts = inspect_image(format, lambda offset, count: bytes(first[offset : offset + count]), len(first))
            _check_facts(facts, size_bytes)
        say(_formatting(reservation, format, rounded, chosen or "off"))

    received = _receive(pieces, reservation, begin)
    os.ftruncate(reservation.fd, received)

    def read(offset: int, count: int) -> bytes:
        return os.pread(reservation.fd, count, offset)

    facts = inspect_image(format, read, received)
    _check_facts(facts, size_bytes)
    verify_image(reservation.part, facts, read)


def _formatting(reservation: Reservation, format: str, size_bytes: int, preallocated: str) -> str:
    """What `qemu-img create` says of the empty image that Proxmox's pvesm makes first, whatever the stream brings."""
    options = f"size={size_bytes} compat6=off hwversion=undefined"
    if format == "qcow2":
        kind = f"cluster_size=65536 extended_l2=off preallocation={preallocated} compression_type=zlib"
        options = f"{kind} size={size_bytes} lazy_refcounts=off refcount_bits=16"
    return f"Formatting '{reservation.path}', fmt={format} {options}"


def _check_facts(facts: ImageFacts, size_bytes: int) -> None:
    if facts.why_not_alone:
        raise ImageRefused(f"refusing to import: {facts.why_not_alone}")
    if facts.size_bytes != size_bytes:
        raise ImageRefused(
            f"refusing to import: image has {facts.size_bytes} bytes, the export header says {size_bytes}"
        )


def _receive(
    pieces: Iterator[Piece], reservation: Reservation, begin: Callable[[memoryview], None] = lambda _: None
) -> int:
    """Write the stream into the file; blocks of zeros become holes.

    Args: begin: is given the first bytes of the file before any is written. Returns: the length of the file.
    """
    first = next(pieces)
    begin(first.view if first.offset == 0 else memoryview(b""))
    length = first.offset
    for piece in chain((first,), pieces):
        _store(reservation, piece)
        length = piece.offset + piece.count
    return length


def _store(reservation: Reservation, piece: Piece) -> None:
    try:
        store(reservation.fd, piece.buffer, piece.count, piece.offset)
    except OSError as error:
        raise BackendFailed(f"unable to write '{reservation.path}': {error.strerror}") from error


def _refuse_orphan(requester: int | None) -> None:
    """Fail if our parent has changed: a daemon that dies closes the stream, which looks like its regular end."""
    if requester not in (None, os.getppid()):
        raise BackendFailed("import: whoever asked for it is gone")
