"""The UNIX socket of a flow: connecting to it, and the size of its buffer."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from twisted.internet.task import deferLater

from mtunnel_tx.errors import Unreachable
from mtunnel_tx.net.kinds import Reactor

DIAL_S = 5.0
DIAL_AGAIN_S = 0.05
UNIX_BUFFER_BYTES = 2 * 1024 * 1024
_SO_SNDBUFFORCE = 32


async def dial(reactor: Reactor, path: Path, wait_s: float = DIAL_S) -> socket.socket:
    """Connect to a UNIX socket, and wait while its backlog is full.

    Returns: a non-blocking socket. Raises: Unreachable (502): nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    last_s = reactor.seconds() + wait_s
    try:
        while not _connect(sock, path):
            if reactor.seconds() >= last_s:
                raise Unreachable(f"socket '{path.name}' accepts no connection")
            await deferLater(reactor, DIAL_AGAIN_S)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(sock: socket.socket, path: Path) -> bool:
    """Returns: False: the backlog is full."""
    try:
        _connect_anywhere(sock, path)
    except BlockingIOError:
        return False
    except OSError as error:
        raise Unreachable(f"cannot connect to socket '{path.name}': {error.strerror}") from error
    return True


def _connect_anywhere(sock: socket.socket, path: Path) -> None:
    """Connect by way of the folder's descriptor: the whole path may be longer than a socket address."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def grow_buffer(sock: socket.socket) -> None:
    """A large send buffer lets writer and reader work at the same time."""
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 2 * UNIX_BUFFER_BYTES:
        return  # a process with more rights did it already, and asking again would shrink it
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER_BYTES)
    # The kernel reports twice what it granted.
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 2 * UNIX_BUFFER_BYTES:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, UNIX_BUFFER_BYTES)
