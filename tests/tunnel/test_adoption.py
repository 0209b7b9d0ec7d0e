"""Tunnels that go on in the next daemon, killed at every note and every record of the one before."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.ports.holding import FlowPositions, Kept, Survivors
from mtunnel_tx.tunnel.adoption import LOOK_S
from mtunnel_tx.tunnel.registry import Registry
from tests.fakes import TOKEN, FakeHost, FakeListening
from tests.fakestorage import FakeChild
from tests.tunnel.case import CONFIG, DISK, IMPORT
from tests.tunnel.test_transcript import MemoryNotes


class FakeStore:
    """Keeps sockets and children in memory."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[Any, list[socket.socket]]] = {}
        self.children: dict[str, FakeChild] = {}
        self.watched = False

    def put(self, name: str, value: object, sockets: Any = ()) -> None:
        before = self.entries.get(name, (None, []))[1]
        self.entries[name] = (value, [sock.dup() for sock in sockets] or before)

    async def get(self, name: str) -> tuple[Any, list[socket.socket]]:
        value, sockets = self.entries[name]
        return value, [sock.dup() for sock in sockets]

    def drop(self, name: str) -> None:
        _, sockets = self.entries.pop(name, (None, []))
        for sock in sockets:
            sock.close()

    def adopt(self, name: str, taken: int = 0) -> FakeChild:
        return self.children[name]

    def watch(self) -> None:
        self.watched = True


class FakeFlow:
    """The flow of the command connection in a worker, or another one."""

    def __init__(self, suffix: str, taken: int = 0, sent: int = 0) -> None:
        self.vmid, self.suffix = 100, suffix
        self.now = FlowPositions(taken_bytes=taken, sent_bytes=sent, queued_bytes=0)
        self.bytes_in, self.bytes_out = taken, sent
        self.adopted = self.abandoned = False

    async def positions(self) -> FlowPositions:
        return self.now

    def adopt(self, route: Any) -> None:
        self.adopted = True
        route.opened(self)

    def abandon(self) -> None:
        self.abandoned = not self.adopted

    def abort(self) -> None:
        """Nobody asks for it here."""


class AdoptionCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.fake = FakeHost(self.mktemp())
        self.notes, self.store = MemoryNotes(), FakeStore()
        self.ours, theirs = socket.socketpair()
        self.addCleanup(self.ours.close)
        self.addCleanup(theirs.close)
        self.said: list[bytes] = []
        self.services = replace(self.fake.services, notes=self.notes, store=self.store, resume=self.resume)
        self.registry = Registry(self.services)
        self.sent_bytes = self.received_bytes = 0
        self.now(self.registry.open(100, TOKEN, (), (), "192.0.2.7"))
        self.session = self.registry._sessions[100]
        assert self.session.connected()
        self.session.accepted(theirs)

    def resume(self, path: Any, answerer: Any, sock: socket.socket, pending: bytes, unsaid: bytes) -> FakeListening:
        sock.close()
        self.session, self.pending, self.unsaid = answerer, pending, unsaid
        return FakeListening()

    def now(self, work: Any) -> Any:
        done = Deferred.fromCoroutine(work)
        for _ in range(200):
            if done.called:
                break
            self.fake.clock.advance(LOOK_S)
        return self.successResultOf(done)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        line = json.dumps(request).encode()
        self.sent_bytes += len(line) + 1
        self.session.heard(line + b"\n")
        reply = self.now(self.session.answer(line))
        self.received_bytes += len(reply) + 1
        return dict(json.loads(reply))

    def restart(
        self, *, flows: tuple[FakeFlow, ...] = (), commands: bool = True, programs: tuple[str, ...] = ()
    ) -> None:
        """The daemon is killed, and another one begins."""
        self.commands = FakeFlow(".mtunnel", self.sent_bytes, self.received_bytes)
        self.flows = ((self.commands,) if commands else ()) + flows
        kept = Kept(names=tuple(self.store.entries), programs=programs)
        self.registry = Registry(self.services)
        self.now(self.registry.recover(Survivors(kept=kept, flows=self.flows)))

    @property
    def live(self) -> list[int]:
        return [status.vmid for status in self.registry.live()]


