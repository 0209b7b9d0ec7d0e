"""A storage of type `dir`: whether it can be used, where its volumes are, its lock."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mtunnel_tx.config import Settings, make_private_directory
from mtunnel_tx.errors import BackendFailed, NotFound, TimedOut, TunnelError
from mtunnel_tx.pve.storagecfg import StorageEntry, parse_storage_config
from mtunnel_tx.pve.volume import DirVolume, VolumeId, parse_volume_id

LOCK_WAIT_S = 60.0
_LOCK_RETRY_S = 0.05
_FOLDER_MODE = 0o750
_MOUNTS = Path("/proc/self/mountinfo")
_MOUNT_FIELD = 4
_ESCAPE = re.compile(rb"\\(\d{3})")


@dataclass(frozen=True, slots=True)
class DirectoryStorage:
    """A usable storage and the directory where this host keeps its locks."""

    entry: StorageEntry
    lock_dir: Path

    @property
    def id(self) -> str:
        return self.entry.id

    def file(self, volume: DirVolume) -> Path:
        """Raises: BackendFailed: the storage has no place for it."""
        path = volume.file(self.entry)
        if path is None:
            raise BackendFailed(f"storage '{self.id}' has no files")
        return Path(path)

    def folder(self, content: str) -> Path:
        """Where volumes of this kind are."""
        return Path(self.entry.folder(content) or "/nonexistent")

    def volume_id(self, vmid: int, name: str) -> str:
        """The id of an image."""
        return f"{self.id}:{vmid}/{name}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the storage's lock: names are chosen, taken and given back under it. Raises: TimedOut."""
        make_private_directory(self.lock_dir)
        fd = os.open(self.lock_dir / f"storage-{self.id}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            self._wait_for_lock(fd)
            yield
        finally:
            os.close(fd)

    def _wait_for_lock(self, fd: int) -> None:
        end_s = time.monotonic() + LOCK_WAIT_S
        while not _try_lock(fd):
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


def named_volume(text: str, verb: str) -> VolumeId:
    """A volume id for `import` or `export`. Raises: TunnelError: `cannot VERB volume 'X'`."""
    try:
        return parse_volume_id(text)
    except TunnelError as error:
        raise TunnelError(f"cannot {verb} volume '{text}'") from error


def open_storage(settings: Settings, storage: str, content: str | None = None) -> DirectoryStorage:
    """A storage that is there, enabled, on this node, and takes `content`.

    Raises: TunnelError: the texts of protocol.md section 6; BackendFailed: its directory is not there.
    """
    entry = find_entry(settings, storage)
    if not entry.enabled:
        raise TunnelError(f"storage '{storage}' is disabled")
    if not entry.on_node(settings.node):
        raise TunnelError(f"storage '{storage}' is not available on node '{settings.node}'")
    if content == "images" and "images" not in entry.content:
        raise TunnelError(f"storage '{storage}' does not support vm images")
    problem = activation_problem(entry)
    if problem:
        raise BackendFailed(f"unable to activate storage '{storage}' - {problem}")
    return DirectoryStorage(entry, settings.lock_dir)


def find_entry(settings: Settings, storage: str) -> StorageEntry:
    """Raises: NotFound: no such storage; BackendFailed: one of a type that only Proxmox's own pvesm can drive."""
    entry = read_entries(settings).get(storage)
    if entry is None:
        raise NotFound(f"storage '{storage}' does not exist")
    if entry.type != "dir":
        raise BackendFailed(f"storage '{storage}' has type '{entry.type}', mtunnel-pvesm drives type 'dir' only")
    return entry


def read_entries(settings: Settings) -> dict[str, StorageEntry]:
    """All storages; none where there is no storage.cfg. Raises: BackendFailed."""
    file = settings.pve_dir / "storage.cfg"
    try:
        return parse_storage_config(file.read_text("utf-8", "replace"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BackendFailed(f"unable to read '{file}': {error.strerror}") from error


def activation_problem(entry: StorageEntry) -> str | None:
    """Why the directory cannot be used; it is made where the storage allows that."""
    path = Path(entry.path or "/nonexistent")
    mount_point = entry.options.get("is_mountpoint", "0")
    if mount_point not in ("0", "no", "off", "false"):
        expected = Path(mount_point) if mount_point.startswith("/") else path
        if not _is_mounted(expected):
            return f"directory is expected to be a mount point but is not mounted: '{expected}'"
    if not path.is_dir() and _may_make(entry):
        with suppress(OSError):
            path.mkdir(0o755, parents=True)
    return None if path.is_dir() else f"directory '{path}' does not exist or is unreachable"


def _is_mounted(path: Path) -> bool:
    """As the kernel's table has it: a bind mount looks like any folder. Source: proc_pid_mountinfo(5)."""
    with _MOUNTS.open("rb") as table:
        found = {_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), line.split(b" ")[_MOUNT_FIELD]) for line in table}
    return os.fsencode(path.resolve()) in found


def _may_make(entry: StorageEntry) -> bool:
    return entry.options.get("create-base-path", entry.options.get("mkdir", "1")) == "1"


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
