"""One connection in a front: plaintext goes through the lane to the daemon's HTTP and back, until a stream is granted.

Then the front stops reading, closes its half of the lane, and gets back what HTTP has not used. TLS connection and UNIX
socket become a stream as in the daemon itself.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure

from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.ports.clock import Timer
from mtunnel_tx.stream.peer import Peer, flush, take_over
from mtunnel_tx.workers.lane import GRANT, KNOCK

STALL_S = 60.0
LINGER_S = 15.0
"""How long a peer may take to see the last of HTTP."""

Granted = Callable[[socket.socket, socket.socket, Deferred[Peer]], None]
"""Takes the UNIX socket, the socket of the stream's own messages, and the peer once it has left HTTP.

The Deferred fails with ConnectionLost.
"""


class Wire(Connection):
    """A socket that somebody else has accepted, as a transport."""

    logstr = "front"

    def __init__(self, sock: socket.socket, protocol: Any, reactor: Reactor) -> None:
        super().__init__(sock, protocol, reactor)
        self.connected = 1


class LaneEnd(Wire):
    """The front's end of a lane: what is read may have descriptors.

    Args: stalled: called when it may not be read for STALL_S, as the peer takes nothing: an end would not be seen.
    """

    def __init__(self, sock: socket.socket, protocol: Any, reactor: Reactor, stalled: Callable[[], None]) -> None:
        super().__init__(sock, protocol, reactor)
        self._clock = reactor
        self._stalled = stalled
        self._timer: Timer | None = None

    def pauseProducing(self) -> None:
        super().pauseProducing()
        self._stop_timer()
        self._timer = self._clock.callLater(STALL_S, self._stalled)

    def resumeProducing(self) -> None:
        super().resumeProducing()
        self._stop_timer()

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def doRead(self) -> Any:
        try:
            data, numbers, _, _ = socket.recv_fds(self.socket, self.bufferSize, 2, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        lane: Any = self.protocol
        lane.take(data, [socket.socket(fileno=number) for number in numbers])
        return None


class _Inland(Protocol):
    """Tells the ferry what comes through the lane."""

    def __init__(self, ferry: Ferry) -> None:
        self._ferry = ferry

    def take(self, data: bytes, sockets: list[socket.socket]) -> None:
        self._ferry.take(data, sockets)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._ferry.lane_ended(reason)


class Ferry(Protocol):
    """What stands on top of TLS (net.tls.TlsProtocol) in a front. Args: lane: a socket; it belongs to the ferry."""

    transport: Any

    def __init__(self, reactor: Reactor, lane: socket.socket, granted: Granted) -> None:
        self._inland = _Inland(self)
        self._lane = LaneEnd(lane, self._inland, reactor, self._abandon)
        self._clock = reactor
        self._granted = granted
        self._gone = False
        self._timer: Timer | None = None
        self._back: list[bytes] | None = None
        self._peer: Deferred[Peer] | None = None

    # From the peer

    def connectionMade(self) -> None:
        """TLS is there."""
        self._inland.makeConnection(self._lane)
        self._lane.startReading()
        self._lane.write(KNOCK)
        self._lane.registerProducer(self.transport, True)
        self.transport.registerProducer(self._lane, True)

    def dataReceived(self, data: bytes) -> None:
        self._lane.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The peer has gone, before or after the handshake; what it has sent still counts."""
        self._gone = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._lane.unregisterProducer()
        self._lane.loseConnection()

    # From the daemon

    def take(self, data: bytes, sockets: list[socket.socket]) -> None:
        """HTTP has said something; the one byte that sockets come with is no part of that."""
        if self._back is not None:
            self._back.append(data)
            return
        self.transport.write(data.removesuffix(GRANT) if sockets else data)
        if sockets:
            self._turn_back(*sockets)

    def _turn_back(self, local: socket.socket, messages: socket.socket) -> None:
        """This is a stream now: let the lane bring back what it has."""
        self._back = []
        self._peer = Deferred()
        self.transport.pauseProducing()
        self.transport.unregisterProducer()
        self._lane.unregisterProducer()
        self._lane.resumeProducing()
        self._lane.loseWriteConnection()
        self._granted(local, messages, self._peer)

    def lane_ended(self, reason: Failure) -> None:
        """The daemon has closed its end."""
        if self._peer is None:
            self._say_goodbye()
        elif reason.check(ConnectionDone) is None:
            self._abandon()
            self._peer.errback(ConnectionLost("the lane broke"))
        else:
            leaving = Deferred.fromCoroutine(self._leave()).addTimeout(STALL_S, self._clock)
            leaving.addErrback(self._fail).chainDeferred(self._peer)

    def _say_goodbye(self) -> None:
        if not self._gone:
            self.transport.unregisterProducer()
            self.transport.loseConnection()
            self._timer = self._clock.callLater(LINGER_S, self._abandon)

    def _fail(self, failure: Failure) -> Failure:
        self._abandon()
        return failure

    def _abandon(self) -> None:
        self.transport.abortConnection()

    async def _leave(self) -> Peer:
        await flush(self.transport)
        return await take_over(self.transport, b"", b"".join(self._back or ()))
