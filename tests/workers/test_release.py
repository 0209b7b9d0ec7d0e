"""Workers of an earlier daemon, whose program was another release."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any
from unittest.mock import Mock

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.ports.holding import Kept
from mtunnel_tx.stream.flow import Flow, FlowTerms
from mtunnel_tx.stream.reactorrelay import ReactorRelay
from mtunnel_tx.workers.carried import ToldFlow
from mtunnel_tx.workers.channel import make_pair
from mtunnel_tx.workers.pool import BEAT_S, WorkerPool
from mtunnel_tx.workers.process.service import WorkerService
from mtunnel_tx.workers.program import RELEASE, WORKER
from mtunnel_tx.workers.worker import MOST_MISSED
from tests.tunnel.test_adoption import FakeStore
from tests.workers.test_workers import FILES, FakeChild, Reactor


class ReleaseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor, self.store = Reactor(), FakeStore()
        self.begun: list[FakeChild] = []
        here = ReactorRelay(self.reactor)
        self.pool = WorkerPool(self.reactor, count=1, spawn=self.spawn, here=here, handshake_s=7)
        self.addCleanup(lambda: self.successResultOf(Deferred.fromCoroutine(self.pool.stop())))

    def spawn(self, channel: int, _store: object) -> FakeChild:
        self.begun.append(FakeChild(self.reactor, channel))
        self.begun[-1].name = f"{WORKER}new"
        return self.begun[-1]

    def find(self, release: str) -> FakeChild:
        """One that an earlier daemon has left, when all workers are ready."""
        child = self.lay(release)
        started = self.start()
        self.reactor.spin()
        for one in (child, *self.begun):
            one.channel.send({"ready": True})
        self.reactor.spin()
        self.successResultOf(started)
        return child

    def lay(self, release: str) -> FakeChild:
        name = f"{WORKER}1"
        ours, theirs = make_pair()
        child: Any = FakeChild(self.reactor, theirs.fileno())
        child.name = name
        theirs.close()
        self.store.put(name, release, [ours])
        ours.close()
        self.store.children[name] = child
        return child

    def start(self) -> Deferred[None]:
        """Of a daemon that goes on."""
        names = tuple(self.store.entries)
        kept = Kept(names=names, programs=names)
        finder: Any = partial(lambda _relay: None)
        self.successResultOf(Deferred.fromCoroutine(self.pool.go_on(self.store, kept, finder)))
        return Deferred.fromCoroutine(self.pool.start(FILES))

    def miss_beats(self) -> None:
        for _ in range(MOST_MISSED + 1):
            self.reactor.advance(BEAT_S)

    def test_streams_of_an_earlier_daemon_count(self) -> None:
        self.find(RELEASE)
        for is_urgent in (True, False):
            job = Mock(spec=ToldFlow, is_adopted=True, is_urgent=is_urgent, kept=Mock(worker=1))
            self.pool.relay._running.add(Flow(self.pool.relay, socket.socket(), FlowTerms()), job)
        self.assertEqual(self.pool.status(), [{"pid": 1, "connections": 2, "busy": 1}])
        self.pool.relay._running._jobs.clear()

    def test_the_same_release(self) -> None:
        child = self.find(RELEASE)
        self.assertEqual((self.begun, list(child.heard[0])), ([], ["certificate", "key", "handshake_s"]))
        self.assertEqual(self.pool.status(), [{"pid": 1, "connections": 0, "busy": 0}])

    def test_another_release_carries_on_what_it_has(self) -> None:
        """It gets no connections; another worker does, and nobody comes for it when it ends."""
        child = self.find("0.0.1, /old")
        self.assertEqual(child.heard, [{"retire": True}])
        worker = self.pool.find()
        assert worker is not None
        self.assertIs(worker.child, self.begun[0])
        self.successResultOf(Deferred.fromCoroutine(child.kill()))
        self.reactor.advance(60)
        self.assertEqual((len(self.begun), list(self.store.entries)), (1, [f"{WORKER}new"]))

    def test_one_that_has_ended_while_no_daemon_ran(self) -> None:
        """The start needs nothing of it, and another one takes its place."""
        child = self.lay(RELEASE)
        self.successResultOf(Deferred.fromCoroutine(child.kill()))
        self.successResultOf(self.start())
        self.reactor.advance(1)
        self.begun[0].channel.send({"ready": True})
        self.reactor.spin()
        self.assertEqual(len(self.pool.status()), 1)

    def test_one_whose_entry_is_damaged(self) -> None:
        """It ends, as nobody adopts it."""
        self.lay(RELEASE)
        self.store.entries[f"{WORKER}1"] = (RELEASE, [])
        started = self.start()
        self.begun[0].channel.send({"ready": True})
        self.reactor.spin()
        self.successResultOf(started)

    def test_one_that_hangs(self) -> None:
        child = self.lay(RELEASE)
        self.successResultOf(self.start())
        self.assertIs(self.pool.find(), None)
        self.miss_beats()
        self.assertTrue(child.killed)
        self.reactor.advance(1)
        self.assertEqual(len(self.begun), 1)

    def test_one_of_another_release_that_hangs(self) -> None:
        child = self.find("0.0.1, /old")
        self.miss_beats()
        self.assertTrue(child.killed)


class ShortOfDescriptorsTests(SynchronousTestCase):
    def test_a_connection_whose_sockets_did_not_come(self) -> None:
        """It ends; the worker, and what it carries, does not."""
        reactor, ended = Reactor(), Deferred[None]()
        ours, theirs = make_pair()
        relay: Any = ReactorRelay(reactor)
        service = WorkerService(reactor, theirs, relay, lambda: ended.callback(None))
        self.addCleanup(service._channel.close)
        one, other = socket.socketpair()
        with ours, one:
            for sockets in ([], [other.fileno()]):
                socket.send_fds(ours, [b'{"connection": true}'], sockets)
                reactor.spin()
            other.close()
            self.assertEqual(one.recv(1), b"")
            self.assertNoResult(ended)
