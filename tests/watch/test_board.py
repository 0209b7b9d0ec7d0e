"""What is known of a move that comes: from a source that says how far it is, and from any other one."""

from __future__ import annotations

from dataclasses import replace

from mtunnel_tx.cli.moves import move_line
from mtunnel_tx.ports.events import FlowEnded, FlowParked, FlowResumed
from mtunnel_tx.ports.moves import MovePhase
from mtunnel_tx.watch.board import OVER_S, Board
from mtunnel_tx.watch.move import MoveState
from mtunnel_tx.wire.socketkinds import NBD
from tests.fakes import FakeStream
from tests.tunnel.case import CONFIG, DISK, IMPORT, TunnelCase
from tests.watch.test_metrics import FACTS

MIB = 1 << 20
SECOND = {**DISK, "drive": {"interface": "scsi", "index": 1, "size": 1 << 30}}


class BoardCase(TunnelCase):
    def setUp(self) -> None:
        super().setUp()
        self.board = Board("b", self.fake.services.wall)
        self.fake.services.observers.add(self.board)

    @property
    def move(self) -> MoveState:
        (move,) = self.board.moves()
        return move

    def flow(self, path: str) -> FakeStream:
        ticket = self.ask(cmd="ticket", path=path)["ticket"]
        stream = FakeStream()
        self.registry.route(100, path, self.move.token, ticket).opened(stream)
        return stream

    def start(self, *disks: dict[str, object]) -> None:
        replies = {f"scsi{index}": self.ask(**disk) for index, disk in enumerate(disks)}
        self.ask(**CONFIG)
        options = {"type": "websocket", "migratedfrom": "a", "remote_node": "b", "nbd": replies}
        reply = self.ask(cmd="start", start_params={"statefile": "unix"}, migrate_opts=options)
        self.assertTrue(reply["success"], reply)

    def tell(self, **fields: object) -> None:
        reply = self.ask(cmd="progress", **fields)
        self.assertTrue(reply["success"], reply)


class AnySource(BoardCase):
    def test_it_begins(self) -> None:
        self.connect()
        move = self.move
        self.assertEqual((move.direction, move.vmid, move.target, move.phase.value), ("in", 100, "b", "checking"))
        self.assertEqual((move.upid, move.percent, move.transfers), (self.task.upid, None, ()))

    def test_mirrors_are_one_transfer(self) -> None:
        """Nobody says which mirror a byte is of; the sizes are known."""
        self.connect()
        self.start(DISK, SECOND)
        stream = self.flow("/run/qemu-server/100_nbd.migrate")
        stream.bytes_in = 512 * MIB
        self.board.look()
        disks, memory = self.move.transfers
        self.assertEqual((disks.label, disks.done_bytes, disks.total_bytes), ("disks", 512 * MIB, 2 << 30))
        self.assertEqual((memory.label, memory.total_bytes), ("memory", 512 * MIB))
        self.assertEqual((self.move.phase, self.move.percent), (MovePhase.MIRROR, 20))
        self.flow("/run/qemu-server/100.migrate")
        self.assertEqual(self.move.phase, MovePhase.MEMORY)

    def test_an_image_of_unknown_length(self) -> None:
        self.connect()
        path = self.ask(**IMPORT)["socket"]
        stream = self.flow(path)
        stream.bytes_in = MIB
        self.board.look()
        (image,) = self.move.transfers
        self.assertEqual((image.label, image.done_bytes, image.total_bytes), ("vm-100-disk-0", MIB, None))
        self.assertEqual((self.move.phase, self.move.percent, self.move.wire_in_bytes), (MovePhase.DISKS, None, MIB))

    def test_an_outage(self) -> None:
        """It lasts until no flow is parked."""
        self.connect()
        tunnel = replace(FACTS, upid=self.move.upid)
        for number in (1, 2):
            self.board(FlowParked(tunnel=tunnel, number=number, socket=NBD, reason="lost"))
            self.fake.clock.advance(5)
        since_s = self.fake.services.wall() - 10
        self.board(FlowResumed(tunnel=tunnel, number=1, socket=NBD, waited_s=10, parked_s=10))
        self.assertEqual((self.move.parked_s, self.move.outage_since_s), (10, since_s))
        self.assertRegex(move_line(self.move), r"checking, no connection since \d\d:\d\d:\d\d$")
        self.board(FlowEnded(tunnel=tunnel, number=2, socket=NBD, traffic=tunnel.traffic(), orderly=False))
        self.assertIsNone(self.move.outage_since_s)
        self.assertTrue(move_line(self.move).endswith("checking, parked 0:10"))

    def test_ends(self) -> None:
        self.connect()
        self.line.disconnected()
        self.assertEqual(self.move.phase, MovePhase.ROLLED_BACK)
        self.assertEqual(self.move.reason, "mtunnel exited unexpectedly")
        self.fake.clock.advance(OVER_S + 1)
        self.assertEqual(self.board.moves(), [])

    def test_done(self) -> None:
        self.connect()
        self.start(DISK)
        self.fake.machines.arrive()
        for cmd in ("resume", "unlock", "quit"):
            self.assertTrue(self.ask(cmd=cmd)["success"])
        self.assertEqual(self.move.phase, MovePhase.HAND_OVER)
        self.line.disconnected()
        self.assertEqual((self.move.phase, self.move.percent), (MovePhase.DONE, 100))


class OurSource(BoardCase):
    def test_what_it_says_is_believed(self) -> None:
        self.connect()
        self.start(DISK)
        disk = {"label": "scsi0", "kind": "mirror", "total": 40 * MIB, "done": 10 * MIB}
        memory = {"label": "memory", "kind": "memory", "total": 60 * MIB}
        self.tell(phase="mirror", transfers=[disk, memory], source="a")
        self.assertEqual((self.move.percent, self.move.source, self.move.phase), (10, "a", MovePhase.MIRROR))
        self.assertEqual([one.label for one in self.move.transfers], ["scsi0", "memory"])
        self.fake.clock.advance(2)
        self.tell(phase="mirror", transfers=[{**disk, "done": 30 * MIB}, memory])
        self.assertEqual(self.move.rate_bytes_s, 10 * MIB)

    def test_downtime(self) -> None:
        self.connect()
        self.tell(phase="hand-over", transfers=[], downtime_ms=130)
        self.assertEqual(self.move.downtime_s, 0.13)

    def test_it_leaves_no_line_in_the_task_log(self) -> None:
        self.connect()
        self.tell(phase="checking", transfers=[])
        self.assertNotIn("received command 'progress'", self.task.lines)

    def test_what_makes_no_sense(self) -> None:
        self.connect()
        good = {"label": "x", "kind": "disk"}
        for fields, reason in [
            ({"phase": "done", "transfers": []}, "no phase 'done'"),
            ({"phase": "disks", "transfers": [1]}, "a transfer is an object"),
            ({"phase": "disks", "transfers": [{**good, "label": "\x1b"}]}, "no label"),
            ({"phase": "disks", "transfers": [{**good, "kind": []}]}, "x: unknown kind"),
            ({"phase": "disks", "transfers": [{**good, "done": -1}]}, "x: not a number of bytes"),
            ({"phase": "disks", "transfers": [{**good, "total": True}]}, "x: not a number of bytes"),
        ]:
            self.assertIn(reason, self.msg(cmd="progress", **fields))
        self.assertEqual(self.move.transfers, ())
