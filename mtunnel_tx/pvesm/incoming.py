"""`import`: a stream becomes a volume, or nothing.

The stream: eight bytes, little endian, the virtual size; then the image as it is, to the end. It is written under a
temporary name, checked, made safe on disk, and only then gets its own.

Thin storages (see `allocation`) take images larger than the free space; where it runs out midway, the import fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from mtunnel_tx.config import Settings
from mtunnel_tx.errors import BackendFailed, BadRequest, TunnelError
from mtunnel_tx.pve.imagefile import ImageFacts, ImageRefused, inspect_image
from mtunnel_tx.pve.volume import DirVolume, next_disk_name, parse_dir_volume
from mtunnel_tx.pvesm.allocation import check_size, create, preallocation
from mtunnel_tx.pvesm.directory import DirectoryStorage, named_volume, open_storage
from mtunnel_tx.pvesm.output import say, warn
from mtunnel_tx.pvesm.qcow2tables import refuse_missing_clusters
from mtunnel_tx.pvesm.qemuimg import delete_snapshot, verify_image
from mtunnel_tx.pvesm.reservation import Choose, Reservation, reserve
from mtunnel_tx.pvesm.sparse import CHUNK_BYTES, fill, store

STREAM_FORMATS = ("raw+size", "tar+size", "qcow2+size", "vmdk+size", "zfs", "btrfs")
HEADER_BYTES = 8
_GRANULARITY_BYTES = 1024
_FILE_STREAMS = ("raw+size", "tar+size", "qcow2+size", "vmdk+size")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOrder:
    """What to import; `delete_snapshot` is removed from the image once it is here.

    `requester`: the process that must still be our parent at the end; None: no matter who.
    """

    volid: str
    stream_format: str
    with_snapshots: bool
    allow_rename: bool
    delete_snapshot: str | None = None
    requester: int | None = None


def import_volume(settings: Settings, order: ImportOrder, stream: int) -> None:
    """Read the stream to its end, and say how the volume is called. Raises: TunnelError."""
    storage, volume = _find_target(settings, order)
    assert volume.vmid is not None
    with reserve(storage, volume.vmid, _namer(storage, volume, allow_rename=order.allow_rename)) as reservation:
        size_bytes = _read_size(stream)
        if volume.format == "raw":
            _receive_raw(stream, size_bytes, reservation, storage)
        else:
            _receive_image(stream, size_bytes, reservation, storage, volume.format)
        if order.delete_snapshot:
            delete_snapshot(reservation.part, order.delete_snapshot)
        _refuse_orphan(order.requester)
        reservation.publish(lambda: say(f"successfully imported '{reservation.volid}'"))


def _find_target(settings: Settings, order: ImportOrder) -> tuple[DirectoryStorage, DirVolume]:
    """The checks, in Proxmox's order."""
    parsed = named_volume(order.volid, "import into")
    storage = open_storage(settings, parsed.storage, "images")
    image_format = _image_format(order)
    volume = parse_dir_volume(parsed.name)
    if volume.content != "images":
        raise TunnelError(f"unable to parse directory volume name '{parsed.name}'")
    if volume.format != image_format:
        raise TunnelError(f"cannot import format {order.stream_format} into a file of format {volume.format}")
    return storage, volume


def _image_format(order: ImportOrder) -> str:
    stream_format = order.stream_format
    if stream_format not in _FILE_STREAMS:
        raise TunnelError(f"volume import format '{stream_format}' not available for PVE::Storage::DirPlugin")
    image_format = stream_format.removesuffix("+size")
    if order.with_snapshots and image_format in ("raw", "tar"):
        raise TunnelError(f"format {stream_format} cannot be imported with snapshots")
    if not order.with_snapshots and image_format in ("qcow2", "vmdk"):
        raise TunnelError(f"format {stream_format} cannot be imported without snapshots")
    return image_format


def _namer(storage: DirectoryStorage, volume: DirVolume, *, allow_rename: bool) -> Choose:
    def choose(taken: frozenset[str]) -> str:
        if volume.name not in taken:
            return volume.name
        known = f"file '{storage.file(volume)}' already exists"
        if not allow_rename:
            raise BackendFailed(known)
        warn(f"{known} - importing with a different name")
        assert volume.vmid is not None
        return next_disk_name(volume.vmid, taken, volume.format)

    return choose


def _read_size(stream: int) -> int:
    """Raises: BadRequest: there is none, or no disk has it."""
    header = bytearray(HEADER_BYTES)
    if _fill(stream, memoryview(header)) < HEADER_BYTES:
        raise BadRequest("import: no size found in export header, aborting.")
    size_bytes = int.from_bytes(header, "little")
    check_size(size_bytes)
    return size_bytes


