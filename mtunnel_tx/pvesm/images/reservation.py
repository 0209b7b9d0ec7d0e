"""Reserve a name for a new image, write a temporary file, and give it the name at the end; a failure leaves nothing.

The temporary file is `.NAME.part-PID` and is kept open by the process PID. A file that its process does not hold open
was left by a killed process, and whoever finds it removes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mtunnel_tx.errors import BackendFailed, NotFound, WrongState
from mtunnel_tx.pvesm.images.folders import ImageFolders
from mtunnel_tx.pvesm.signals import uninterrupted

Choose = Callable[[frozenset[str]], str]
"""Returns a file name for a new image; is given the names that are taken."""

_PART = re.compile(r"\.(.+)\.part-(\d+)", re.DOTALL)
_FILE_MODE = 0o640


class Reservation:
    """A reserved name and its temporary file; `fd` is open for reading and writing. Made by `reserve`."""

    def __init__(self, storage: ImageFolders, vmid: int, name: str, folder: int) -> None:
        self.name = name
        self.path = storage.folder("images") / str(vmid) / name
        self.part = self.path.with_name(f".{name}.part-{os.getpid()}")
        self.volid = storage.volume_id(vmid, name)
        self._storage = storage
        self._folder = folder
        self.fd = os.open(self.part.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, _FILE_MODE, dir_fd=folder)

    def publish(self, announce: Callable[[], None]) -> None:
        """Fsync the file and give it its name; remove the name again if it cannot be announced.

        Raises: WrongState: somebody else took the name; and what `announce` raises.
        """
        with uninterrupted():
            self._give_name()
            try:
                announce()
            except BaseException:
                self._take_name_back()
                raise

    def _give_name(self) -> None:
        os.fsync(self.fd)
        with self._storage.locked():
            try:
                self._link()
            except FileExistsError as error:
                raise WrongState(f"file '{self.path}' already exists") from error
            os.fsync(self._folder)

    def _take_name_back(self) -> None:
        """Remove the name, unless it belongs to another file by now."""
        with self._storage.locked(), suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.name, dir_fd=self._folder, follow_symlinks=False), os.fstat(self.fd)):
                os.unlink(self.name, dir_fd=self._folder)

    def _link(self) -> None:
        """Use a hard link, which never replaces a file; on file systems without links, rename under the lock."""
        try:
            os.link(self.part.name, self.name, src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:
            if self.path.exists():
                raise FileExistsError(self.name) from None
            os.rename(self.part.name, self.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def close(self) -> None:
        """Remove the temporary file (once published, this is only a second name of the image)."""
        os.close(self.fd)
        with suppress(FileNotFoundError):
            os.unlink(self.part.name, dir_fd=self._folder)


@contextmanager
def reserve(storage: ImageFolders, vmid: int, choose: Choose) -> Iterator[Reservation]:
    """Reserve a name for a new image; a reservation that was not published is removed completely.

    Raises: BackendFailed: the folder or the file cannot be made; and what `choose` raises.
    """
    try:
        with ExitStack() as opened:
            # Under one lock, because others remove empty folders under it.
            with storage.locked():
                folder = opened.enter_context(storage.image_folder(vmid, make=True))
                reservation = _take_name(storage, vmid, choose, folder)
            opened.callback(reservation.close)
            yield reservation
    finally:
        with storage.locked():
            storage.drop_empty_folder(vmid)


def _take_name(storage: ImageFolders, vmid: int, choose: Choose, folder: int) -> Reservation:
    _remove_stale_parts(folder)
    parts = (_PART.fullmatch(name) for name in os.listdir(folder))
    name = choose(frozenset(os.listdir(folder)) | {part[1] for part in parts if part})
    try:
        return Reservation(storage, vmid, name, folder)
    except OSError as error:
        raise BackendFailed(f"unable to create '{vmid}/{name}': {error.strerror}") from error


def sweep(storage: ImageFolders, vmid: int) -> None:
    """Remove temporary files of killed processes, and the folder if it is empty then. Raises: TimedOut."""
    try:
        with storage.image_folder(vmid) as folder, storage.locked():
            _remove_stale_parts(folder)
            storage.drop_empty_folder(vmid)
    except NotFound:
        return


def _remove_stale_parts(folder: int) -> None:
    parts = [part for part in map(_PART.fullmatch, os.listdir(folder)) if part]
    for name in [part[0] for part in parts if not _is_held(folder, part[0], int(part[2]))]:
        os.unlink(name, dir_fd=folder)


def _is_held(folder: int, name: str, pid: int) -> bool:
    """Whether the process has the file open; True if we may not look into that process."""
    try:
        file = os.stat(name, dir_fd=folder, follow_symlinks=False)
        open_files = list(Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        return False
    except PermissionError:
        return True
    for open_file in open_files:
        # The descriptor was closed meanwhile, or we may not look at it: it is not this file.
        with suppress(FileNotFoundError, PermissionError):
            if os.path.samestat(file, open_file.stat()):
                return True
    return False
