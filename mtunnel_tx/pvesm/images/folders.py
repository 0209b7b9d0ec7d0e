"""Storages whose images are files in a folder for each guest: where their volumes are, and their lock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mtunnel_tx.config import make_private_directory
from mtunnel_tx.errors import BackendFailed, NotFound, TimedOut
from mtunnel_tx.filelocks import try_lock
from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.pve.volume import DirVolume

LOCK_WAIT_S = 60.0
_LOCK_RETRY_S = 0.05
_FOLDER_MODE = 0o750


@dataclass(frozen=True, slots=True)
class ImageFolders:
    """The folders of a storage, and the directory where this host keeps its lock."""

    entry: StorageEntry
    lock_dir: Path

    @property
    def id(self) -> str:
        return self.entry.id

    def file(self, volume: DirVolume) -> Path:
        """The file of a volume. Raises: BackendFailed: the storage has no folder for this content."""
        path = volume.file(self.entry)
        if path is None:
            raise BackendFailed(f"storage '{self.id}' has no files")
        return Path(path)

    def folder(self, content: str) -> Path:
        """The folder for one kind of content."""
        return Path(self.entry.folder(content) or "/nonexistent")

    def volume_id(self, vmid: int, name: str) -> str:
        """The id of an image."""
        return f"{self.id}:{vmid}/{name}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the storage's lock, under which names are chosen, published and removed. Raises: TimedOut."""
        make_private_directory(self.lock_dir)
        fd = os.open(self.lock_dir / f"storage-{self.id}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            self._wait_for_lock(fd)
            yield
        finally:
            os.close(fd)

    def _wait_for_lock(self, fd: int) -> None:
        end_s = time.monotonic() + LOCK_WAIT_S
        while not try_lock(fd):
            if time.monotonic() > end_s:
                raise TimedOut(f"cannot acquire lock 'storage-{self.id}' - got timeout")
            time.sleep(_LOCK_RETRY_S)

    @contextmanager
    def image_folder(self, vmid: int, *, make: bool = False) -> Iterator[int]:
        """Open a guest's folder for calls with `dir_fd`; it may be no symbolic link.

        Raises: NotFound: there is none; BackendFailed.
        """
        path = self.folder("images") / str(vmid)
        if make:
            self._make_folder(path)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise NotFound(f"directory '{path}' does not exist") from error
        except OSError as error:
            raise BackendFailed(f"unable to open directory '{path}': {error.strerror}") from error
        try:
            yield fd
        finally:
            os.close(fd)

    def _make_folder(self, path: Path) -> None:
        try:
            path.mkdir(_FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise BackendFailed(f"unable to create directory '{path}': {error.strerror}") from error

    def drop_empty_folder(self, vmid: int) -> None:
        """Remove a guest's folder if nothing is in it."""
        with suppress(OSError):
            (self.folder("images") / str(vmid)).rmdir()
