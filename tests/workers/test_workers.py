"""The daemon's side of its workers, with children that do nothing by themselves."""

from __future__ import annotations

import errno
import gc
import json
import os
import socket
from pathlib import Path
from typing import ClassVar

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.stream.flow import FlowTerms
from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.stream.parkedvalue import ParkedValue, ParkedWay
from mtunnel_tx.stream.reactorrelay import ReactorRelay
from mtunnel_tx.tls.certificate import Certificate
from mtunnel_tx.wire.frames import Role
from mtunnel_tx.workers import channel
from mtunnel_tx.workers.channel import (
    MESSAGE_BYTES,
    MOST_SOCKETS,
    MessageChannel,
    Nonsense,
    close_unasked,
    make_pair,
    read_count,
)
from mtunnel_tx.workers.parking import StoredFlow, read_parked, read_value, write_value
from mtunnel_tx.workers.pool import BEAT_S, WorkerPool
from mtunnel_tx.workers.terms import read_terms, write_terms
from mtunnel_tx.workers.worker import MOST_MISSED

FILES = Certificate(b"the certificate", b"the key")


class Reactor(MemoryReactorClock):
    """Sockets are ready when a test says so."""

    def spin(self) -> None:
        """Let everybody read what there is."""
        for reader in list(self.readers):
            reader.doRead()


class FakeChild:
    """Ends when it is killed; `heard` is what its channel brought."""

    def __init__(self, reactor: Reactor, channel: int) -> None:
        self.pid = 1
        self.name = ""
        self.heard: list[object] = []
        self.killed = False
        self._end: Deferred[None] = Deferred()
        sock = socket.socket(fileno=os.dup(channel))
        self.channel = MessageChannel(reactor, sock, lambda message, _: self.heard.append(message), lambda: None)

    async def next_line(self, wait_s: float) -> str | None:
        await self._end
        return None

    def exhausted(self) -> bool:
        return self.killed

    async def ended(self) -> int:
        return -9

    async def kill(self) -> None:
        self.killed = True
        self.channel.close()
        if not self._end.called:
            self._end.callback(None)


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class WorkerPoolTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.children: list[FakeChild] = []
        self.refusal: BackendFailed | None = None
        here = ReactorRelay(self.reactor)
        self.pool = WorkerPool(self.reactor, count=2, spawn=self.spawn, here=here, handshake_s=7)
        self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(self.pool.stop())))

    def spawn(self, channel: int, store: object) -> FakeChild:
        if self.refusal is not None:
            raise self.refusal
        self.children.append(FakeChild(self.reactor, channel))
        return self.children[-1]

    def start(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.pool.start(FILES))

    def be_ready(self) -> None:
        for child in self.children:
            child.channel.send({"ready": True})
        self.reactor.spin()

    def end(self, child: FakeChild) -> None:
        self.successResultOf(Deferred.fromCoroutine(child.kill()))

    def test_it_starts_when_all_are_ready(self) -> None:
        started = self.start()
        self.reactor.spin()
        self.assertNoResult(started)
        self.assertEqual(self.pool.status(), [])
        self.be_ready()
        self.successResultOf(started)
        told = {"certificate": "the certificate", "key": "the key", "handshake_s": 7}
        self.assertEqual([child.heard for child in self.children], [[told], [told]])
        self.assertEqual(self.pool.status(), [{"pid": 1, "connections": 0, "busy": 0}] * 2)

    def test_one_that_ends_at_once(self) -> None:
        started = self.start()
        self.end(self.children[1])
        failure = self.failureResultOf(started, BackendFailed)
        self.assertEqual(failure.value.text, "worker process cannot start: it said nothing")

    def test_it_cannot_start(self) -> None:
        self.refusal = BackendFailed("no")
        self.assertEqual(self.failureResultOf(self.start(), BackendFailed).value.text, "no")

    def test_another_certificate(self) -> None:
        self.start()
        self.be_ready()
        self.pool.certify(Certificate(b"new", b"key"))
        self.reactor.spin()
        self.assertEqual([child.heard[-1]["certificate"] for child in self.children], ["new", "new"])

    def test_one_that_ends_is_started_again_later_and_later(self) -> None:
        self.start()
        self.be_ready()
        for delay_s in (0.1, 0.2, 0.4):
            count = len(self.children)
            self.end(self.children[-1])
            self.reactor.advance(delay_s * 0.9)
            self.assertEqual(len(self.children), count)
            self.reactor.advance(delay_s * 0.2)
            self.assertEqual(len(self.children), count + 1)
        self.be_ready()
        self.assertEqual(len(self.pool.status()), 2)

    def test_one_that_cannot_be_started_again_is_tried_again(self) -> None:
        self.start()
        self.be_ready()
        self.refusal = BackendFailed("no memory")
        self.end(self.children[0])
        self.reactor.advance(0.11)
        self.refusal = None
        self.reactor.advance(0.21)
        self.assertEqual(len(self.children), 3)

    def test_one_that_says_nothing_is_killed(self) -> None:
        self.start()
        self.be_ready()
        for _ in range(MOST_MISSED + 1):
            self.children[0].channel.send({"alive": True})
            self.reactor.spin()
            self.reactor.advance(BEAT_S)
        self.assertEqual([child.killed for child in self.children[:2]], [False, True])

    def test_one_that_talks_nonsense_is_killed(self) -> None:
        """Or one that has closed its channel, and lives on."""
        self.start()
        self.be_ready()
        for child, data in zip(self.children, (b"nonsense", b""), strict=True):
            child.channel._sock.send(data) if data else child.channel.close()
        self.reactor.spin()
        self.assertEqual([child.killed for child in self.children[:2]], [True, True])
        self.reactor.advance(0.11)
        self.assertEqual(len(self.children), 4)

    def test_after_a_long_sleep_nobody_is_killed(self) -> None:
        self.start()
        self.be_ready()
        self.reactor.advance(BEAT_S * 100)
        self.assertEqual([child.killed for child in self.children], [False, False])


