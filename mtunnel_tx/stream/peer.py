"""The peer's connection: how it leaves HTTP and the reactor, to become the carrier of a flow."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IPullProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.net.kinds import Transport
from mtunnel_tx.tls.protocol import TlsProtocol

log = Logger()


@dataclass(slots=True, eq=False)
class PeerConnection:
    """A TCP connection that was taken from the reactor; nobody reads or writes it.

    connection: its TLS, on memory BIOs, handshake over; None: plain TCP. leftover: decrypted bytes that were read
    already. release: closes the transport that the reactor had for it.
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


async def take_over(transport: Transport, opening: bytes, leftover: bytes) -> PeerConnection:
    """Send the last bytes of HTTP, then take the connection from the reactor.

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
        # A descriptor of our own: when the reactor closes its one, that cannot hit another file with the same number.
        sock = transport.getHandle().dup()
    except OSError as error:
        log.error("a connection is given up: {reason}", reason=str(error))
        transport.abortConnection()
        raise ConnectionLost("no descriptor is left for the connection") from error
    return PeerConnection(sock, connection, leftover, partial(_close_now, transport))


def _close_now(transport: Any) -> None:
    """Close a transport that nothing is written to.

    Its `loseConnection` would wait until the socket takes bytes again; that of a peer that acknowledges nothing never
    does, and the kernel gives it up after a quarter of an hour.
    """
    if transport.connected:
        transport.connectionLost(Failure(ConnectionDone()))


async def flush(transport: Transport, data: bytes = b"") -> None:
    """Send this and everything before it. Raises: ConnectionLost."""
    flushing = _Flush()
    transport.registerProducer(flushing, False)
    transport.write(data)
    if not data:
        transport.startWriting()
    await flushing.done
    transport.unregisterProducer()
