"""Flows that a worker has gone on with while there was no daemon."""

from __future__ import annotations

import json
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.ports.holding import FlowPositions, Kept
from mtunnel_tx.stream.reactorrelay import ReactorRelay
from mtunnel_tx.wire.socketkinds import DISK_IMPORT
from mtunnel_tx.workers.channel import make_pair
from mtunnel_tx.workers.living import find_flows
from mtunnel_tx.workers.relay import WORKER_ENDED, WorkerRelay
from tests.patience import patience_s
from tests.tunnel.test_adoption import FakeStore
from tests.workers.test_workers import Reactor


class FakeRoute:
    """Notes how its flow ended."""

    kind = DISK_IMPORT

    def __init__(self) -> None:
        self.flow: Any = None
        self.ends: list[bool] = []

    def opened(self, flow: Any) -> None:
        self.flow = flow

    async def closed(self, *, orderly: bool) -> None:
        self.ends.append(orderly)


class LivingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor, self.store, self.route = Reactor(), FakeStore(), FakeRoute()
        self.relay = WorkerRelay(self.reactor, ReactorRelay(self.reactor), lambda _: None, lambda *_: None)
        self.relay.store = self.store
        ours, self.worker = make_pair()
        self.local, self.importer = socket.socketpair()
        for sock in (self.worker, self.local, self.importer):
            self.addCleanup(sock.close)
        self.worker.settimeout(patience_s())
        self.put("flow/1", [], ours, self.local)
        ours.close()

    def put(self, name: str, told: list[Any], *sockets: socket.socket) -> None:
        self.store.put(name, {"vmid": 100, "suffix": ".storage", "told": told}, sockets)

    def find(self) -> Any:
        found = Deferred.fromCoroutine(
            find_flows(self.reactor, self.relay, self.store, Kept(names=tuple(self.store.entries)))
        )
        (self.found,) = self.successResultOf(found)
        self.local.close()
        return self.found

    def say(self, **message: Any) -> None:
        self.worker.send(json.dumps({"in": 1, "out": 2, **message}).encode())
        self.reactor.spin()

    def test_positions_are_asked_for(self) -> None:
        asked = Deferred.fromCoroutine(self.find().positions())
        self.assertEqual(json.loads(self.worker.recv(4096)), {"ask": True})
        self.say(taken=3, queued=4, asked=True)
        self.assertEqual(self.successResultOf(asked), FlowPositions(taken_bytes=3, sent_bytes=2, queued_bytes=4))

    def test_a_flow_that_ends_in_order(self) -> None:
        self.find().adopt(self.route)
        for event in ("local", "peer", "closed"):
            self.say(over=event, reason=None)
        self.assertEqual((self.route.ends, self.route.flow.bytes_out), ([True], 2))
        self.worker.close()
        self.reactor.spin()
        self.assertEqual(self.store.entries, {})

    def test_what_was_said_before_anybody_listened(self) -> None:
        """Then the worker has closed the flow's channel."""
        self.find()
        for event in ("local", "peer", "closed"):
            self.say(over=event, reason=None)
        self.worker.close()
        self.reactor.spin()
        self.found.adopt(self.route)
        self.assertEqual((self.route.ends, self.store.entries), ([True], {}))

    def test_what_the_daemon_before_has_heard(self) -> None:
        self.store.entries["flow/1"][0]["told"].append(["local", "it broke"])
        self.find().adopt(self.route)
        self.assertEqual((self.route.ends, self.route.flow.reason), ([False], "it broke"))

    def test_its_worker_has_ended_meanwhile(self) -> None:
        """An importer hears of that before its input ends."""
        self.find()
        self.worker.close()
        self.reactor.spin()
        self.failureResultOf(Deferred.fromCoroutine(self.found.positions()), BackendFailed)
        self.found.adopt(self.route)
        self.assertEqual((self.route.ends, self.route.flow.reason), ([False], WORKER_ENDED))

    def test_nobody_wants_it(self) -> None:
        self.find().abandon()
        self.assertEqual((self.worker.recv(1), self.store.entries), (b"", {}))

    def test_what_cannot_be_understood_is_dropped(self) -> None:
        self.store.entries["flow/1"] = ("nonsense", [])
        found = Deferred.fromCoroutine(find_flows(self.reactor, self.relay, self.store, Kept(names=("flow/1",))))
        self.assertEqual((list(self.successResultOf(found)), self.store.entries), ([], {}))
