"""`list`: find the volumes in the folders of a storage."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.imagefile import ImageFacts, ImageRefused, inspect_image
from mtunnel_tx.pve.volume import DirVolume, parse_dir_volume
from mtunnel_tx.pvesm.driver import ListedVolume
from mtunnel_tx.pvesm.images.folders import ImageFolders

_VMID = re.compile(r"[1-9]\d{2,8}")
_ARCHIVE = re.compile(r"\.(tgz|(?:tar|vma)(?:\.[a-z0-9]+)?)\Z")
_CLONE_OF = re.compile(r"\.\./([1-9]\d{2,8})/(base-[^/]+)")


def list_volumes(folders: ImageFolders, kinds: Collection[str], vmid: int | None) -> Iterator[ListedVolume]:
    """Yields: the volumes of these kinds, of one guest or (None) of all."""
    for kind in kinds:
        yield from _list_kind(folders, kind, vmid)


def _list_kind(folders: ImageFolders, kind: str, vmid: int | None) -> Iterator[ListedVolume]:
    if kind in ("images", "rootdir"):
        yield from _list_images(folders, kind, vmid)
        return
    for path in _entries(folders.folder(kind)):
        volume = _parse(f"{kind}/{path.name}")
        size_bytes = _file_size(path)
        if volume and size_bytes is not None and vmid in (None, volume.vmid):
            yield _listed(folders, f"{kind}/{path.name}", volume, size_bytes)


def _list_images(folders: ImageFolders, kind: str, vmid: int | None) -> Iterator[ListedVolume]:
    """Images of VMs are files; images of containers are directories beside them."""
    root = folders.folder("images")
    guests = [root / str(vmid)] if vmid is not None else [path for path in _entries(root) if _VMID.fullmatch(path.name)]
    for path in (path for folder in guests if not folder.is_symlink() for path in _entries(folder)):
        name = f"{path.parent.name}/{path.name}"
        volume = _parse(name)
        if volume is None or (volume.format == "subvol") != (kind == "rootdir"):
            continue
        if volume.format == "subvol":
            if not path.is_symlink():
                yield _listed(folders, name, volume, 0, kind)
        elif (facts := read_facts(path, volume.format)) is not None:
            yield _listed(folders, _with_base(name, facts), volume, facts.size_bytes)


def _listed(
    folders: ImageFolders, name: str, volume: DirVolume, size_bytes: int, content: str | None = None
) -> ListedVolume:
    return ListedVolume(
        volid=f"{folders.id}:{name}",
        format=_shown_format(volume),
        content=content or volume.content,
        size_bytes=size_bytes,
        vmid=volume.vmid,
    )


def _shown_format(volume: DirVolume) -> str:
    """The format column: for files that are no disks, their kind or ending (`.tar.gz`: `tgz`)."""
    match volume.content:
        case "iso":
            return "iso"
        case "snippets":
            return "snippet"
        case "vztmpl":
            return "t" + volume.name.rpartition(".")[2]
        case "backup":
            found = _ARCHIVE.search(volume.name)
            return found[1] if found else volume.format
    return volume.format


def _with_base(name: str, facts: ImageFacts) -> str:
    """Put the base in front of a linked clone's name."""
    match = _CLONE_OF.fullmatch(facts.backing or "")
    return f"{match[1]}/{match[2]}/{name}" if match else name


def _entries(folder: Path) -> Sequence[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _file_size(path: Path) -> int | None:
    """The size of a regular file, else None. Symbolic links do not count: they lead out of the storage."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _parse(name: str) -> DirVolume | None:
    try:
        return parse_dir_volume(name)
    except TunnelError:
        return None


def read_facts(path: Path, format: str) -> ImageFacts | None:
    """Read an image's header; one that cannot be read has the size of its file. None: there is no such file."""
    if _file_size(path) is None:
        return None
    try:
        with path.open("rb") as file:
            return _inspect(file.fileno(), format)
    except OSError:
        return None


def _inspect(fd: int, format: str) -> ImageFacts:
    length = os.fstat(fd).st_size
    try:
        return inspect_image(format, lambda offset, count: os.pread(fd, count, offset), length)
    except ImageRefused:
        return ImageFacts(format=format, size_bytes=length)
