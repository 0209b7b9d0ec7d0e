"""One connection in a worker: decrypted bytes go to the daemon's HTTP and back, until a stream is granted.

Then the worker stops reading, closes its half of the plaintext socket, and receives what HTTP has not used. From then
on TLS connection and UNIX socket are a stream, as in the daemon itself.
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
from mtunnel_tx.stream.peer import PeerConnection, flush, take_over
from mtunnel_tx.workers.plaintext import GRANT, TLS_DONE

STALL_S = 60.0
LINGER_S = 15.0
"""How long a peer may take to receive the last bytes of HTTP."""

Granted = Callable[[socket.socket, socket.socket, Deferred[PeerConnection]], None]
"""Takes the UNIX socket, the socket of the stream's own messages, and the peer when it has left HTTP.

The Deferred fails with ConnectionLost.
"""


class ReceivedTransport(Connection):
    """A transport on a socket that another process has accepted."""

    logstr = "worker"

    def __init__(self, sock: socket.socket, protocol: Any, reactor: Reactor) -> None:
        super().__init__(sock, protocol, reactor)
        self.connected = 1


class PlaintextSocket(ReceivedTransport):
    """The worker's end of a plaintext socket: bytes that are read may come with descriptors.

    Args: stalled: called when reading was paused for STALL_S because the peer takes nothing: an end would go unnoticed.
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
        daemon: Any = self.protocol
        daemon.take(data, [socket.socket(fileno=number) for number in numbers])
        return None


class _FromDaemon(Protocol):
    """Passes what comes from the daemon to the forwarder."""

    def __init__(self, forwarder: PlaintextForwarder) -> None:
        self._forwarder = forwarder

    def take(self, data: bytes, sockets: list[socket.socket]) -> None:
        self._forwarder.take(data, sockets)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._forwarder.daemon_ended(reason)


class PlaintextForwarder(Protocol):
    """The protocol on top of TLS (tls.TlsProtocol) in a worker.

    Args: plaintext: the worker's end of a socket pair; the forwarder closes it.
    """

    transport: Any

    def __init__(self, reactor: Reactor, plaintext: socket.socket, granted: Granted) -> None:
        self._from_daemon = _FromDaemon(self)
        self._plaintext = PlaintextSocket(plaintext, self._from_daemon, reactor, self._abandon)
        self._clock = reactor
        self._granted = granted
        self._peer_is_gone = False
        self._timer: Timer | None = None
        self._back: list[bytes] | None = None
        self._peer: Deferred[PeerConnection] | None = None

    # From the peer

    def connectionMade(self) -> None:
        """The TLS handshake is over."""
        self._from_daemon.makeConnection(self._plaintext)
        self._plaintext.startReading()
        self._plaintext.write(TLS_DONE)
        self._plaintext.registerProducer(self.transport, True)
        self.transport.registerProducer(self._plaintext, True)

    def dataReceived(self, data: bytes) -> None:
        self._plaintext.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The peer has gone, before or after the handshake; what it has sent still goes to the daemon."""
        self._peer_is_gone = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._plaintext.unregisterProducer()
        self._plaintext.loseConnection()

    # From the daemon

    def take(self, data: bytes, sockets: list[socket.socket]) -> None:
        """Bytes of HTTP for the peer; the one byte that sockets come with is not part of them."""
        if self._back is not None:
            self._back.append(data)
            return
        self.transport.write(data.removesuffix(GRANT) if sockets else data)
        if sockets:
            self._turn_back(*sockets)

    def _turn_back(self, local: socket.socket, messages: socket.socket) -> None:
        """A stream was granted: receive what is still in the plaintext socket."""
        self._back = []
        self._peer = Deferred()
        self.transport.pauseProducing()
        self.transport.unregisterProducer()
        self._plaintext.unregisterProducer()
        self._plaintext.resumeProducing()
        self._plaintext.loseWriteConnection()
        self._granted(local, messages, self._peer)

    def daemon_ended(self, reason: Failure) -> None:
        """The daemon has closed its end of the plaintext socket."""
        if self._peer is None:
            self._end_http()
        elif reason.check(ConnectionDone) is None:
            self._abandon()
            self._peer.errback(ConnectionLost("the plaintext socket broke"))
        else:
            leaving = Deferred.fromCoroutine(self._leave()).addTimeout(STALL_S, self._clock)
            leaving.addErrback(self._fail).chainDeferred(self._peer)

    def _end_http(self) -> None:
        if not self._peer_is_gone:
            self.transport.unregisterProducer()
            self.transport.loseConnection()
            self._timer = self._clock.callLater(LINGER_S, self._abandon)

    def _fail(self, failure: Failure) -> Failure:
        self._abandon()
        return failure

    def _abandon(self) -> None:
        self.transport.abortConnection()

    async def _leave(self) -> PeerConnection:
        await flush(self.transport)
        return await take_over(self.transport, b"", b"".join(self._back or ()))
