"""CD images: found on a storage, or copied to one, so that the config names a volume that every node can have."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mtunnel_tx.errors import BadRequest, NotFound, TunnelError
from mtunnel_tx.guests.changing import Work
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.guests.volumes import choose_storage
from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.pve.volume import parse_dir_volume, parse_volume_id

_VOLUME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*:iso/[^/]+")


async def place_iso(work: Work, text: str, preferred: StorageEntry) -> str:
    """The volume of a CD image.

    Args: text: a volume id, or a file, which is copied to a storage unless it is on one. preferred: the storage of the
        VM's disks, taken where it can hold CD images.
    Raises: NotFound: no such volume or file; BadRequest: another file has that name.
    """
    host = work.host
    if _VOLUME.fullmatch(text):
        if await host.storage.size_bytes(text) is None:
            raise NotFound(f"there is no volume '{text}'")
        return text
    file = _regular_file(text)
    if (there := _volume_of(host, file)) is not None:
        return there
    entry = preferred if "iso" in preferred.content else choose_storage(host, None, "iso")
    return await _copy(work, file, entry)


def _regular_file(text: str) -> Path:
    path = Path(text).absolute()
    if not path.is_file():
        raise NotFound(f"{path}: there is no such file")
    return path.resolve()


def _volume_of(host: PlainHost, file: Path) -> str | None:
    """The volume that a file is, where it lies in a storage's folder."""
    for entry in host.storage.config().values():
        folder = entry.folder("iso")
        if "iso" in entry.content and folder is not None and Path(folder).resolve() == file.parent:
            return f"{entry.id}:{_name(file)}"
    return None


async def _copy(work: Work, file: Path, entry: StorageEntry) -> str:
    name = _name(file)
    target = Path(entry.folder("iso") or "", file.name)
    if target.exists():
        if not await work.host.images.is_same(file, target):
            raise BadRequest(f"storage '{entry.id}' has another '{file.name}': {target}")
        return f"{entry.id}:{name}"
    part = target.with_name(f".{file.name}.part-{os.getpid()}")
    for path in (part, target):
        await work.add_file(str(path))
    await work.host.images.copy(file, part)
    part.rename(target)
    return f"{entry.id}:{name}"


def _name(file: Path) -> str:
    """The volume's name. Raises: BadRequest: a storage could not show it as a CD image."""
    name = f"iso/{file.name}"
    try:
        parse_dir_volume(name)
        parse_volume_id(f"local:{name}")
    except TunnelError as error:
        raise BadRequest(f"'{file.name}' must end in .iso or .img to be a CD image") from error
    if any(character in file.name for character in ", \t"):
        raise BadRequest(f"'{file.name}': a config cannot name a file with blanks or commas; rename it")
    return name
