"""Lines over a socket: limits, order, what is left at the end."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.config import Limits
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

    def accepted(self, sock):
        """Nothing is noted here."""

    def heard(self, data):
        """Nothing is noted here."""


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
