"""Flows that a worker has gone on with while there was no daemon."""

from __future__ import annotations

import gc
import json
import os
import socket
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import BackendFailed, WrongState
from mtunnel_tx.http.resumptions import ResumeLimits, Resumptions
from mtunnel_tx.http.upgrade import make_terms
from mtunnel_tx.ports.holding import FlowPositions, Kept
from mtunnel_tx.stream.flow import Flow, FlowTerms
from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.stream.reactorrelay import ReactorRelay
from mtunnel_tx.wire.resuming import AttachClaim, make_key
from mtunnel_tx.wire.socketkinds import DISK_IMPORT
from mtunnel_tx.workers.carried import LONGEST_REASON, OBEY_S, WORKER_ENDED
from mtunnel_tx.workers.channel import VERSION, make_pair
from mtunnel_tx.workers.living import ANSWER_S, MOST_HEARD, Finder, find_flows
from mtunnel_tx.workers.parking import RUNNING, begin_stored, write_stored, write_value
from mtunnel_tx.workers.relay import WorkerRelay
from tests.fakes import TOKEN
from tests.patience import patience_s
from tests.tunnel.test_adoption import FakeStore
from tests.workers.test_relay import VALUE
from tests.workers.test_workers import Reactor

LASTING = {"id": "name", "generation": 7, "window_bytes": 1 << 20, "park_s": 60.0}


class FakeRoute:
    """Notes how its flow ended."""

    kind, vmid, token, upid = DISK_IMPORT, 100, TOKEN, "UPID:x"

    def __init__(self) -> None:
        self.flow: Any = None
        self.ends: list[bool] = []
        self.losses: list[str] = []
        self.waited_s = 0.0

    def parked(self, reason: str, waited_s: float) -> None:
        self.losses.append(reason)
        self.waited_s = waited_s

    def opened(self, flow: Any) -> None:
        self.flow = flow

    async def closed(self, *, orderly: bool) -> None:
        self.ends.append(orderly)


class LivingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor, self.store, self.route = Reactor(), FakeStore(), FakeRoute()
        self.disobeyed: list[int] = []
        self.relay = WorkerRelay(self.reactor, ReactorRelay(self.reactor), self.disobeyed.append, lambda *_: 0)
        self.relay.store = self.store
        self.resumptions = Resumptions(self.reactor, bytes(32), os.urandom, ResumeLimits())
        ours, self.worker = make_pair()
        self.local, self.importer = socket.socketpair()
        for sock in (self.worker, self.local, self.importer):
            self.addCleanup(sock.close)
        self.worker.settimeout(patience_s())
        self.put("flow/1", [], ours, self.local)
        ours.close()

    def tearDown(self) -> None:
        """Nothing stays open for the test that counts what is open."""
        for name in list(self.store.entries):
            self.store.drop(name)
        gc.collect()

    def put(self, name: str, told: list[Any], *sockets: Any, **more: Any) -> None:
        value = {"version": VERSION, "vmid": 100, "suffix": ".storage", "told": told, "has": ("channel", "local")}
        self.store.put(name, {**value, "resume": None, "parked": None, "runs": False, **more}, sockets)

    @property
    def finder(self) -> Finder:
        terms = partial(make_terms, limits=FlowLimits())
        return Finder(reactor=self.reactor, relay=self.relay, resumptions=self.resumptions, terms=terms)

    def find(self, *, terms: bool = True, **more: Any) -> Any:
        """Args: terms, more: what the worker answers; it has the terms of the flow."""
        finding = Deferred.fromCoroutine(find_flows(self.finder, self.store, Kept(names=tuple(self.store.entries))))
        if not finding.called:
            self.assertEqual(json.loads(self.worker.recv(4096)), {"ask": True})
            self.say(**{"in": 0, "out": 0, "taken": 0, "queued": 0, "asked": True, "terms": terms, **more})
        (self.found,) = self.successResultOf(finding)
        self.local.close()
        return self.found

    def check_unread(self, vmid: int) -> None:
        """It is there until nobody wants it, and nobody can go on with it."""
        finding = Deferred.fromCoroutine(find_flows(self.finder, self.store, Kept(names=("flow/1",))))
        (found,) = self.successResultOf(finding)
        self.failureResultOf(Deferred.fromCoroutine(found.positions()), BackendFailed)
        self.assertRaises(BackendFailed, found.adopt, self.route)
        self.assertEqual((found.vmid, found.suffix), (vmid, ""))
        self.assertEqual(list(self.store.entries), ["flow/1"])
        found.abandon()
        self.assertEqual(self.store.entries, {})

    def say(self, **message: Any) -> None:
        self.worker.send(json.dumps({"in": 1, "out": 2, **message}).encode())
        self.reactor.spin()