def _round_up(size_bytes: int) -> int:
    rounded = -(-size_bytes // _GRANULARITY_BYTES) * _GRANULARITY_BYTES
    if rounded != size_bytes:
        say(f"size {size_bytes} is not aligned to granularity {_GRANULARITY_BYTES}, rounding up to {rounded}")
    return rounded


def _receive_raw(stream: int, size_bytes: int, reservation: Reservation, storage: DirectoryStorage) -> None:
    """Exactly as many bytes as the header says."""
    create(reservation, storage, "raw", _round_up(size_bytes))
    received = _receive(stream, reservation, most_bytes=size_bytes)
    if received != size_bytes:
        raise BadRequest(f"import: stream ended after {received} of {size_bytes} bytes")


def _receive_image(
    stream: int, size_bytes: int, reservation: Reservation, storage: DirectoryStorage, format: str
) -> None:
    """Byte for byte, snapshots and all; then everything about it must be right."""
    rounded = _round_up(size_bytes)
    chosen = preallocation(storage.entry, format)

    def begin(first: memoryview) -> None:
        """The first bytes tell most of it already: better now than after hours."""
        if format == "qcow2":
            facts = inspect_image(format, lambda offset, count: bytes(first[offset : offset + count]), len(first))
            _check_facts(facts, size_bytes)
        say(_formatting(reservation, format, rounded, chosen or "off"))

    received = _receive(stream, reservation, begin=begin)
    os.ftruncate(reservation.fd, received)

    def read(offset: int, count: int) -> bytes:
        return os.pread(reservation.fd, count, offset)

    facts = inspect_image(format, read, received)
    _check_facts(facts, size_bytes)
    verify_image(reservation.part, facts)
    if format == "qcow2":
        refuse_missing_clusters(read, received)


def _formatting(reservation: Reservation, format: str, size_bytes: int, preallocated: str) -> str:
    """What `qemu-img create` says of the empty image that Proxmox's pvesm makes first, whatever the stream brings."""
    options = f"size={size_bytes} compat6=off hwversion=undefined"
    if format == "qcow2":
        kind = f"cluster_size=65536 extended_l2=off preallocation={preallocated} compression_type=zlib"
        options = f"{kind} size={size_bytes} lazy_refcounts=off refcount_bits=16"
    return f"Formatting '{reservation.path}', fmt={format} {options}"


def _check_facts(facts: ImageFacts, size_bytes: int) -> None:
    if facts.elsewhere:
        raise ImageRefused(f"refusing to import: {facts.elsewhere}")
    if facts.encrypted:
        raise ImageRefused("refusing to import: image is encrypted")
    if facts.size_bytes != size_bytes:
        raise ImageRefused(
            f"refusing to import: image has {facts.size_bytes} bytes, the export header says {size_bytes}"
        )


def _receive(
    stream: int,
    reservation: Reservation,
    *,
    most_bytes: int | None = None,
    begin: Callable[[memoryview], None] = lambda _: None,
) -> int:
    """Write the stream into the file, holes left out.

    Args: begin: is given the first bytes before any is written. Returns: how many came.
    """
    buffer = bytearray(CHUNK_BYTES)
    received = 0
    while True:
        wanted = CHUNK_BYTES if most_bytes is None else min(CHUNK_BYTES, most_bytes + 1 - received)
        count = _fill(stream, memoryview(buffer)[:wanted])
        if received == 0:
            begin(memoryview(buffer)[:count])
        if most_bytes is not None and received + count > most_bytes:
            raise BadRequest(f"import: stream is longer than {most_bytes} bytes")
        _store(reservation, buffer, count, received)
        received += count
        if count < wanted:
            return received


def _fill(stream: int, buffer: memoryview) -> int:
    try:
        return fill(stream, buffer)
    except OSError as error:
        raise BackendFailed(f"import: stream broke off: {error.strerror}") from error


def _store(reservation: Reservation, buffer: bytearray, count: int, offset: int) -> None:
    try:
        store(reservation.fd, buffer, count, offset)
    except OSError as error:
        raise BackendFailed(f"unable to write '{reservation.path}': {error.strerror}") from error


def _refuse_orphan(requester: int | None) -> None:
    """A daemon that dies closes its end of the stream, which looks like a regular end of it."""
    if requester not in (None, os.getppid()):
        raise BackendFailed("import: whoever asked for it is gone")