class GoingOnTests(AdoptionCase):
    def test_a_tunnel_goes_on(self):
        before = self.registry.live()[0]
        self.ask({"cmd": "version"})
        self.restart()
        after = self.registry.live()[0]
        self.assertEqual((after.vmid, after.upid, after.since), (100, before.upid, before.since))
        self.assertEqual((self.pending, self.unsaid), (b"", b""))
        self.assertEqual(self.registry._sessions[100].tunnel.facts.address, "192.0.2.7")
        self.assertIs(self.ask({"cmd": "version"})["success"], True)

    def test_before_the_first_command(self):
        self.restart()
        self.assertEqual(self.live, [100])

    def test_what_the_tunnel_knew_is_known(self):
        reply = self.ask(DISK)
        self.ask(CONFIG)
        self.restart()
        tunnel = self.registry._sessions[100].tunnel
        self.assertEqual(tunnel.drives, {reply["volid"]: reply["drivestr"]})
        self.assertEqual(tunnel.own.volumes, (reply["volid"],))
        self.assertIs(self.ask({"cmd": "unlock"})["success"], True)

    def test_a_reply_that_was_not_sent(self):
        self.ask({"cmd": "version"})
        self.received_bytes -= 3
        self.restart()
        self.assertEqual(self.unsaid, b"e}\n"[-3:])

    def test_a_command_that_was_begun(self):
        self.ask({"cmd": "version"})
        line = json.dumps(DISK).encode()
        self.session.heard(line + b"\n")
        self.sent_bytes += len(line) + 1
        self.session._book.asked(len(self.fake.journal.records[100]))
        self.restart()
        self.assertEqual(self.pending, line + b"\n")
        reply = json.loads(self.now(self.session.answer(line)))
        self.assertEqual(list(self.fake.storage.sizes), [reply["volid"]])

    def test_flows_are_counted_in(self):
        self.ask({"cmd": "version"})
        memory = FakeFlow(".migrate", 5, 6)
        self.restart(flows=(memory,))
        self.assertTrue(memory.adopted)
        self.assertEqual(self.registry.live()[0].streams, 2)

    def test_an_import_goes_on(self):
        child = self.fake.storage.next_children
        child.append(FakeChild(self.fake.clock, "ready\n"))
        child[0].name, child[0].taken = "import/1", 1
        self.assertIs(self.ask(IMPORT)["success"], True)
        self.store.children["import/1"] = again = FakeChild(self.fake.clock, "half of it\n")
        again.name = "import/1"
        self.restart(programs=("import/1",))
        self.assertEqual(self.live, [100])
        self.assertEqual(self.ask({"cmd": "query-disk-import"})["msg"], "half of it\n")


class NotGoingOnTests(AdoptionCase):
    """It is ended by the handover rule, as without notes."""

    def assert_recovered(self) -> None:
        self.assertEqual(self.live, [])
        self.assertEqual(self.fake.journal.records, {})
        self.assertNotIn(100, self.fake.guests.configs)
        self.assertEqual(self.notes.standing(), [])
        self.assertTrue(all(flow.abandoned for flow in self.flows))

    def test_without_its_command_connection(self):
        self.restart(commands=False)
        self.assert_recovered()

    def test_with_bytes_that_nobody_noted(self):
        self.ask({"cmd": "version"})
        self.sent_bytes += 1
        self.restart()
        self.assert_recovered()

    def test_with_positions_that_do_not_come_to_rest(self):
        self.ask({"cmd": "version"})
        self.sent_bytes -= 1
        self.restart()
        self.assert_recovered()

    def test_without_its_import(self):
        self.fake.storage.next_children.append(FakeChild(self.fake.clock, "ready\n"))
        self.fake.storage.next_children[0].name = "import/1"
        self.ask(IMPORT)
        self.restart()
        self.assert_recovered()

    def test_with_damaged_notes(self):
        self.notes.lines[100].append('{"note": "fly"}')
        self.restart()
        self.assert_recovered()

    def test_with_facts_that_are_missing(self):
        """Whatever is in there, the daemon starts."""
        notes = [{**json.loads(self.notes.lines[100][0]), "facts": {}}]
        self.notes.lines[100] = [json.dumps(note) for note in notes]
        self.restart()
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.assert_recovered()

    def test_after_a_line_that_was_too_long(self):
        self.session.spoil()
        self.restart()
        self.assert_recovered()

    def test_after_quit(self):
        self.ask({"cmd": "quit", "cleanup": 1})
        self.assertEqual((self.notes.standing(), self.store.entries), ([], {}))
