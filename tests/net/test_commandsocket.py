"""The control socket: who may use it, and what it answers."""

import socket
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import TestCase

from mtunnel_tx.config import Limits
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.net.commandsocket import listen_commands
from tests.net.test_linesocket import Echo


class Peer(Protocol):
    """Collects what comes, until the connection ends."""

    def __init__(self):
        self.data = b""
        self.ended = Deferred()
        self._wanted = None

    def lines(self, count):
        """Fires when so many lines have come."""
        self._wanted = (count, Deferred())
        self._look()
        return self._wanted[1]

    def dataReceived(self, data):
        self.data += data
        self._look()

    def _look(self):
        if self._wanted and self.data.count(b"\n") >= self._wanted[0] and not self._wanted[1].called:
            self._wanted[1].callback(self.data)

    def connectionLost(self, reason):
        self.ended.callback(self.data)


class ListenControlTests(TestCase):
    def setUp(self):
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "100.mtunnel"
        self.echo = Echo()

    async def listen(self, answerer=None, limits=None):
        listening = await listen_commands(reactor, self.path, answerer or self.echo, limits)
        self.addCleanup(lambda: Deferred.fromCoroutine(listening.close()))
        return listening

    async def connect(self):
        peer = await connectProtocol(UNIXClientEndpoint(reactor, str(self.path)), Peer())
        self.addCleanup(peer.transport.abortConnection)
        return peer

    async def test_only_the_owner_may_connect(self):
        await self.listen()
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    async def test_ten_thousand_commands_at_once(self):
        await self.listen()
        peer = await self.connect()
        peer.transport.write(b"".join(b"%d\n" % number for number in range(10_000)))
        data = await peer.lines(10_000)
        self.assertEqual(data, b"".join(b"%d!\n" % number for number in range(10_000)))

    async def test_a_line_of_four_mebibytes(self):
        await self.listen()
        peer = await self.connect()
        peer.transport.write(b"x" * Limits().line_bytes + b"\n")
        self.assertEqual(len(await peer.lines(1)), Limits().line_bytes + 2)

    async def test_half_close(self):
        await self.listen()
        peer = await self.connect()
        peer.transport.write(b"slow\nquit")
        peer.transport.loseWriteConnection()
        while len(self.echo.slow) < 1:
            await self.turn()
        self.echo.release()
        self.assertEqual(await peer.ended, b"slow!\nquit!\n")
        await self.echo.ended

    async def test_a_peer_that_is_gone_gets_nothing_done_any_more(self):
        await self.listen()
        peer = await self.connect()
        peer.transport.write(b"slow\nformat-everything\n")
        while len(self.echo.slow) < 1:
            await self.turn()
        peer.transport.loseConnection()
        await peer.ended
        for _ in range(5):
            await self.turn()
        self.echo.release()
        await self.echo.ended
        self.assertEqual(self.echo.lines, [b"slow"])

    async def test_a_second_connection_is_closed_at_once(self):
        self.echo = Echo(free=False)
        await self.listen()
        first, second = await self.connect(), await self.connect()
        self.assertEqual(await second.ended, b"")
        self.assertFalse(self.echo.ended.called)
        first.transport.write(b"still here\n")
        self.assertEqual(await first.lines(1), b"still here!\n")

    async def test_nobody_reads_the_replies(self):
        await self.listen(limits=Limits(line_bytes=70_000))
        peer = await self.connect()
        peer.transport.pauseProducing()
        peer.transport.write((b"x" * 65_536 + b"\n") * 100)
        before = -1
        while before != len(self.echo.lines):
            before = len(self.echo.lines)
            for _ in range(20):
                await self.turn()
        self.assertLess(before, 50)
        peer.transport.resumeProducing()
        await peer.lines(100)

    async def test_close_flushes_and_removes_the_file(self):
        listening = await self.listen()
        peer = await self.connect()
        peer.transport.write(b"quit\n")
        await peer.lines(1)
        await listening.close()
        self.assertFalse(self.path.exists())
        self.assertEqual(await peer.ended, b"quit!\n")
        await self.echo.ended

    async def test_close_from_within_an_answer(self):
        class Quitter(Echo):
            async def answer(self, line):
                self.closing = Deferred.fromCoroutine(listening.close())
                return b"bye"

        quitter = Quitter()
        listening = await self.listen(quitter)
        peer = await self.connect()
        peer.transport.write(b"quit\n")
        self.assertEqual(await peer.ended, b"bye\n")
        await quitter.closing
        await quitter.ended

    async def test_close_twice_and_without_the_file(self):
        listening = await self.listen()
        self.path.unlink()
        await listening.close()
        await listening.close()
        self.assertFalse(self.path.exists())

    async def test_a_stale_socket_is_replaced(self):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(self.path))
        await self.listen()
        peer = await self.connect()
        peer.transport.write(b"a\n")
        self.assertEqual(await peer.lines(1), b"a!\n")

    async def test_a_file_that_is_no_socket_stays(self):
        self.path.write_text("precious")
        with self.assertRaises(BackendFailed):
            await self.listen()
        self.assertEqual(self.path.read_text(), "precious")

    async def test_a_path_that_is_too_long(self):
        self.path = self.path.parent / ("x" * 120)
        with self.assertRaises(BackendFailed):
            await self.listen()

    def turn(self):
        """One round of the reactor."""
        done = Deferred()
        reactor.callLater(0, done.callback, None)
        return done
