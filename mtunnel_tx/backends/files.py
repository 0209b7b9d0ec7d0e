"""Text files that survive a power cut: replaced atomically, fsynced, and read again only after a change.

Everything here blocks, except `ReactorThreads.run`: the daemon writes through that. Text is UTF-8; bytes that are not
UTF-8 are kept as surrogates.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, ParamSpec, TypeVar

from twisted.internet.interfaces import IReactorFromThreads
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from mtunnel_tx.errors import BackendFailed, os_reason

T = TypeVar("T")
P = ParamSpec("P")

# A cluster file system sets modes and owners itself, and has no fsync for folders or hard links.
_UNSUPPORTED = frozenset({errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES})
_UNENCODABLE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


@dataclass(frozen=True, slots=True)
class ReactorThreads:
    """Runs blocking calls in a thread pool; results arrive in the reactor's thread."""

    reactor: IReactorFromThreads
    pool: ThreadPool

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises: BackendFailed: the operating system refused (FileExistsError stays itself); else what `call` does."""
        try:
            return await deferToThreadPool(self.reactor, self.pool, call, *args, **kwargs)
        except FileExistsError:
            raise
        except OSError as error:
            raise refusal(error) from error


def refusal(error: OSError) -> BackendFailed:
    """`FILE: REASON`, for whoever runs this host."""
    return BackendFailed(os_reason(error))


def read_text(path: Path) -> str | None:
    """The whole file; None where there is none."""
    try:
        return decode(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None


def decode(data: bytes) -> str:
    """Any bytes as text."""
    return data.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """The inverse of decode; what stands for no byte at all becomes `?`."""
    return _UNENCODABLE.sub("?", text).encode("utf-8", "surrogateescape")


def replace_file(path: Path, text: str, mode: int) -> None:
    """Replace a file atomically, and keep its owner. After a crash either the old or the new content is there."""
    temporary = _write_aside(path, text, mode)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def create_file(path: Path, text: str, mode: int) -> None:
    """Write a file that must not exist yet. Raises: FileExistsError."""
    temporary = _write_aside(path, text, mode)
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _write_new(path, text, mode)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def remove_file(path: Path) -> None:
    """Delete a file for good; success where there is none."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.unlink()
        sync_folder(path.parent)


def remove_leftovers(folder: Path, names: str) -> None:
    """Delete temporary files that a crash left, for files that match a pattern. Nobody may write them now."""
    for temporary in folder.glob(f"{names}.tmp.*"):
        temporary.unlink(missing_ok=True)


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Create a folder and its parents, and fsync each parent."""
    if path.is_dir():
        return
    make_folder(path.parent, mode)
    path.mkdir(mode=mode, exist_ok=True)
    sync_folder(path.parent)


def why_unwritable(folder: Path) -> str | None:
    """Why nothing can be made in a folder, which need not be there yet; None: it can."""
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        return f"'{folder}' is no folder"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"nothing can be written in '{folder}'"


def sync_folder(path: Path) -> None:
    """fsync a folder, if the file system supports that."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _tolerated():
            os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file name to an OSError that lacks one, as those of write() do."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _write_aside(path: Path, text: str, mode: int) -> Path:
    """Write a temporary file beside `path`, fsynced, with its final mode and owner."""
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}.{os.urandom(4).hex()}")
    _write_new(temporary, text, mode, owner=path)
    return temporary


def _write_new(path: Path, text: str, mode: int, owner: Path | None = None) -> None:
    """Write a file that was not there, fsynced, or leave none. Raises: FileExistsError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o600)
    try:
        with naming(owner or path), open(fd, "wb") as file:  # noqa: PTH123 - pathlib opens no descriptors
            file.write(encode(text))
            file.flush()
            with _tolerated():
                os.fchmod(fd, mode)
            with _tolerated():
                _keep_owner(fd, owner or path)
            os.fsync(fd)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _keep_owner(fd: int, path: Path) -> None:
    """As root: give a replaced file its old owner, and a new file the owner of its folder."""
    if os.geteuid() == 0:
        status = (path if path.exists() else path.parent).stat()
        os.fchown(fd, status.st_uid, status.st_gid)


@contextlib.contextmanager
def _tolerated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


class CachedFile(Generic[T]):
    """A parsed file, read again when it has changed.

    Args: parse: makes the value of the text; called with the empty text where there is no file.
    """

    def __init__(self, path: Path, parse: Callable[[str], T]) -> None:
        self._path = path
        self._parse = parse
        self._read: tuple[tuple[int, ...], T] | None = None

    def value(self) -> T:
        """Raises: BackendFailed: it cannot be read."""
        try:
            # The mark is taken before reading, so that a change in between is noticed the next time.
            mark = self._mark()
            if self._read is None or self._read[0] != mark:
                self._read = mark, self._parse(read_text(self._path) or "")
        except OSError as error:
            raise refusal(error) from error
        return self._read[1]

    def _mark(self) -> tuple[int, ...]:
        """What changes with the file, but its text; empty where there is none."""
        try:
            status = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size
