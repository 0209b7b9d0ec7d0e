"""A listening UNIX socket whose connections leave the reactor at once, as plain sockets."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.source.links import Reactor

log = Logger()

ACCEPTS_IN_A_ROW = 16
BACKLOG = 64
ACCEPT_AGAIN_S = 1.0


@implementer(IReadDescriptor)
class LocalSocket:
    """Listens with mode 0600 and hands each connection to `accepted`, which owns it.

    A stale socket at `path` is replaced. Raises: BackendFailed.
    """

    def __init__(self, reactor: Reactor, path: Path, accepted: Callable[[socket.socket], None]) -> None:
        self._reactor = reactor
        self._path = path
        self._accepted = accepted
        self._sock = _listen(path)
        self._inode = _inode(path)
        self._reading = False
        self.accept(wanted=True)

    def accept(self, *, wanted: bool) -> None:
        """Take connections, or let them wait in the kernel."""
        if wanted != self._reading and self._sock.fileno() >= 0:
            self._reading = wanted
            (self._reactor.addReader if wanted else self._reactor.removeReader)(self)

    def close(self) -> None:
        """Stop listening, remove the socket file unless it is another one by now."""
        self.accept(wanted=False)
        self._sock.close()
        if _inode(self._path) == self._inode:
            self._path.unlink(missing_ok=True)

    def fileno(self) -> int:
        return self._sock.fileno()

    def logPrefix(self) -> str:
        return "local socket"

    def doRead(self) -> None:
        """Connections are there."""
        for _ in range(ACCEPTS_IN_A_ROW):
            if not self._reading or not self._accept_one():
                return

    def _accept_one(self) -> bool:
        try:
            connection, _ = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:
            # No descriptors left, say: the connection stays in the backlog.
            log.error("cannot accept a local connection: {reason}", reason=error.strerror)
            self.accept(wanted=False)
            self._reactor.callLater(ACCEPT_AGAIN_S, lambda: self.accept(wanted=True))
            return False
        connection.setblocking(False)
        self._accepted(connection)
        return True

    def connectionLost(self, _reason: Failure) -> None:
        """The reactor ends, or the socket is broken: nobody can connect any more."""
        self._reading = False


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _remove_stale(path)
        _bind(sock, path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise BackendFailed(f"cannot listen on '{path}': {error.strerror or error}") from error
    return sock


def _remove_stale(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_socket()):
        raise FileExistsError("something that is no socket is there")
    path.unlink(missing_ok=True)


def _bind(sock: socket.socket, path: Path) -> None:
    """Bind by way of the folder's descriptor: the whole path may be longer than a socket address."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    mask = os.umask(0o177)
    try:
        sock.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.umask(mask)
        os.close(folder)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None
