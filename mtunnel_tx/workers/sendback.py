"""What HTTP has read of a flow, and what is still under way in the plaintext socket, goes back to the worker."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.net.kinds import Reactor


@implementer(IHalfCloseableProtocol)
class SendBack(Protocol):
    """Sends back what comes, then the end of file."""

    transport: Any

    def __init__(self, sock: socket.socket, reactor: Reactor, first: bytes) -> None:
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
        """The worker has everything, or has ended."""
