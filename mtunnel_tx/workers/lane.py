"""The daemon's end of a lane: a transport for HTTP whose bytes a front encrypts and decrypts.

The first byte through it is a KNOCK: TLS is there, so HTTP begins, and its time. Where HTTP gives the connection away
there comes, in front of nothing else, a GRANT with the descriptors of the stream (`carrying.py`).
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

from mtunnel_tx.net.admission import Seat
from mtunnel_tx.net.kinds import Inner, Reactor

KNOCK = b"+"
GRANT = b"!"
"""One byte, as a read ends behind the one that has descriptors, but may begin before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Who is at the other end of the TCP connection; `seat`: the place that it takes, as long as the lane is there."""

    peer: IAddress
    host: IAddress
    seat: Seat | None


class Lane(Connection):
    """Args: inner: the HTTP protocol. gone: told when it is closed."""

    logstr = "lane"

    def __init__(
        self, sock: socket.socket, reactor: Reactor, visitor: Visitor, inner: Inner, gone: Callable[[Lane], None]
    ) -> None:
        door: Any = _Door(inner)
        super().__init__(sock, door, reactor)
        self.seat = visitor.seat
        self._visitor = visitor
        self._gone = gone
        self.connected = 1
        door.makeConnection(self)
        self.startReading()

    def getPeer(self) -> IAddress:
        """The client's own address."""
        return self._visitor.peer

    def getHost(self) -> IAddress:
        """Where the client has connected to."""
        return self._visitor.host

    def setTcpNoDelay(self, enabled: bool) -> None:
        """The front sees to that."""

    def connectionLost(self, reason: Failure) -> None:
        """The seat is free again."""
        super().connectionLost(reason)
        if self.seat is not None:
            self.seat.leave()
        self._gone(self)


class _Door(Protocol):
    """Waits for the knock, then steps aside."""

    transport: Any

    def __init__(self, inner: Inner) -> None:
        self._inner = inner

    def dataReceived(self, data: bytes) -> None:
        self.transport.protocol = self._inner
        self._inner.makeConnection(self.transport)
        if len(data) > len(KNOCK):
            self._inner.dataReceived(data[len(KNOCK) :])
