"""`free`: remove volumes, and what killed imports of the same guest left behind."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from mtunnel_tx.errors import BackendFailed, NotFound, TunnelError, WrongState
from mtunnel_tx.pve.volume import DirVolume
from mtunnel_tx.pvesm.images.folders import ImageFolders
from mtunnel_tx.pvesm.images.listing import read_facts
from mtunnel_tx.pvesm.images.reservation import sweep
from mtunnel_tx.pvesm.output import warn


def remove_volume(folders: ImageFolders, volume: DirVolume) -> None:
    """Remove a volume, and the guest's folder once it is empty. A volume that does not exist is no error.

    Raises: WrongState: linked clones stand on it; TunnelError.
    """
    if volume.content == "images" and volume.vmid is not None:
        _free_image(folders, volume, volume.vmid)
        with suppress(OSError, TunnelError):
            sweep(folders, volume.vmid)
    else:
        _remove(folders.file(volume), None)


def _free_image(folders: ImageFolders, volume: DirVolume, vmid: int) -> None:
    if volume.is_base and _has_clones(folders, vmid, volume.name):
        raise WrongState(f"base volume '{vmid}/{volume.name}' is still in use by linked clones")
    path = folders.file(volume)
    try:
        with folders.image_folder(vmid) as folder, folders.locked():
            _remove(path, folder)
            folders.drop_empty_folder(vmid)
    except NotFound:
        warn(f"disk image '{path}' does not exist")


def _remove(path: Path, folder: int | None) -> None:
    """Unlink the name; a symbolic link is not followed."""
    try:
        os.unlink(path if folder is None else path.name, dir_fd=folder)
    except FileNotFoundError:
        warn(f"disk image '{path}' does not exist")
    except OSError as error:
        raise BackendFailed(f"unable to remove '{path}': {error.strerror}") from error


def _has_clones(folders: ImageFolders, vmid: int, name: str) -> bool:
    """Whether any image of the storage has it as its backing file."""
    base = str(folders.folder("images") / str(vmid) / name)
    for path in folders.folder("images").glob("*/*"):
        facts = read_facts(path, path.suffix[1:])
        if facts and facts.backing and os.path.normpath(path.parent / facts.backing) == base:
            return True
    return False
