"""The two sockets of a stream: taking a connection out of the reactor's hands, and reaching the UNIX side."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IPullProducer
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from mtunnel_tx.errors import Unreachable
from mtunnel_tx.net.kinds import Reactor, Transport
from mtunnel_tx.tls.protocol import TlsProtocol

log = Logger()

DIAL_S = 5.0
DIAL_AGAIN_S = 0.05
UNIX_BUFFER_BYTES = 2 * 1024 * 1024
_SO_SNDBUFFORCE = 32


@dataclass(slots=True)
class Peer:
    """A TCP connection that was taken out of the reactor's hands; no reading or writing goes on.

    connection: its TLS, on memory BIOs, handshake over; None: plain. leftover: plaintext that came already.
    release: what closes the reactor's own idea of the connection.
    """

    sock: socket.socket
    connection: SSL.Connection | None = None
    leftover: bytes = b""
    release: Callable[[], Any] = lambda: None

    def close(self) -> None:
        self.sock.close()
        self.release()


@implementer(IPullProducer)
class _Flush:
    """Fires `done` when the transport has given everything to the kernel."""

    def __init__(self) -> None:
        self.done: Deferred[None] = Deferred()
        self._asked = 0

    def resumeProducing(self) -> None:
        """The first call comes with the registration, the next one when nothing is left."""
        self._asked += 1
        if self._asked == 2:
            self.done.callback(None)

    def stopProducing(self) -> None:
        if not self.done.called:
            self.done.errback(ConnectionLost("connection lost in the upgrade"))


async def take_over(transport: Transport, opening: bytes, leftover: bytes) -> Peer:
    """Send the last bytes of HTTP, then take the connection away from the reactor.

    Args: transport: TlsProtocol, or a TCP or UNIX transport. opening: empty only where nothing at all waits to be
    sent. leftover: what HTTP had already read.
    Raises: ConnectionLost.
    """
    transport.pauseProducing()
    if opening:
        await flush(transport, opening)
    connection = None
    if isinstance(transport, TlsProtocol):
        transport, connection = transport.detach()
    transport.pauseProducing()
    try:
        # A socket object of our own: the reactor closing its one cannot hit a stranger's number.
        sock = transport.getHandle().dup()
    except OSError as error:
        log.error("a connection is given up: {reason}", reason=str(error))
        transport.abortConnection()
        raise ConnectionLost("no descriptor is left for the connection") from error
    return Peer(sock, connection, leftover, transport.loseConnection)


async def flush(transport: Transport, data: bytes = b"") -> None:
    """Send this and everything before it. Raises: ConnectionLost."""
    flushing = _Flush()
    transport.registerProducer(flushing, False)
    transport.write(data)
    if not data:
        transport.startWriting()
    await flushing.done
    transport.unregisterProducer()


async def dial(reactor: Reactor, path: Path, wait_s: float = DIAL_S) -> socket.socket:
    """Connect to a UNIX socket; a full backlog is waited for.

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
        return  # somebody with more rights did it already, and asking again would shrink it
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER_BYTES)
    # The kernel reports twice what it granted.
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 2 * UNIX_BUFFER_BYTES:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, UNIX_BUFFER_BYTES)