class TermsTests(SynchronousTestCase):
    def test_a_worker_runs_a_flow_on_the_daemons_terms(self) -> None:
        times = {"half_close_s": 1, "stall_s": 2, "dead_peer_s": 3, "linger_s": 4, "ping_s": 9}
        limits = FlowLimits(rate_bytes_s=5, frame_bytes=6, **times)
        terms = FlowTerms(urgent=True, role=Role.CLIENT, ends_with_local=True, ends_with_peer=True, limits=limits)
        message = json.loads(json.dumps(write_terms(terms)))
        self.assertEqual(read_terms(message, terms.closed), terms)


class ParkedTests(SynchronousTestCase):
    """What a worker gives back: checked, as somebody may have taken it over to reach the next one."""

    WAY: ClassVar[dict[str, object]] = {"sender": "OPEN", "done": False}
    GOOD: ClassVar[dict[str, object]] = {
        "inward": WAY,
        "outward": WAY,
        "taken": 5,
        "sent": 9,
        "acked": 6,
        "ended_at": None,
        "is_end_passed": False,
        "is_end_delivered": False,
    }

    def parked(self, kept: bytes = b"abc", *, seals: bool = True, **other: object) -> StoredFlow:
        way = ParkedWay(sender="OPEN", done=False)
        ends = {"is_end_passed": False, "is_end_delivered": False, "ended_at": None}
        value = ParkedValue(inward=way, outward=way, taken=5, sent=9, acked=6, kept=kept, **ends)
        _, file = write_value(value)
        if not seals:
            file = os.fdopen(os.memfd_create("x"), "w+b")
            file.write(kept)
            file.flush()
        self.addCleanup(file.close)
        message = {"in": 5, "out": 9, "reason": "reset", "value": {**self.GOOD, **other}}
        return read_parked(message, [file], 1 << 20)

    def test_it_goes_on_with_the_same_value(self) -> None:
        parked = self.parked()
        self.assertEqual((parked.kept_bytes, parked.bytes_in, parked.reason), (3, 5, "reset"))
        value = read_value(parked.numbers, parked.file)
        self.assertEqual((value.kept, value.taken, value.inward), (b"abc", 5, ParkedWay(sender="OPEN", done=False)))

    def test_everything_else_is_nonsense(self) -> None:
        self.assertRaises(Nonsense, self.parked, seals=False)
        self.assertRaises(Nonsense, self.parked, b"abcd")
        for other in ({"acked": 10}, {"sent": 1 << 40}, {"taken": -1}, {"ended_at": 3}, {"inward": {"sender": "X"}}):
            self.assertRaises(Nonsense, self.parked, **other)
        for message in ({}, {"value": 5}, {"value": self.GOOD}):
            self.assertRaises(Nonsense, read_parked, message, [], 1 << 20)


class ChannelTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.heard: list[tuple[object, list[socket.socket]]] = []
        self.closed: list[str] = []
        ours, theirs = make_pair()
        self.here = MessageChannel(self.reactor, ours, self.hear, lambda: self.closed.append("here"))
        self.there = MessageChannel(self.reactor, theirs, self.hear, lambda: self.closed.append("there"))
        self.addCleanup(self.here.close)
        self.addCleanup(self.there.close)

    def hear(self, message: object, sockets: list[socket.socket]) -> None:
        self.heard.append((message, sockets))

    def test_sockets_come_along(self) -> None:
        one, other = socket.socketpair()
        with one:
            with other:
                self.here.send({"a": 1}, [other])
            self.reactor.spin()
            [(message, [received])] = self.heard
            with received:
                received.send(b"x")
                self.assertEqual((message, one.recv(9)), ({"a": 1}, b"x"))

    def test_nonsense_ends_it_and_leaves_nothing_open(self) -> None:
        gc.collect()  # what other tests have left must not be closed in between
        before = open_descriptors()
        for data in (b"nonsense", b"[]", b"[" * 100_000, b'"text"', b"{}"):
            ours, theirs = make_pair()
            MessageChannel(self.reactor, ours, self.hear, lambda: self.closed.append("nonsense"))
            with theirs, Path(os.devnull).open("rb") as file:
                socket.send_fds(theirs, [data], [file.fileno()])
                self.reactor.spin()
        self.assertEqual((self.heard, self.closed), ([], ["nonsense"] * 5))
        self.assertEqual(open_descriptors(), before)

    def test_a_message_of_which_the_rest_is_lost(self) -> None:
        """What has come of it may look like a whole one."""
        ours, theirs = make_pair()
        MessageChannel(self.reactor, ours, self.hear, lambda: self.closed.append("long"))
        with theirs, capturedLogs() as events:
            theirs.send(b"{}" + b" " * MESSAGE_BYTES)
            self.reactor.spin()
        self.assertEqual((self.heard, self.closed), ([], ["long"]))
        self.assertIn("a message is longer than 131072 bytes", str([formatEvent(event) for event in events]))

    def test_counts_that_are_none(self) -> None:
        for count in (None, -1, True, 1.5, "1", [], 1 << 63):
            with self.assertRaises(Nonsense):
                read_count({"in": count}, "in")
        self.assertEqual(read_count({"in": 5}, "in"), 5)

    def test_sockets_that_nobody_asked_for(self) -> None:
        one, other = socket.socketpair()
        with one, self.assertRaises(Nonsense):
            close_unasked([other])
        self.assertEqual(other.fileno(), -1)

    def test_a_message_that_is_too_long(self) -> None:
        with self.assertRaises(OSError):
            self.here.send({"a": "x" * MESSAGE_BYTES})
        self.here.send({"b": 1})
        self.reactor.spin()
        self.assertEqual([message for message, _ in self.heard], [{"b": 1}])

    def test_a_message_that_is_lost(self) -> None:
        """Nothing may come after it."""

        def refuse(*_: object) -> None:
            raise OSError(errno.ETOOMANYREFS, "too many references")

        patch = self.patch(socket, "send_fds", refuse)
        self.here.send({"a": 1})
        patch.restore()
        self.here.send({"b": 2})
        self.reactor.advance(0)
        self.reactor.spin()
        self.assertEqual((self.heard, self.closed), ([], ["here", "there"]))

    def test_descriptors_that_do_not_fit(self) -> None:
        """The message comes without them."""
        before = open_descriptors()
        with Path(os.devnull).open("rb") as file:
            socket.send_fds(self.here.sock, [b"{}"], [file.fileno()] * (MOST_SOCKETS + 3))
            self.reactor.spin()
        self.assertEqual((self.heard, open_descriptors()), ([({}, [])], before))

    def test_one_that_never_stops_talking(self) -> None:
        """What was not taken yet comes later."""
        self.patch(channel, "MOST_DRAINED", 5)
        for number in range(8):
            self.there.send({"number": number})
        self.here.drain()
        self.assertEqual(len(self.heard), 5)

    def test_what_is_said_before_the_end_is_heard(self) -> None:
        """Also where the other end takes it later than the kernel can hold it."""
        for number in range(3000):
            self.here.send({"number": number, "more": "x" * 1000})
        self.here.finish()
        self.assertEqual(self.closed, [])
        while "there" not in self.closed:
            for writer in list(self.reactor.writers):
                writer.doWrite()
            self.reactor.spin()
        self.assertEqual([message["number"] for message, _ in self.heard], list(range(3000)))
