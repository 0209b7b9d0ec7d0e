"""The daemon's end of a plaintext socket: a transport for HTTP whose bytes a worker encrypts and decrypts.

The first byte that the worker sends is TLS_DONE: the handshake is over, so HTTP and its time limits begin. When HTTP
gives the connection away, the daemon sends GRANT with the descriptors of the stream (`relay.py`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure

from mtunnel_tx.net.admission import Place
from mtunnel_tx.net.kinds import Inner, Reactor

TLS_DONE = b"+"
GRANT = b"!"
"""One byte: a read ends behind the byte that carries descriptors, but may begin before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedClient:
    """Both addresses of a TCP connection, and its place, which it keeps until the plaintext socket is closed."""

    peer: IAddress
    host: IAddress
    place: Place | None


class PlaintextTransport(Connection):
    """Args: inner: the HTTP protocol. closed: called when the plaintext socket is closed."""

    logstr = "plaintext"

    def __init__(
        self, sock: socket.socket, reactor: Reactor, client: AcceptedClient, inner: Inner, closed: Callable[[], None]
    ) -> None:
        first: Any = _WaitForTls(inner)
        super().__init__(sock, first, reactor)
        self.place = client.place
        self._client = client
        self._closed = closed
        self.connected = 1
        first.makeConnection(self)
        self.startReading()

    def getPeer(self) -> IAddress:
        """The client's own address."""
        return self._client.peer

    def getHost(self) -> IAddress:
        """The address that the client has connected to."""
        return self._client.host

    def setTcpNoDelay(self, enabled: bool) -> None:
        """The worker does that on the TCP socket."""

    def connectionLost(self, reason: Failure) -> None:
        """Free the place."""
        super().connectionLost(reason)
        if self.place is not None:
            self.place.leave()
        self._closed()


class _WaitForTls(Protocol):
    """Waits for TLS_DONE, then gives the transport to HTTP."""

    transport: Any

    def __init__(self, inner: Inner) -> None:
        self._inner = inner

    def dataReceived(self, data: bytes) -> None:
        self.transport.protocol = self._inner
        self._inner.makeConnection(self.transport)
        if len(data) > len(TLS_DONE):
            self._inner.dataReceived(data[len(TLS_DONE) :])
