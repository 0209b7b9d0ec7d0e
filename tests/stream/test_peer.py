"""A connection that was taken from the reactor is closed when its flow says so, whatever its peer does."""

import socket

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from mtunnel_tx.stream.peer import take_over
from mtunnel_tx.stream.sides import reset_on_close
from tests.patience import patience_s
from tests.soak.cutter import swallow


class Accepting(Factory):
    noisy = False

    def __init__(self):
        self.made = Deferred()

    def buildProtocol(self, _addr):
        protocol = Protocol()
        protocol.connectionMade = lambda: self.made.callback(protocol.transport)
        return protocol


class ClosingTests(TestCase):
    async def accept(self):
        """Returns: the transport of a connection, and its other end."""
        factory = Accepting()
        port = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        other = socket.create_connection(("127.0.0.1", port.getHost().port))
        self.addCleanup(other.close)
        return await factory.made, other

    async def test_of_a_peer_that_acknowledges_nothing(self):
        transport, other = await self.accept()
        peer = await take_over(transport, b"", b"")
        swallow(other)
        peer.sock.setblocking(False)
        with self.assertRaises(BlockingIOError):
            while True:
                peer.sock.send(bytes(1 << 20))
        reset_on_close(peer.sock)
        peer.close()
        self.assertFalse(transport.connected)
        self.assertFalse(hasattr(transport, "socket"), "the reactor still has it")

    async def test_of_any_other_one(self):
        transport, other = await self.accept()
        peer = await take_over(transport, b"last words", b"")
        peer.close()
        other.settimeout(patience_s())
        self.assertEqual(other.makefile("rb").read(), b"last words")
        peer.release()
