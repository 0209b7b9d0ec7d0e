"""What HTTP has read of a flow, and what is still under way in the plaintext socket, goes back to the worker."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.net.kinds import Reactor


@implementer(IHalfCloseableProtocol)
class SendBack(Protocol):
    """Sends back what comes, then the end of file.

    Args: done: called with whether the kernel has all of it.
    """

    transport: Any

    def __init__(self, sock: socket.socket, reactor: Reactor, first: bytes, done: Callable[[bool], None]) -> None:
        self._done = done
        protocol: Any = self
        line = Connection(sock, protocol, reactor)
        line.connected = 1
        self.makeConnection(line)
        line.write(first)
        line.startReading()

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)

    def readConnectionLost(self) -> None:
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Never called: this side closes both halves at once."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._done(reason.check(ConnectionDone) is not None)
