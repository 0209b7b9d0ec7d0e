"""The command connection: order, bounds, and every way it can end."""

import json
import socket
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mtunnel_tx.config import Limits
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.net.control import listen_control
from mtunnel_tx.net.linesocket import FLUSH_S, LineConnection

LIMITS = Limits(line_bytes=20, queued_lines=4, queued_bytes=40)


class Echo:
    """Answers `LINE!`; lines that start with `slow` wait until they are released."""

    def __init__(self, free=True):
        self.free = free
        self.lines = []
        self.slow = []
        self.connections = 0
        self.ended = Deferred()

    async def answer(self, line):
        self.lines.append(line)
        if line.startswith(b"slow"):
            wait = Deferred()
            self.slow.append(wait)
            await wait
        return line + b"!"

    def release(self):
        waiting, self.slow = self.slow, []
        for wait in waiting:
            wait.callback(None)

    def connected(self):
        self.connections += 1
        return self.free or self.connections == 1

    def disconnected(self):
        self.ended.callback(None)


class Transport(StringTransport):
    """Remembers what a socket would have been told."""

    aborted = False

    def abortConnection(self):
        self.aborted = True
        self.disconnecting = True


class LineConnectionTests(SynchronousTestCase):
    def setUp(self):
        self.connect(LIMITS)

    def connect(self, limits):
        self.clock = Clock()
        self.echo = Echo()
        self.connection = LineConnection(self.clock, self.echo, limits, lambda _: self.echo.disconnected())
        self.transport = Transport()
        self.connection.makeConnection(self.transport)

    def take(self):
        data = self.transport.value()
        self.transport.clear()
        return data

    def hang_up(self, reason=ConnectionDone):
        self.connection.connectionLost(Failure(reason()))

    def test_one_line_one_reply(self):
        self.connection.dataReceived(b"version\n")
        self.assertEqual(self.take(), b"version!\n")

    def test_a_carriage_return_belongs_to_the_line(self):
        self.connection.dataReceived(b"version\r\n")
        self.assertEqual(self.echo.lines, [b"version\r"])

    def test_empty_lines_are_lines(self):
        self.connection.dataReceived(b"\n\n")
        self.assertEqual(self.take(), b"!\n!\n")

    def test_replies_keep_their_order_behind_a_slow_command(self):
        self.connection.dataReceived(b"slow\nquick\n")
        self.assertEqual((self.echo.lines, self.take()), ([b"slow"], b""))
        self.echo.release()
        self.assertEqual(self.take(), b"slow!\nquick!\n")

    def test_pauses_only_while_the_queue_is_full(self):
        self.connection.dataReceived(b"slow\n" + b"a\n" * 3)
        self.assertEqual(self.transport.producerState, "producing")
        self.connection.dataReceived(b"b\nc\nd\n")
        self.assertEqual(self.transport.producerState, "paused")
        self.echo.release()
        self.assertEqual(self.transport.producerState, "producing")
        self.assertEqual(self.take(), b"slow!\na!\na!\na!\nb!\nc!\nd!\n")

    def test_pauses_by_bytes_too(self):
        self.connection.dataReceived(b"slow\n" + b"x" * 20 + b"\n")
        self.assertEqual(self.transport.producerState, "producing")
        self.connection.dataReceived(b"y" * 20 + b"\n")
        self.assertEqual(self.transport.producerState, "paused")
        self.echo.release()
        self.assertEqual(self.transport.producerState, "producing")

    def test_the_longest_line(self):
        self.connection.dataReceived(b"x" * 20 + b"\n")
        self.assertEqual(self.echo.lines, [b"x" * 20])

    def test_an_overlong_line_is_answered_in_its_turn_and_skipped(self):
        for split in range(1, 40):
            self.connect(LIMITS)
            data = b"one\n" + b"x" * 21 + b"\ntwo\n"
            self.connection.dataReceived(data[:split])
            self.connection.dataReceived(data[split:])
            replies = self.take().splitlines()
            self.assertEqual((replies[0], replies[2]), (b"one!", b"two!"), split)
            refusal = {"success": False, "msg": "failed to parse command - line longer than 20 bytes"}
            self.assertEqual(json.loads(replies[1]), refusal)
            self.assertEqual(len(replies), 3)

    def test_an_endless_line_takes_no_memory(self):
        self.connection.dataReceived(b"slow\n")
        for _ in range(1000):
            self.connection.dataReceived(b"x" * 100)
        self.assertEqual(self.connection.clearLineBuffer(), b"")
        self.connection.dataReceived(b"\nend\n")
        self.echo.release()
        self.assertEqual(self.echo.lines, [b"slow", b"end"])

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=12), st.data())
    def test_any_split_gives_the_same_replies(self, lines, data):
        self.connect(LIMITS)
        stream = b"".join(line + b"\n" for line in lines)
        while stream:
            size = data.draw(st.integers(1, len(stream)))
            self.connection.dataReceived(stream[:size])
            stream = stream[size:]
        expected = [line + b"!" if len(line) <= 20 else b"{" for line in lines]
        replies = self.take().split(b"\n")[:-1]
        self.assertEqual([b"{" if reply.startswith(b'{"msg') else reply for reply in replies], expected)

    def test_takes_no_more_lines_while_nobody_reads_the_replies(self):
        self.transport.producer.pauseProducing()
        self.connection.dataReceived(b"a\nb\nc\nd\ne\nf\n")
        self.assertEqual(self.echo.lines, [b"a"])
        self.assertEqual(self.transport.producerState, "paused")
        self.transport.producer.resumeProducing()
        self.assertEqual(self.echo.lines, [b"a", b"b", b"c", b"d", b"e", b"f"])

    def test_many_lines_leave_room_for_others(self):
        self.connect(Limits())
        self.connection.dataReceived(b"x\n" * 1000)
        self.assertLess(len(self.echo.lines), 100)
        while self.clock.getDelayedCalls():
            self.clock.advance(0)
        self.assertEqual(self.take(), b"x!\n" * 1000)

    def test_half_close_works_the_queue_off(self):
        self.connection.dataReceived(b"slow\ntwo\n")
        self.connection.readConnectionLost()
        self.assertFalse(self.transport.disconnecting)
        self.echo.release()
        self.assertEqual(self.take(), b"slow!\ntwo!\n")
        self.assertTrue(self.transport.disconnecting)
        self.assertNoResult(self.echo.ended)
        self.hang_up()
        self.successResultOf(self.echo.ended)

    def test_an_unterminated_last_line_counts(self):
        self.connection.dataReceived(b"one\nlast")
        self.connection.readConnectionLost()
        self.assertEqual(self.take(), b"one!\nlast!\n")
        self.assertTrue(self.transport.disconnecting)

    def test_the_rest_of_an_overlong_line_is_no_line(self):
        self.connection.dataReceived(b"x" * 30)
        self.connection.readConnectionLost()
        self.assertEqual(self.take().count(b"\n"), 1)
        self.assertEqual(self.echo.lines, [])

    def test_half_close_never_resumes_reading(self):
        self.connection.dataReceived(b"slow\nb\nc\nd\n")
        self.connection.readConnectionLost()
        self.transport.pauseProducing()
        self.echo.release()
        self.assertEqual(self.transport.producerState, "paused")
        self.assertEqual(self.echo.lines, [b"slow", b"b", b"c", b"d"])

    def test_after_a_reset_only_the_line_in_work_finishes(self):
        self.connection.dataReceived(b"slow\ntwo\n")
        self.hang_up(ConnectionLost)
        self.assertNoResult(self.echo.ended)
        self.echo.release()
        self.successResultOf(self.echo.ended)
        self.assertEqual((self.echo.lines, self.take()), ([b"slow"], b""))

    def test_a_reset_while_replies_wait(self):
        self.connection.dataReceived(b"a\n")
        self.transport.producer.pauseProducing()
        self.connection.dataReceived(b"b\nc\n")
        self.hang_up(ConnectionLost)
        self.successResultOf(self.echo.ended)
        self.assertEqual(self.echo.lines, [b"a", b"b"])

    def test_a_peer_that_leaves_its_last_replies_is_dropped(self):
        self.connection.dataReceived(b"a\n")
        self.connection.readConnectionLost()
        self.clock.advance(LIMITS.half_close_s)
        self.assertTrue(self.transport.aborted)

    def test_close_sends_what_was_replied(self):
        self.connection.dataReceived(b"slow\ntwo\n")
        gone = self.connection.close()
        self.assertFalse(self.transport.disconnecting)
        self.echo.release()
        self.assertEqual(self.take(), b"slow!\n")
        self.assertTrue(self.transport.disconnecting)
        self.assertNoResult(gone)
        self.hang_up()
        self.successResultOf(gone)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_close_waits_for_a_peer_only_so_long(self):
        self.connection.dataReceived(b"slow\n")
        self.connection.close()
        self.clock.advance(FLUSH_S)
        self.assertTrue(self.transport.aborted)

    def test_lines_after_close_are_not_taken(self):
        self.connection.dataReceived(b"slow\n")
        self.connection.close()
        self.connection.dataReceived(b"late\n")
        self.echo.release()
        self.assertEqual(self.echo.lines, [b"slow"])

    def test_a_bug_in_the_answerer_ends_the_connection(self):
        async def fail(line):
            raise ZeroDivisionError

        self.echo.answer = fail
        self.connection.dataReceived(b"a\nb\n")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(self.transport.disconnecting)
        self.hang_up()
        self.successResultOf(self.echo.ended)


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
    timeout = 20

    def setUp(self):
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "100.mtunnel"
        self.echo = Echo()

    async def listen(self, answerer=None, limits=None):
        listening = await listen_control(reactor, self.path, answerer or self.echo, limits)
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
