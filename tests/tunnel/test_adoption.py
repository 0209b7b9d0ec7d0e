"""Tunnels that go on in the next daemon, killed at every note and every record of the one before."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import WrongState
from mtunnel_tx.ports.events import ByteCount, TunnelEnded, TunnelOpened
from mtunnel_tx.ports.holding import FlowPositions, Kept, Survivors
from mtunnel_tx.tunnel.adoption import LOOK_S
from mtunnel_tx.tunnel.registry import Registry
from mtunnel_tx.tunnel.services import TunnelLimits
from mtunnel_tx.wire.socketkinds import COMMANDS
from tests.fakes import TOKEN, FakeHost, FakeListening
from tests.fakestorage import FakeChild
from tests.tunnel.case import CONFIG, DISK, IMPORT
from tests.tunnel.test_machine import PAUSED
from tests.tunnel.test_table import START
from tests.tunnel.test_transcript import MemoryNotes

VOLID = "local:100/vm-100-disk-0.raw"
QUERY = {"cmd": "query-disk-import"}


class CommandsRoute:
    kind = COMMANDS


def duplicate(file: Any) -> Any:
    """Of a socket or a file."""
    return file.dup() if isinstance(file, socket.socket) else os.fdopen(os.dup(file.fileno()), "rb")


class FakeStore:
    """Keeps sockets and children in memory."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[Any, list[socket.socket]]] = {}
        self.children: dict[str, FakeChild] = {}
        self.watched = False

    def put(self, name: str, value: object, sockets: Any = ()) -> Deferred[bool]:
        before = self.entries.get(name, (None, []))[1]
        self.entries[name] = (value, [duplicate(sock) for sock in sockets] or before)
        for sock in before if sockets else ():
            sock.close()
        return succeed(True)

    async def get(self, name: str) -> tuple[Any, list[Any]]:
        value, sockets = self.entries[name]
        return value, [duplicate(sock) for sock in sockets]

    def drop(self, name: str) -> None:
        _, sockets = self.entries.pop(name, (None, []))
        for sock in sockets:
            sock.close()

    def adopt(self, name: str, taken: int = 0, *, keeps_end: bool = False) -> FakeChild:
        return self.children[name]

    def watch(self) -> None:
        self.watched = True


class FakeFlow:
    """The flow of the command connection in a worker, or another one."""

    def __init__(self, suffix: str, taken: int = 0, sent: int = 0, queued: int = 0) -> None:
        self.vmid, self.suffix = 100, suffix
        numbers = {"taken_bytes": taken, "sent_bytes": sent, "queued_bytes": queued}
        self.now = FlowPositions(**numbers, is_parked=queued > 0)
        self.bytes_in, self.bytes_out = taken, sent
        self.adopted = self.abandoned = self.aborted = False

    async def positions(self) -> FlowPositions:
        return self.now

    def adopt(self, route: Any) -> None:
        self.adopted = True
        route.opened(self)

    def abandon(self) -> None:
        self.abandoned = not self.adopted

    def abort(self) -> None:
        self.aborted = True


class FailingFlow(FakeFlow):
    """One that cannot be taken over."""

    def adopt(self, route: Any) -> None:
        raise WrongState("no room")


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
        self.sent_bytes = self.received_bytes = self.queued_bytes = 0
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
        self.commands = FakeFlow(".mtunnel", self.sent_bytes, self.received_bytes, self.queued_bytes)
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
        self.assertIn("tidy 100", self.fake.events)
        self.assertEqual(self.registry._sessions[100].tunnel.facts.address, "192.0.2.7")
        self.assertIs(self.ask({"cmd": "version"})["success"], True)

    def test_a_reply_that_waits_in_a_parked_flow(self):
        """It is in the UNIX socket, and goes on from there when the flow has a connection again."""
        self.ask({"cmd": "version"})
        self.received_bytes -= 5
        self.queued_bytes = 5
        self.restart()
        self.assertEqual((self.live, self.unsaid), ([100], b""))

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

    def test_a_qemu_that_is_anothers_does_not_make_it_whole(self):
        for is_ours in (True, False):
            self.setUp()
            self.ask(CONFIG)
            self.ask(START)
            if not is_ours:
                self.fake.machines.replace(PAUSED)
            self.fake.machines.arriving = Deferred()
            self.restart()
            self.fake.machines.arriving.callback(None)
            words = [record["do"] for record in self.fake.journal.records[100]]
            self.assertEqual("whole" in words, is_ours)

    def test_interruptions_that_are_over_still_count(self):
        parking, route = self.registry._sessions[100].tunnel.parking, CommandsRoute()
        parking.park(route)
        self.fake.clock.advance(7)
        parking.forget(route)
        self.ask({"cmd": "version"})
        for since_the_last_reply_s in (2, 3):
            parking.park(route)
            self.fake.clock.advance(since_the_last_reply_s)
            parking.forget(route)
        self.restart()
        self.assertEqual(self.registry.live()[0].interrupted_s, 12.0)

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

    def test_flows_are_counted_in_beyond_a_limit_that_was_lowered(self):
        self.ask({"cmd": "version"})
        self.services = replace(self.services, limits=TunnelLimits(streams_per_tunnel=1))
        self.restart(flows=(FakeFlow(".migrate", 5, 6),))
        self.assertEqual((self.live, self.registry.live()[0].streams), ([100], 2))

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


