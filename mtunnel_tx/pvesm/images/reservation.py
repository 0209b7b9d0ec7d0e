"""New images: a name that is taken at once, a file that gets it in the end, nothing left where that fails.

An image in the making is `.NAME.part-PID` in its folder, held open by its maker. So whoever finds one that the process
PID does not hold knows that its maker was killed, and removes it.
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
    """A taken name, and the file that will bear it: `fd` is open for reading and writing. Made by `reserve`."""

    def __init__(self, storage: ImageFolders, vmid: int, name: str, folder: int) -> None:
        self.name = name
        self.path = storage.folder("images") / str(vmid) / name
        self.part = self.path.with_name(f".{name}.part-{os.getpid()}")
        self.volid = storage.volume_id(vmid, name)
        self._storage = storage
        self._folder = folder
        self.fd = os.open(self.part.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, _FILE_MODE, dir_fd=folder)

    def publish(self, announce: Callable[[], None]) -> None:
        """Give the file its name, once it is safe on disk; take it back if that cannot be announced.

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
        """Unless it was freed meanwhile, and is somebody else's by now."""
        with self._storage.locked(), suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.name, dir_fd=self._folder, follow_symlinks=False), os.fstat(self.fd)):
                os.unlink(self.name, dir_fd=self._folder)

    def _link(self) -> None:
        """A link never replaces a file; where there are no links, the lock has to do."""
        try:
            os.link(self.part.name, self.name, src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:
            if self.path.exists():
                raise FileExistsError(self.name) from None
            os.rename(self.part.name, self.name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def close(self) -> None:
        """Remove what is unfinished (or, once published, only the second name)."""
        os.close(self.fd)
        with suppress(FileNotFoundError):
            os.unlink(self.part.name, dir_fd=self._folder)


@contextmanager
def reserve(storage: ImageFolders, vmid: int, choose: Choose) -> Iterator[Reservation]:
    """Take a name for a new image; what is not published by the end leaves no trace.

    Raises: BackendFailed: the folder or the file cannot be made; and what `choose` raises.
    """
    try:
        with ExitStack() as opened:
            # Under one lock: an empty folder may be removed by whoever holds it.
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
    """Remove what killed makers left behind, and the folder if nothing else is there. Raises: TimedOut: the lock."""
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
    """Whether the process has the file open; one that we may not look into counts as its maker."""
    try:
        file = os.stat(name, dir_fd=folder, follow_symlinks=False)
        open_files = list(Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        return False
    except PermissionError:
        return True
    for open_file in open_files:
        # Gone meanwhile, or not for us to look at: then not a maker of images either.
        with suppress(FileNotFoundError, PermissionError):
            if os.path.samestat(file, open_file.stat()):
                return True
    return False
