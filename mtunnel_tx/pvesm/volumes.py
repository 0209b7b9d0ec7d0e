"""`free`, `path` and `list`."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mtunnel_tx.config import Settings
from mtunnel_tx.errors import BackendFailed, NotFound, TunnelError, WrongState
from mtunnel_tx.pve.imagefile import ImageFacts, ImageRefused, inspect_image
from mtunnel_tx.pve.volume import DirVolume, parse_dir_volume, parse_volume_id
from mtunnel_tx.pvesm.directory import DirectoryStorage, find_entry, open_storage
from mtunnel_tx.pvesm.output import warn
from mtunnel_tx.pvesm.reservation import sweep

CONTENTS = ("images", "rootdir", "iso", "vztmpl", "backup", "snippets", "import")
_VMID = re.compile(r"[1-9]\d{2,8}")
_ARCHIVE = re.compile(r"\.(tgz|(?:tar|vma)(?:\.[a-z0-9]+)?)\Z")
_CLONE_OF = re.compile(r"\.\./([1-9]\d{2,8})/(base-[^/]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One line of `list`."""

    volid: str
    format: str
    content: str
    size_bytes: int
    vmid: int | None


def volume_path(settings: Settings, volid: str) -> Path:
    """Where a volume is, or would be. Raises: TunnelError."""
    parsed = parse_volume_id(volid)
    entry = find_entry(settings, parsed.storage)
    return DirectoryStorage(entry, settings.lock_dir).file(parse_dir_volume(parsed.name))


def free_volume(settings: Settings, volid: str) -> None:
    """Remove a volume and, after its last image, the guest's folder; one that is not there is no error.

    Raises: WrongState: linked clones stand on it; TunnelError.
    """
    parsed = parse_volume_id(volid)
    storage = open_storage(settings, parsed.storage)
    volume = parse_dir_volume(parsed.name)
    if volume.content == "images" and volume.vmid is not None:
        _free_image(storage, volume, volume.vmid)
        with suppress(OSError, TunnelError):
            sweep(storage, volume.vmid)
    else:
        _remove(storage.file(volume), None)


def _free_image(storage: DirectoryStorage, volume: DirVolume, vmid: int) -> None:
    if volume.is_base and _has_clones(storage, vmid, volume.name):
        raise WrongState(f"base volume '{vmid}/{volume.name}' is still in use by linked clones")
    path = storage.file(volume)
    try:
        with storage.image_folder(vmid) as folder, storage.locked():
            _remove(path, folder)
            storage.drop_empty_folder(vmid)
    except NotFound:
        warn(f"disk image '{path}' does not exist")


def _remove(path: Path, folder: int | None) -> None:
    """Unlinks, which follows no symbolic link."""
    try:
        os.unlink(path if folder is None else path.name, dir_fd=folder)
    except FileNotFoundError:
        warn(f"disk image '{path}' does not exist")
    except OSError as error:
        raise BackendFailed(f"unable to remove '{path}': {error.strerror}") from error


def _has_clones(storage: DirectoryStorage, vmid: int, name: str) -> bool:
    """Whether any image of the storage has it as its backing file."""
    base = str(storage.folder("images") / str(vmid) / name)
    for path in storage.folder("images").glob("*/*"):
        facts = _read_facts(path, path.suffix[1:])
        if facts and facts.backing and os.path.normpath(path.parent / facts.backing) == base:
            return True
    return False


def list_volumes(settings: Settings, storage_id: str, vmid: int | None, content: str | None) -> list[Listed]:
    """The volumes of a storage, sorted, of one guest or one kind only if so wished.

    What killed imports of that guest left behind is removed on the way. Raises: TunnelError.
    """
    storage = open_storage(settings, storage_id)
    if vmid is not None:
        with suppress(OSError, TunnelError):
            sweep(storage, vmid)
    kinds = [kind for kind in CONTENTS if kind in storage.entry.content and content in (None, kind)]
    found = (listed for kind in kinds for listed in _list_kind(storage, kind, vmid))
    return sorted(found, key=lambda listed: listed.volid.lower())


def _list_kind(storage: DirectoryStorage, kind: str, vmid: int | None) -> Iterator[Listed]:
    if kind in ("images", "rootdir"):
        yield from _list_images(storage, kind, vmid)
        return
    for path in _entries(storage.folder(kind)):
        volume = _parse(f"{kind}/{path.name}")
        size_bytes = _file_size(path)
        if volume and size_bytes is not None and vmid in (None, volume.vmid):
            yield _listed(storage, f"{kind}/{path.name}", volume, size_bytes)


def _list_images(storage: DirectoryStorage, kind: str, vmid: int | None) -> Iterator[Listed]:
    """Containers' images are directories among the others."""
    root = storage.folder("images")
    folders = (
        [root / str(vmid)] if vmid is not None else [path for path in _entries(root) if _VMID.fullmatch(path.name)]
    )
    for path in (path for folder in folders if not folder.is_symlink() for path in _entries(folder)):
        name = f"{path.parent.name}/{path.name}"
        volume = _parse(name)
        if volume is None or (volume.format == "subvol") != (kind == "rootdir"):
            continue
        if volume.format == "subvol":
            if not path.is_symlink():
                yield _listed(storage, name, volume, 0, kind)
        elif (facts := _read_facts(path, volume.format)) is not None:
            yield _listed(storage, _with_base(name, facts), volume, facts.size_bytes)


def _listed(
    storage: DirectoryStorage, name: str, volume: DirVolume, size_bytes: int, content: str | None = None
) -> Listed:
    return Listed(
        volid=f"{storage.id}:{name}",
        format=_shown_format(volume),
        content=content or volume.content,
        size_bytes=size_bytes,
        vmid=volume.vmid,
    )


def _shown_format(volume: DirVolume) -> str:
    """What is no disk goes by its kind, or by its ending: `tgz` of a `.tar.gz`, `vma.zst` of a `.vma.zst`."""
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
    """A linked clone's name begins with that of its base."""
    match = _CLONE_OF.fullmatch(facts.backing or "")
    return f"{match[1]}/{match[2]}/{name}" if match else name


def _entries(folder: Path) -> Sequence[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _file_size(path: Path) -> int | None:
    """None: it is no file. A symbolic link is none: what it leads to is no volume of this storage."""
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


def _read_facts(path: Path, format: str) -> ImageFacts | None:
    """An unreadable image has the size of its file; None: there is no such file."""
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


def format_list(volumes: Sequence[Listed]) -> str:
    """The table of `list`, without a final line feed: guests' volumes first, then the others by their format."""
    width = max((len(listed.volid) for listed in volumes), default=0)
    digits = max((len(str(listed.size_bytes)) for listed in volumes), default=1)
    others = sorted((listed for listed in volumes if listed.vmid is None), key=lambda listed: listed.format)
    rows = [
        (listed.volid, listed.format, listed.content, listed.size_bytes, listed.vmid)
        for listed in [*(listed for listed in volumes if listed.vmid is not None), *others]
    ]
    return "\n".join(
        f"{volid:<{width}} {format:<7} {content:<9} {size:>{digits}}" + (f" {vmid}" if vmid is not None else "")
        for volid, format, content, size, vmid in [("Volid", "Format", "Type", "Size", "VMID"), *rows]
    )
