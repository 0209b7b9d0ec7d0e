"""`alloc`: make an empty image with qemu-img and print what it says.

With `preallocation` `off` or `metadata` images are thin and may be larger than the free space. With `falloc` or `full`
there must be space for all of the image.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtunnel_tx.errors import BackendFailed, InvalidParameters, TunnelError
from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.pve.storagetypes import IMAGES
from mtunnel_tx.pve.volume import next_disk_name, parse_dir_volume
from mtunnel_tx.pvesm.driver import Announce, NewImage
from mtunnel_tx.pvesm.header import check_size
from mtunnel_tx.pvesm.images.folders import ImageFolders
from mtunnel_tx.pvesm.images.qemuimg import create_image
from mtunnel_tx.pvesm.images.reservation import Choose, Reservation, reserve
from mtunnel_tx.pvesm.output import say

_PREALLOCATIONS = ("off", "metadata", "falloc", "full")


def allocate_image(folders: ImageFolders, wanted: NewImage, announce: Announce) -> None:
    """Make an image and announce it. Raises: TunnelError."""
    format = _choose_format(folders.entry, wanted.name, wanted.format)
    if format not in IMAGES:
        raise TunnelError(f"unsupported format '{format}' for storage type {folders.entry.type}")
    with reserve(folders, wanted.vmid, _namer(folders, wanted.vmid, wanted.name, format)) as reservation:
        create(reservation, folders, format, wanted.size_bytes)
        reservation.publish(lambda: announce(reservation.volid))


def _choose_format(entry: StorageEntry, name: str, format: str | None) -> str:
    """Choose the format: as asked for, else as the name says, else the default. Asked for and name must agree."""
    ending = name.rpartition(".")[2]
    if ending not in IMAGES:
        return format or entry.default_format
    if format not in (None, ending):
        raise InvalidParameters({"format": f"different storage formats ({format} != {ending})"})
    return ending


def _namer(folders: ImageFolders, vmid: int, name: str, format: str) -> Choose:
    found = parse_dir_volume(f"{vmid}/{name}").format if name else format
    if found != format:
        raise TunnelError(f"illegal name '{name}' - wrong extension for format ('{found} != '{format}')")

    def choose(taken: frozenset[str]) -> str:
        if name in taken:
            raise BackendFailed(f"disk image '{folders.folder('images') / str(vmid) / name}' already exists")
        return name or next_disk_name(vmid, taken, format)

    return choose


def create(reservation: Reservation, folders: ImageFolders, format: str, size_bytes: int) -> None:
    """Let qemu-img make the image under its temporary name. Raises: TunnelError."""
    check_size(size_bytes)
    chosen = preallocation(folders.entry, format)
    if chosen in ("falloc", "full"):
        _check_space(folders, size_bytes)
    with _named(reservation, format) as path:
        try:
            words = create_image(path, format, size_bytes, chosen)
        except BackendFailed as error:
            raise BackendFailed(error.text.replace(str(path), str(reservation.path))) from error
    say(f"Formatting '{reservation.path}', {words}")


@contextmanager
def _named(reservation: Reservation, format: str) -> Iterator[Path]:
    """Give qemu-img a path with the final name, because a vmdk stores the name under which it was made."""
    if format != "vmdk":
        yield reservation.part
        return
    with tempfile.TemporaryDirectory(prefix="mtunnel-alloc-") as folder:
        path = Path(folder) / reservation.name
        path.symlink_to(reservation.part)
        yield path


def preallocation(entry: StorageEntry, format: str) -> str | None:
    """The storage's `preallocation`, as far as the format supports it; raw has no metadata."""
    chosen = entry.options.get("preallocation", "metadata")
    if format == "vmdk" or chosen not in _PREALLOCATIONS:
        return None
    return "off" if (format, chosen) == ("raw", "metadata") else chosen


def _check_space(folders: ImageFolders, size_bytes: int) -> None:
    free_bytes = shutil.disk_usage(Path(folders.entry.path or "/")).free
    if size_bytes > free_bytes:
        raise BackendFailed(f"no space left on storage '{folders.id}': {size_bytes} bytes wanted, {free_bytes} free")
