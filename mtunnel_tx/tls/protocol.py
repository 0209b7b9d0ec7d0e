"""TLS that is ours from accept: one protocol holds the connection, feeds HTTP, and can give everything away.

Twisted's own TLS keeps bytes back in several places and has no way out; here the connection works on memory BIOs, each
write goes straight through, and `TlsProtocol.detach` hands socket, connection and nothing else to a relay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from OpenSSL import SSL, crypto
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IProducer,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.net.admission import Admission, Place
from mtunnel_tx.net.kinds import Inner, Result
from mtunnel_tx.ports.clock import Clock, Timer
from mtunnel_tx.tls.certificate import Certificate, fingerprint, make_certificate
from mtunnel_tx.tls.context import TlsContext, new_context, tune

__all__ = ["Certificate", "TlsContext", "TlsFactory", "TlsProtocol", "fingerprint", "make_certificate", "new_context"]

log = Logger()

HANDSHAKE_S = 20.0
CHUNK_BYTES = 64 * 1024
MOST_ANSWERED_BYTES = 64 * 1024
"""Of what TLS answers by itself in one connection, sent or not: some 2400 demands for new keys."""
MANY_KEYS = "the peer demands new keys again and again"


class TlsFactory(Factory):
    """Puts TLS under the protocols of another factory.

    Args: context: whose `context` is asked for at each new connection; None: no TLS, only the tuning of sockets. inner:
    e.g. a twisted.web Site. clock: for the limit of the handshake. admission: gives places; None: every connection is
    taken.
    """

    noisy = False

    def __init__(
        self, context: TlsContext | None, inner: Inner, clock: Clock, *, handshake_s: float = HANDSHAKE_S,
        admission: Admission | None = None,
    ) -> None:  # fmt: skip
        self._context = context
        self._admission = admission
        self._inner = inner
        self._clock = clock
        self._handshake_s = handshake_s

    def doStart(self) -> None:
        self._inner.doStart()

    def doStop(self) -> None:
        self._inner.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Returns: None where there is no room, or the inner factory wants no connection."""
        inner = self._inner.buildProtocol(addr)
        if inner is None:
            return None
        if self._context is None:
            return PlainProtocol(inner)
        connection = SSL.Connection(self._context.context, None)
        connection.set_accept_state()
        protocol = TlsProtocol(connection, inner, self._clock, self._handshake_s)
        if self._admission is not None:
            protocol.place = self._admission.enter(addr)
            return protocol if protocol.place is not None else None
        return protocol


@implementer(IHalfCloseableProtocol)
class PlainProtocol(Protocol):
    """No TLS: tunes the socket, then steps aside."""

    def __init__(self, inner: Inner) -> None:
        self._inner = inner

    def connectionMade(self) -> None:
        transport: Any = self.transport
        tune(transport.getHandle())
        transport.protocol = self._inner
        self._inner.makeConnection(transport)

    def readConnectionLost(self) -> None:
        """Never called: the transport knows the inner protocol by then."""

    def writeConnectionLost(self) -> None:
        """Never called either."""