class PlainTests(LivingCase):
    def test_positions_are_asked_for(self) -> None:
        asked = Deferred.fromCoroutine(self.find().positions())
        self.reactor.spin()
        self.assertEqual(json.loads(self.worker.recv(4096)), {"ask": True})
        self.say(taken=3, queued=4, asked=True, terms=True)
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

    def test_ends_that_the_daemon_before_has_heard_and_not_kept(self) -> None:
        self.find(ends=[["local", None]]).adopt(self.route)
        self.assertEqual(self.route.ends, [True])

    def test_ends_that_are_none(self) -> None:
        for ends in (5, [5], [["local"]], [["fly", None]], [["local", None]] * 4):
            found = self.find(ends=ends)
            self.failureResultOf(Deferred.fromCoroutine(found.positions()), BackendFailed)
            found.abandon()
            self.setUp()

    def test_a_worker_that_says_too_much(self) -> None:
        self.find()
        for _ in range(MOST_HEARD + 1):
            self.say(over="peer")
        self.failureResultOf(Deferred.fromCoroutine(self.found.positions()), BackendFailed)

    def test_its_worker_does_not_end_it(self) -> None:
        self.store.entries["flow/1"][0]["worker"] = 77
        self.find().adopt(self.route)
        self.assertEqual([len(self.relay.adopted(pid)) for pid in (77, 78)], [1, 0])
        self.route.flow.abort("enough")
        self.reactor.advance(OBEY_S + 1)
        self.assertEqual(self.disobeyed, [77])

    def test_nobody_wants_it(self) -> None:
        self.find().abandon()
        self.assertEqual((self.worker.recv(1), self.store.entries), (b"", {}))

    def test_what_cannot_be_understood(self) -> None:
        self.store.entries["flow/1"] = ("nonsense", [])
        self.check_unread(0)


