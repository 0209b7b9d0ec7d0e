"""What observers are told, in order; and that none of them disturbs a tunnel."""

from __future__ import annotations

from mtunnel_tx.ports.events import (
    ByteCount,
    CommandAnswered,
    FlowBegan,
    FlowEnded,
    PhaseReached,
    TunnelEnded,
    TunnelEvent,
    TunnelOpened,
    TunnelPhase,
)
from tests.fakes import TOKEN, FakeStream
from tests.tunnel.case import CONFIG, DISK, TunnelCase

SOCKET = "/run/qemu-server/100.mtunnel"


class EventCase(TunnelCase):
    def setUp(self) -> None:
        super().setUp()
        self.told: list[TunnelEvent] = []
        self.fake.services.observers.add(self.told.append)

    def phases(self) -> list[TunnelPhase]:
        return [event.phase for event in self.told if isinstance(event, PhaseReached)]

    def last(self, kind: type[TunnelEvent]) -> TunnelEvent:
        return [event for event in self.told if isinstance(event, kind)][-1]


class EventTests(EventCase):
    def test_opened(self) -> None:
        self.now(self.registry.open(100, TOKEN, (), (), "192.0.2.1"))
        facts = self.told[0].tunnel
        self.assertEqual(self.told, [TunnelOpened(tunnel=facts)])
        known = (facts.vmid, facts.kind, facts.token, facts.address, facts.upid, facts.since_s)
        self.assertEqual(known, (100, "qemu", TOKEN, "192.0.2.1", self.task.upid, self.fake.clock.seconds()))

    def test_phases_of_a_move(self) -> None:
        self.connect()
        disk = self.ask(**DISK)
        self.ask(**CONFIG)
        options = {"type": "websocket", "migratedfrom": "a", "remote_node": "b", "nbd": {"scsi0": disk}}
        self.ask(cmd="start", start_params={"statefile": "unix"}, migrate_opts=options)
        self.fake.machines.arrive()
        for cmd in ("resume", "unlock", "quit"):
            self.assertTrue(self.ask(cmd=cmd)["success"])
        self.line.disconnected()
        phase = TunnelPhase
        expected = [phase.SERVING, phase.DISKS, phase.CONFIGURED, phase.STARTING, phase.WHOLE, phase.RESUMED]
        self.assertEqual(self.phases(), [*expected, phase.HANDED_OVER, phase.LEAVING])

    def test_phases_of_a_rollback(self) -> None:
        self.connect()
        self.line.disconnected()
        phase = TunnelPhase
        self.assertEqual(self.phases(), [phase.SERVING, phase.ENDING, phase.ROLLING_BACK])

    def test_commands(self) -> None:
        self.connect()
        del self.told[:]
        self.ask(cmd="version")
        text = self.msg(cmd="ticket", path="/etc/passwd")
        self.msg(cmd="nosuch")
        facts = self.told[0].tunnel
        expected = [
            CommandAnswered(tunnel=facts, name="version", failure="", duration_s=0),
            CommandAnswered(tunnel=facts, name="ticket", failure=text, duration_s=0),
        ]
        self.assertEqual(self.told, expected)

    def test_flows(self) -> None:
        opened = self.open()
        del self.told[:]
        route = self.registry.route(100, opened.socket, TOKEN, opened.ticket)
        stream = FakeStream()
        route.opened(stream)
        began = self.last(FlowBegan)
        assert isinstance(began, FlowBegan)
        self.assertEqual((began.number, began.socket, began.traffic()), (1, route.kind, ByteCount(10, 20)))
        stream.bytes_in = 11
        self.assertEqual((began.traffic(), began.tunnel.traffic()), (ByteCount(11, 20), ByteCount(11, 20)))
        self.now(route.closed(orderly=True))
        self.now(route.closed(orderly=True))
        ended = FlowEnded(tunnel=began.tunnel, number=1, socket=route.kind, traffic=ByteCount(11, 20), orderly=True)
        self.assertEqual(self.told, [began, ended])
        second = self.registry.route(100, opened.socket, TOKEN, opened.ticket)
        second.opened(FakeStream())
        self.assertEqual(began.tunnel.traffic(), ByteCount(21, 40))
        self.now(second.closed(orderly=False))
        last = self.last(FlowEnded)
        assert isinstance(last, FlowEnded)
        self.assertEqual((last.number, last.orderly, last.traffic), (2, False, ByteCount(10, 20)))

    def test_a_flow_that_was_refused_is_none(self) -> None:
        opened = self.open()
        route = self.registry.route(100, opened.socket, TOKEN, opened.ticket)
        del self.told[:]
        self.now(route.closed(orderly=False))
        self.assertEqual(self.told, [])

    def test_ended(self) -> None:
        self.connect()
        self.fake.storage.broken.add(self.ask(**DISK)["volid"])
        self.fake.clock.advance(7)
        self.line.disconnected()
        ended = self.told[-1]
        assert isinstance(ended, TunnelEnded)
        self.assertEqual((ended.outcome, ended.reason, ended.duration_s), ("held", "mtunnel exited unexpectedly", 7))
        self.assertEqual(ended.problem, self.registry.held[100])


class BrokenObserverTests(EventCase):
    def test_it_disturbs_nobody_and_is_logged_once(self) -> None:
        heard: list[TunnelEvent] = []

        def broken(event: TunnelEvent) -> None:
            heard.append(event)
            raise ZeroDivisionError("a bug of an observer")

        self.fake.services.observers.add(broken)
        self.told = []
        self.fake.services.observers.add(lambda event: self.told.append(event))
        self.connect()
        self.assertTrue(self.ask(cmd="version")["success"])
        self.assertTrue(self.ask(cmd="quit", cleanup=1)["success"])
        self.line.disconnected()
        self.assertEqual((self.fake.guests.configs, self.registry.live()), ({}, []))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(heard, self.told)
        self.assertGreater(len(heard), 5)