@implementer(ITCPTransport, ISSLTransport, IPushProducer, IHalfCloseableProtocol)
class TlsProtocol(Protocol):
    """TLS between a TCP transport and an inner protocol, whose transport it is once the handshake is done.

    Args: connection: on memory BIOs, told whether it accepts or connects. verified: called after the handshake;
    a TunnelError from it ends the connection and reaches the inner protocol's connectionLost.
    """

    disconnecting = False
    place: Place | None = None

    def __init__(
        self, connection: SSL.Connection, inner: Inner, clock: Clock, handshake_s: float = HANDSHAKE_S,
        verified: Callable[[SSL.Connection], None] = lambda _connection: None,
    ) -> None:  # fmt: skip
        self._connection = connection
        self._inner: Any = inner
        self._clock = clock
        self._handshake_s = handshake_s
        self._verified = verified
        self._timer: Timer | None = None
        self._established = False
        self._paused = False
        self._answered_bytes = 0
        self._feeding = False
        self._ended = self._told = False
        self._producing = False
        self._failure: Failure | None = None

    # What the TCP transport calls

    def connectionMade(self) -> None:
        transport: Any = self.transport
        tune(transport.getHandle())
        self._timer = self._clock.callLater(self._handshake_s, self._abandon)
        self._advance()

    def dataReceived(self, data: bytes) -> None:
        self._connection.bio_write(data)
        self._advance()

    def readConnectionLost(self) -> None:
        """End of file from the peer; what it sent before is still taken."""
        self._ended = True
        self._advance()

    def writeConnectionLost(self) -> None:
        """Our own half was closed; the rest follows with the whole."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Comes for a connection that was given away too, when its taker has closed it."""
        self._stop_timer()
        if self.place is not None:
            self.place.leave()
        if self._inner is not None:
            inner, self._inner = self._inner, None
            inner.connectionLost(self._failure or reason)

    # Handshake

    def _advance(self) -> None:
        if self._inner is None:
            return
        if not self._established and not self._shake_hands():
            return
        self._feed()

    def _shake_hands(self) -> bool:
        try:
            self._connection.do_handshake()
            self._verified(self._connection)
        except SSL.WantReadError:
            self._flush()
            if self._ended:
                self._fail(ConnectionLost("end of file in the TLS handshake"))
            return False
        except (SSL.Error, TunnelError) as error:
            self._break(error)
            return False
        self._established = True
        self._stop_timer()
        self._flush()
        self._inner.makeConnection(self)
        return True

    def _abandon(self) -> None:
        log.debug("TLS handshake takes too long")
        self._fail(TunnelError("TLS handshake takes too long"))

    def _fail(self, error: Exception) -> None:
        self._failure = Failure(error)
        self.abortConnection()

    def _break(self, error: Exception) -> None:
        """TLS has failed: its alert still goes out."""
        self._failure = Failure(error)
        self.disconnecting = True
        self._flush()
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseConnection()

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    # Plaintext in

    def _feed(self) -> None:
        """Give plaintext to the inner protocol, one chunk after the other, as long as it wants some."""
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._inner is not None and not self._paused and (data := self._decrypt()):
                self._inner.dataReceived(data)
        finally:
            self._feeding = False

    def _decrypt(self) -> bytes:
        try:
            data: bytes = self._connection.recv(CHUNK_BYTES)
        except SSL.WantReadError:
            self._send_answers()
            if self._ended:
                self._end_reading()
        except SSL.ZeroReturnError:
            self._end_reading()
        except SSL.Error as error:
            self._break(error)
        else:
            self._send_answers()
            return data
        return b""

    def _send_answers(self) -> None:
        """What TLS made while it read, where every write has sent what it made: a peer must not get that without end.

        Nobody knows yet who it is, and each answer takes memory for as long as the peer takes none.
        """
        self._answered_bytes += self._flush()
        if self._answered_bytes > MOST_ANSWERED_BYTES and not self.disconnecting:
            log.debug("a connection ends: {reason}", reason=MANY_KEYS)
            self._fail(TunnelError(MANY_KEYS))

    def _end_reading(self) -> None:
        """Tell the end once; a protocol that knows no half connection loses the whole one."""
        if self._told:
            return
        self._told = True
        half: Any = IHalfCloseableProtocol(self._inner, None)
        if half is not None:
            half.readConnectionLost()
        else:
            self._failure = Failure(ConnectionDone())
            self.disconnecting = True
            # As with TCP: what a producer still has is not waited for.
            (self.unregisterProducer if self._producing else self._say_end)()

    # What the inner protocol calls

    def write(self, data: bytes) -> None:
        if not data or not self._established or self.disconnecting:
            return
        try:
            self._connection.sendall(data)
        except SSL.Error as error:
            self._fail(error)
        else:
            self._flush()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def _flush(self) -> int:
        """Send what TLS made, in one piece: a transport pauses its producer once for each write beyond its limit.

        Returns: how many bytes that were.
        """
        transport: Any = self.transport
        pieces = []
        with contextlib.suppress(SSL.WantReadError):
            while True:
                pieces.append(self._connection.bio_read(CHUNK_BYTES))
        if pieces:
            transport.writeSequence(pieces)
        return sum(map(len, pieces))

    def loseConnection(self) -> None:
        """Close in order, after everything written and everything a producer still has."""
        if self.disconnecting:
            return
        self.disconnecting = True
        if not self._producing:
            self._say_end()

    def _say_end(self) -> None:
        transport: Any = self.transport
        # Where TLS is broken already there is nobody to say it to.
        with contextlib.suppress(SSL.Error):
            self._connection.shutdown()
        self._flush()
        transport.loseConnection()

    def loseWriteConnection(self) -> None:
        transport: Any = self.transport
        with contextlib.suppress(SSL.Error):
            self._connection.shutdown()
        self._flush()
        transport.loseWriteConnection()

    def abortConnection(self) -> None:
        self.disconnecting = True
        transport: Any = self.transport
        transport.abortConnection()

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        transport: Any = self.transport
        self._producing = True
        transport.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        transport: Any = self.transport
        transport.unregisterProducer()
        self._producing = False
        if self.disconnecting:
            self._say_end()

    def pauseProducing(self) -> None:
        transport: Any = self.transport
        self._paused = True
        transport.pauseProducing()

    def resumeProducing(self) -> None:
        transport: Any = self.transport
        self._paused = False
        if self.disconnecting:
            return
        transport.resumeProducing()
        if self._established:
            self._feed()

    def stopProducing(self) -> None:
        self.loseConnection()

    def getPeerCertificate(self) -> crypto.X509 | None:
        return self._connection.get_peer_certificate()

    def __getattr__(self, name: str) -> Result:
        """Everything else (addresses, socket options, the handle) is the TCP transport's."""
        return getattr(self.transport, name)

    def detach(self) -> tuple[Any, SSL.Connection]:
        """Give TCP transport and connection away; plaintext that was not fed yet stays in the connection."""
        self._inner = None
        self._paused = True
        return self.transport, self._connection