class EndedImportTests(AdoptionCase):
    """The child has ended well, and the daemon is killed before `query-disk-import` says so, e.g. during a sync."""

    def setUp(self) -> None:
        super().setUp()
        self.fake.storage.next_children.append(FakeChild(self.fake.clock, "ready\n"))
        self.child = self.fake.storage.next_children[0]
        self.child.name = "import/1"
        self.assertIs(self.ask(IMPORT)["success"], True)
        self.child.lines.append(f"successfully imported '{VOLID}'\n")
        self.fake.storage.sizes[VOLID] = 1
        self.assertEqual(self.ask(QUERY)["status"], "pending")

    def assert_completes(self) -> None:
        self.assertEqual(self.live, [100])
        self.assertEqual(self.ask(QUERY), {"success": True, "status": "complete", "volid": VOLID})
        self.assertEqual(self.registry._sessions[100].tunnel.own.volumes, (VOLID,))
        self.assertIn(f"sync {VOLID}", self.fake.storage.events)

    def test_before_its_volume_is_recorded(self):
        self.restart_with_its_end()
        self.assert_completes()

    def test_after_that_and_its_end_is_forgotten(self):
        self.record_its_volume()
        self.restart()
        self.assert_completes()

    def test_two_restarts(self):
        self.record_its_volume()
        self.restart()
        self.assertIs(self.ask({"cmd": "version"})["success"], True)
        self.restart()
        self.assert_completes()

    def test_a_disk_that_was_begun_beside_it_leaves_its_volume_alone(self):
        since = len(self.fake.journal.records[100])
        line = json.dumps(DISK).encode()
        self.session.heard(line + b"\n")
        self.sent_bytes += len(line) + 1
        self.session._book.asked(since)
        self.record_its_volume()
        self.fake.journal.records[100].append({"do": "making", "storage": "local"})
        self.fake.storage.sizes["local:100/vm-100-disk-7.raw"] = 1  # the disk's, which nobody was told of
        self.restart_with_its_end()
        reply = json.loads(self.now(self.session.answer(line)))
        self.assertIs(reply["success"], True, reply)
        self.assertEqual(sorted(self.fake.storage.sizes), sorted([VOLID, reply["volid"]]))
        self.assertEqual(self.registry._sessions[100].tunnel.own.volumes, (VOLID, reply["volid"]))

    def restart_with_its_end(self) -> None:
        """The holder still knows how the child ended."""
        again = self.store.children["import/1"] = FakeChild(self.fake.clock)
        again.name = "import/1"
        again.exit(0)
        self.restart(programs=("import/1",))

    def record_its_volume(self) -> None:
        self.fake.journal.records[100].append({"do": "made", "storage": "local", "volid": VOLID, "size_bytes": 1})


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

    def test_with_a_flow_that_cannot_be_led_back(self):
        """Those that were led back before end with it."""
        self.ask({"cmd": "version"})
        told: list[Any] = []
        self.services.observers.add(told.append)
        other = FailingFlow(".migrate")
        self.restart(flows=(other,))
        self.assertEqual((self.commands.aborted, other.abandoned, self.live), (True, True, []))
        ended = [event for event in told if isinstance(event, TunnelEnded)]
        self.assertEqual([(end.reason, end.outcome) for end in ended], [("no room", "rolled back")])
        self.assertEqual(ended[0].traffic, ByteCount(self.sent_bytes, self.received_bytes))
        self.assertEqual(sum(isinstance(event, TunnelOpened) for event in told), 1)
        self.assertEqual(self.fake.journal.records, {})

    def test_without_its_import(self):
        self.fake.storage.next_children.append(FakeChild(self.fake.clock, "ready\n"))
        self.fake.storage.next_children[0].name = "import/1"
        self.ask(IMPORT)
        self.restart()
        self.assert_recovered()

    def test_with_a_flow_that_cannot_be_understood(self):
        self.restart(flows=(FakeFlow(""),))
        self.assert_recovered()

    def test_with_an_import_that_may_have_lost_its_flow(self):
        """It must not take the end of its input for a good one: it is none of those that are left alone."""
        self.fake.storage.next_children.append(FakeChild(self.fake.clock, "ready\n"))
        self.fake.storage.next_children[0].name = "import/1"
        self.ask(IMPORT)
        unread = FakeFlow("")
        unread.vmid = 0
        self.restart(flows=(unread,), programs=("import/1",))
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
