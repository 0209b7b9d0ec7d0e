"""Where an import reads from and an export writes to: a UNIX socket, `-`, or a file."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mtunnel_tx.errors import BadRequest
from mtunnel_tx.pvesm.failure import TIMED_OUT, ExitError, system_failure
from mtunnel_tx.pvesm.output import say

CONNECT_S = 30.0
_SOCKET = "unix://"
_closed: set[int] = set()
"""Standard descriptors that were closed when we were started."""


def fill_gaps() -> None:
    """Open /dev/null for closed descriptors 0 to 2, or the next opened file would become a standard stream."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            _closed.add(fd)
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


@contextmanager
def open_source(name: str, connect_s: float = CONNECT_S) -> Iterator[int]:
    """Open what an import reads; for a socket print `ready` and wait up to `connect_s` seconds for one client.

    After a failure the connection stays open until the process ends: a caller that sees it close may kill us before the
    reason was printed.
    Raises: ExitError: with the system's error number; 4: nobody connected.
    """
    if name == "-":
        yield _standard(0, "input")
    elif name.startswith(_SOCKET):
        connection = _accept_one(name.removeprefix(_SOCKET), connect_s)
        yield connection
        os.close(connection)
    else:
        with _opened(name, os.O_RDONLY) as fd:
            yield fd


@contextmanager
def open_target(name: str) -> Iterator[int]:
    """Open what an export writes; an unfinished file is removed. Raises: ExitError."""
    if name == "-":
        yield _standard(1, "output")
        return
    with _opened(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        try:
            yield fd
            os.fsync(fd)
        except BaseException:
            _remove_regular(Path(name))
            raise


def _standard(fd: int, what: str) -> int:
    if fd in _closed:
        raise BadRequest(f"unable to open '-': the standard {what} is closed")
    return fd


@contextmanager
def _opened(name: str, flags: int) -> Iterator[int]:
    if "://" in name:
        raise BadRequest(f"unable to open '{name}': only unix://, a file or - will do")
    try:
        fd = os.open(name, flags, 0o600)
    except OSError as error:
        raise system_failure(f"open({name})", error) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _remove_regular(file: Path) -> None:
    """Remove a regular file; a device or a pipe stays."""
    with suppress(OSError):
        if file.is_file():
            file.unlink()


def _accept_one(path: str, connect_s: float) -> int:
    with _listening(path) as listener:
        listener.settimeout(connect_s)
        say("ready")
        try:
            connection, _ = listener.accept()
        except TimeoutError as error:
            raise ExitError("timed out waiting for client", TIMED_OUT) from error
    connection.settimeout(None)
    return connection.detach()


@contextmanager
def _listening(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        _bind(listener, path)
        try:
            listener.listen(1)
            yield listener
        finally:
            Path(path).unlink(missing_ok=True)


def _bind(listener: socket.socket, path: str) -> None:
    """Bind with mode 0600 from the start. An empty path is refused: the kernel would choose a name itself."""
    if not path:
        raise BadRequest(f"unable to open '{_SOCKET}': it has no path")
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError as error:
        raise system_failure("failed to open socket", error) from error
    finally:
        os.umask(mask)