class ResumableTests(LivingCase):
    def lay(self, *names: str, parked: Any = None, runs: bool = False) -> None:
        """What the daemon before has left: these of channel, UNIX socket and file."""
        self.store.drop("flow/1")
        ours, self.worker = make_pair()
        self.addCleanup(self.worker.close)
        self.worker.settimeout(patience_s())
        files = {"channel": ours, "local": self.local, "file": parked.file if parked else None}
        message = None if parked is None else write_stored(parked)
        named = [files[name] for name in names]
        self.put("flow/1", [], *named, has=names, parked=message, resume=LASTING, runs=runs)
        ours.close()

    def stored(self, since_s: float | None = None) -> Any:
        numbers, file = write_value(VALUE)
        self.addCleanup(file.close)
        return replace(begin_stored(0.0), numbers=numbers, file=file, reason="cut", since_s=since_s)

    def attachable(self) -> Any:
        key = make_key(bytes(32), vmid=100, flow_id="name", token=TOKEN)
        found = self.resumptions.find(100, "name", AttachClaim(key=key, generation=8), TOKEN)
        self.assertRaises(WrongState, found.check, LASTING["generation"])
        return found

    def give_back(self, **more: Any) -> None:
        numbers, file = write_value(VALUE)
        message = {"in": 0, "out": 3, "over": "parked", "reason": "cut", "value": numbers, **more}
        with file:
            socket.send_fds(self.worker, [json.dumps(message).encode()], [file.fileno()])

    def test_one_whose_peer_never_came(self) -> None:
        """The connection was lost before the answer was sent."""
        self.store.drop("flow/1")
        owner = {"vmid": 100, "suffix": ".storage", "resume": LASTING}
        flow = Flow(self.relay, self.local, FlowTerms(window_bytes=1 << 20, owner=lambda: owner))
        self.relay.expect(flow)
        (value, _) = next(iter(self.store.entries.values()))
        self.assertEqual((value["has"], value["resume"], value["runs"]), (("local",), LASTING, False))
        flow.drop()
        self.assertEqual(self.store.entries, {})

    def test_a_parked_one(self) -> None:
        """Its time goes on, and it is forgotten at its end."""
        self.reactor.advance(100)
        self.lay("local", "file", parked=self.stored(since_s=70.0))
        self.find().adopt(self.route)
        self.assertEqual((self.route.losses, self.route.flow.kept_bytes), (["cut"], 3))
        self.assertEqual(self.route.waited_s, 30.0)
        self.attachable()
        self.reactor.advance(29)
        self.assertEqual(self.route.ends, [])
        self.reactor.advance(2)
        self.assertEqual((self.route.ends, self.store.entries), ([False], {}))

    def test_one_that_a_worker_runs(self) -> None:
        self.lay("channel", "local", runs=True)
        self.find().adopt(self.route)
        self.assertEqual(self.route.losses, [])
        self.give_back(at=self.reactor.seconds())
        self.reactor.spin()
        self.assertEqual((self.route.losses, json.loads(self.worker.recv(4096))), (["cut"], {"kept": True}))
        value, _ = self.store.entries["flow/1"]
        self.assertEqual((value["has"], value["resume"]), (("local", "file"), LASTING))
        self.attachable().abort("nobody comes")
        self.assertEqual((self.route.ends, self.store.entries), ([False], {}))

    def test_one_that_was_given_back_while_nobody_was_there(self) -> None:
        self.lay("channel", "local", runs=True)
        self.give_back(at=-50.0)
        self.find().adopt(self.route)
        self.assertEqual((self.route.losses, self.route.flow.kept_bytes), (["cut"], 3))
        self.assertEqual(json.loads(self.worker.recv(4096)), {"kept": True})
        self.reactor.advance(11)
        self.assertEqual(self.route.ends, [False])

    def test_one_that_was_about_to_be_granted(self) -> None:
        """Its peer may have heard of it."""
        self.lay("local")
        self.find().adopt(self.route)
        self.assertEqual((len(self.route.losses), self.route.flow.kept_bytes, self.route.ends), (1, 0, []))
        self.attachable()

    def test_one_that_was_granted_and_has_not_begun(self) -> None:
        """The worker never got its terms: nothing has become of what it was to go on with."""
        self.lay("channel", "local", "file", parked=self.stored())
        self.find(terms=False).adopt(self.route)
        self.assertEqual((self.route.losses, self.route.flow.kept_bytes), (["cut"], 3))

    def test_one_that_was_granted_and_may_begin(self) -> None:
        """What it was to go on with counts until the worker says that it runs."""
        self.lay("channel", "local", "file", parked=self.stored())
        self.find().adopt(self.route)
        self.say(over=RUNNING)
        self.worker.close()
        self.reactor.spin()
        self.assertEqual((self.route.ends, self.route.flow.reason), ([False], WORKER_ENDED))

    def test_one_whose_worker_hangs(self) -> None:
        """It may have begun, and move bytes still: nobody goes on with it from where it was granted."""
        self.lay("channel", "local", "file", parked=self.stored())
        finding = Deferred.fromCoroutine(find_flows(self.finder, self.store, Kept(names=("flow/1",))))
        self.reactor.advance(ANSWER_S + 1)
        (found,) = self.successResultOf(finding)
        self.local.close()
        found.adopt(self.route)
        self.assertEqual((self.route.ends, self.route.losses), ([False], []))
        self.assertEqual((self.route.flow.reason, self.store.entries), (WORKER_ENDED, {}))

    def test_its_worker_has_ended_before_it_ran(self) -> None:
        self.lay("channel", "local", "file", parked=self.stored())
        self.worker.close()
        self.find().adopt(self.route)
        self.assertEqual((self.route.losses, self.route.ends), (["cut"], []))

    def test_one_that_was_said_to_run_to_a_daemon_that_was_killed(self) -> None:
        """It is said once; the worker tells it again when it is asked, or by its counts."""
        for said in ({"runs": True}, {"in": 5}, {"out": 5}):
            self.lay("channel", "local", "file", parked=self.stored())
            self.find(**said).adopt(self.route)
            self.assertIs(self.store.entries["flow/1"][0]["runs"], True, said)
            self.worker.close()
            self.reactor.spin()
            self.assertEqual((self.route.ends, self.route.losses), ([False], []), said)
            self.setUp()

    def test_counts_say_that_it_runs(self) -> None:
        self.lay("channel", "local", "file", parked=self.stored())
        self.find().adopt(self.route)
        self.say()
        self.worker.close()
        self.reactor.spin()
        self.assertEqual(self.route.ends, [False])

    def test_a_reason_that_could_be_anything(self) -> None:
        self.lay("channel", "local", runs=True)
        self.say(over="local", reason="\x1b" + "x" * 5000)
        self.give_back(at=-50.0)
        self.find()
        self.reactor.spin()
        ((event, reason),) = self.store.entries["flow/1"][0]["told"]
        self.assertEqual((event, reason[:2], len(reason)), ("local", "?x", LONGEST_REASON))

    def test_another_version(self) -> None:
        self.lay("local", "file", parked=self.stored())
        self.store.entries["flow/1"][0]["version"] = VERSION + 1
        self.check_unread(100)
