"""`alloc`: an empty image, in the words and with the options of qemu-img.

Space: `preallocation` `off` and `metadata` provision thinly, an image may be larger than what is free. With `falloc`
and `full` there must be room for all of it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtunnel_tx.config import Settings
from mtunnel_tx.errors import BackendFailed, BadRequest, InvalidParameters, TunnelError
from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.pve.volume import next_disk_name, parse_dir_volume
from mtunnel_tx.pvesm.directory import DirectoryStorage, open_storage
from mtunnel_tx.pvesm.output import say
from mtunnel_tx.pvesm.qemuimg import create_image
from mtunnel_tx.pvesm.reservation import Choose, Reservation, reserve

LARGEST_BYTES = 1 << 50
_PREALLOCATIONS = ("off", "metadata", "falloc", "full")
IMAGE_FORMATS = ("raw", "qcow2", "vmdk")


def allocate(settings: Settings, storage: str, vmid: int, name: str, size_bytes: int, format: str | None) -> None:
    """Make an image, and say how it is called; an empty name means the next free one. Raises: TunnelError."""
    place = open_storage(settings, storage, "images")
    format = _choose_format(place.entry, name, format)
    if format not in IMAGE_FORMATS:
        raise TunnelError(f"unsupported format '{format}' for storage type {place.entry.type}")
    with reserve(place, vmid, _namer(place, vmid, name, format)) as reservation:
        create(reservation, place, format, size_bytes)
        reservation.publish(lambda: say(f"successfully created '{reservation.volid}'"))


def _choose_format(entry: StorageEntry, name: str, format: str | None) -> str:
    """The format that was asked for, that of the name, the storage's own; the first two may not differ."""
    ending = name.rpartition(".")[2]
    if ending not in IMAGE_FORMATS:
        return format or entry.default_format
    if format not in (None, ending):
        raise InvalidParameters({"format": f"different storage formats ({format} != {ending})"})
    return ending


def _namer(place: DirectoryStorage, vmid: int, name: str, format: str) -> Choose:
    found = parse_dir_volume(f"{vmid}/{name}").format if name else format
    if found != format:
        raise TunnelError(f"illegal name '{name}' - wrong extension for format ('{found} != '{format}')")

    def choose(taken: frozenset[str]) -> str:
        if name in taken:
            raise BackendFailed(f"disk image '{place.folder('images') / str(vmid) / name}' already exists")
        return name or next_disk_name(vmid, taken, format)

    return choose


def create(reservation: Reservation, place: DirectoryStorage, format: str, size_bytes: int) -> None:
    """Let qemu-img make the image under its temporary name. Raises: TunnelError."""
    check_size(size_bytes)
    chosen = preallocation(place.entry, format)
    if chosen in ("falloc", "full"):
        _check_space(place, size_bytes)
    with _named(reservation, format) as path:
        try:
            words = create_image(path, format, size_bytes, chosen)
        except BackendFailed as error:
            raise BackendFailed(error.text.replace(str(path), str(reservation.path))) from error
    say(f"Formatting '{reservation.path}', {words}")


@contextmanager
def _named(reservation: Reservation, format: str) -> Iterator[Path]:
    """A vmdk image bears the name under which it was made: show qemu-img the final one."""
    if format != "vmdk":
        yield reservation.part
        return
    with tempfile.TemporaryDirectory(prefix="mtunnel-alloc-") as folder:
        path = Path(folder) / reservation.name
        path.symlink_to(reservation.part)
        yield path


def preallocation(entry: StorageEntry, format: str) -> str | None:
    """What the storage is set to, as far as the format can have it; raw has no metadata."""
    chosen = entry.options.get("preallocation", "metadata")
    if format == "vmdk" or chosen not in _PREALLOCATIONS:
        return None
    return "off" if (format, chosen) == ("raw", "metadata") else chosen


def check_size(size_bytes: int) -> None:
    """Raises: BadRequest: no disk has this size."""
    if not 0 < size_bytes <= LARGEST_BYTES:
        raise BadRequest(f"refusing an image of {size_bytes} bytes, at most {LARGEST_BYTES} are possible")


def _check_space(place: DirectoryStorage, size_bytes: int) -> None:
    free_bytes = shutil.disk_usage(Path(place.entry.path or "/")).free
    if size_bytes > free_bytes:
        raise BackendFailed(f"no space left on storage '{place.id}': {size_bytes} bytes wanted, {free_bytes} free")
