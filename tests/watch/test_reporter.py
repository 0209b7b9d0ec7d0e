"""What a source says about its move: when it is passed on, and to whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.ports.events import ByteCount
from mtunnel_tx.ports.moves import Expected, MovePhase, NamedTask, Reached, StoodStill, TransferKind
from mtunnel_tx.watch.leaving import Recorder
from mtunnel_tx.watch.move import MoveState
from mtunnel_tx.watch.reporter import ALL, Reporter
from tests.watch.test_move import MIB, NEW


class Shown:
    """A display that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def say(self, text: str) -> None:
        self.calls.append(("say", text))

    def begin(self, label: str, total_bytes: int) -> None:
        self.calls.append(("begin", label, total_bytes))

    def advance(self, label: str, size_bytes: int) -> None:
        self.calls.append(("advance", label, size_bytes))

    def resize(self, label: str, total_bytes: int) -> None:
        self.calls.append(("resize", label, total_bytes))

    def finish(self, label: str) -> None:
        self.calls.append(("finish", label))


class ReporterCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.shown = Shown()
        self.states: list[MoveState] = []
        self.wire = ByteCount(1, 2)
        self.reporter = Reporter(
            self.shown,
            self.clock,
            lambda: 1000 + self.clock.seconds(),
            NEW,
            warn=self.shown.say,
            wire=lambda: self.wire,
            changed=self.states.append,
        )

    def expect(self, **sizes: int) -> None:
        for label, size_bytes in sizes.items():
            self.reporter.tell(Expected(label=label, kind=TransferKind.DISK, total_bytes=size_bytes))

    def go_on(self, seconds: int) -> None:
        self.clock.pump([1] * seconds)


class Reporting(ReporterCase):
    def test_once_a_second_whatever_is_said(self) -> None:
        self.reporter.start()
        self.reporter.begin("scsi0", 40 * MIB)
        for _ in range(1000):
            self.reporter.advance("scsi0", 10 * 1024)
        self.assertEqual(len(self.states), 1)
        self.go_on(1)
        self.assertEqual(len(self.states), 2)
        (disk,) = self.states[-1].transfers
        self.assertEqual((disk.done_bytes, disk.total_bytes), (1000 * 10 * 1024, 40 * MIB))
        self.assertEqual((self.states[-1].wire_in_bytes, self.states[-1].wire_out_bytes), self.wire)

    def test_a_stall_is_seen(self) -> None:
        self.reporter.start()
        self.reporter.begin("scsi0", 40 * MIB)
        self.go_on(1)
        self.reporter.advance("scsi0", 10 * MIB)
        self.go_on(30)
        self.assertLess(self.states[-1].rate_bytes_s, MIB)

    def test_phases_at_once_and_when_they_were(self) -> None:
        self.go_on(3)
        self.reporter.tell(Reached(phase=MovePhase.DISKS))
        self.reporter.tell(NamedTask(upid="UPID:b"))
        self.assertEqual((self.states[-1].phase, self.reporter.phases), (MovePhase.DISKS, {"disks": 3.0}))
        self.assertEqual(self.reporter.state.upid, "UPID:b")

    def test_nothing_is_left(self) -> None:
        self.reporter.start()
        self.reporter.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_all_together_are_one_more_stream(self) -> None:
        self.expect(scsi0=40 * MIB, scsi1=60 * MIB)
        self.reporter.begin("scsi0", 40 * MIB)
        self.reporter.advance("scsi0", 40 * MIB)
        self.reporter.finish("scsi0")
        self.reporter.begin("scsi1", 50 * MIB)
        self.reporter.finish("scsi1")
        self.reporter.stop()
        together = [call for call in self.shown.calls if call[1] == ALL]
        self.assertEqual(together[0], ("begin", ALL, 100 * MIB))
        self.assertIn(("advance", ALL, 40 * MIB), together)
        self.assertIn(("resize", ALL, 90 * MIB), together)
        self.assertEqual(together[-1], ("finish", ALL))

    def test_all_together_end_before_the_last_words(self) -> None:
        """Its total at last is what was done: memory that was written meanwhile is not sent any more."""
        self.expect(scsi0=40 * MIB, memory=60 * MIB)
        self.reporter.begin("memory", 60 * MIB)
        self.reporter.advance("memory", 50 * MIB)
        self.reporter.finish("memory")
        self.reporter.begin("scsi0", 40 * MIB)
        self.reporter.finish("scsi0")
        self.reporter.tell(Reached(phase=MovePhase.DONE))
        self.reporter.say("it is there")
        self.reporter.stop()
        calls = [call for call in self.shown.calls if call[1] in (ALL, "it is there")]
        self.assertEqual(calls[-4:], [
            ("resize", ALL, 50 * MIB), ("advance", ALL, 0), ("finish", ALL), ("say", "it is there"),
        ])  # fmt: skip

    def test_a_single_one_is_not_shown_twice(self) -> None:
        self.expect(scsi0=40 * MIB)
        self.reporter.begin("scsi0", 40 * MIB)
        self.reporter.finish("scsi0")
        self.reporter.stop()
        self.assertEqual([call[:2] for call in self.shown.calls], [("begin", "scsi0"), ("finish", "scsi0")])


class Telling(ReporterCase):
    """What the target is told."""

    def setUp(self) -> None:
        super().setUp()
        self.told: list[Mapping[str, Any]] = []
        self.answers: list[Deferred[None]] = []
        self.reporter.connect(self.report)
        self.reporter.start()

    async def report(self, fields: Mapping[str, Any]) -> None:
        self.told.append(fields)
        self.answers.append(Deferred())
        await self.answers[-1]

    def answer(self) -> None:
        self.answers[-1].callback(None)

    def test_every_other_second_and_one_at_a_time(self) -> None:
        self.go_on(9)
        self.assertEqual(len(self.told), 1)
        for _ in range(3):
            self.answer()
            self.go_on(2)
        self.assertEqual(len(self.told), 4)

    def test_what_is_said(self) -> None:
        self.answer()
        self.expect(scsi0=40 * MIB)
        self.reporter.begin("scsi0", 40 * MIB)
        self.reporter.tell(Reached(phase=MovePhase.DISKS))
        disk = {"label": "scsi0", "kind": "disk", "total": 40 * MIB, "done": 0, "ended": False}
        expected = {"phase": "disks", "transfers": [disk], "downtime_ms": None, "source": "a"}
        self.assertEqual(self.told[-1], expected)

    def test_nothing_while_it_stands_still(self) -> None:
        self.answer()
        self.reporter.tell(Reached(phase=MovePhase.HAND_OVER))
        self.go_on(20)
        self.assertEqual(len(self.told), 1)
        self.reporter.tell(StoodStill(downtime_s=0.13))
        self.assertEqual((self.told[-1]["phase"], self.told[-1]["downtime_ms"]), ("hand-over", 130))

    def test_a_target_that_does_not_understand(self) -> None:
        self.answers[-1].errback(TunnelError("unknown command 'progress' given"))
        self.go_on(20)
        self.assertEqual(len(self.told), 1)

    def test_the_end(self) -> None:
        self.answer()
        self.reporter.disconnect()
        self.go_on(20)
        self.assertEqual(len(self.told), 1)


class SlowThreads:
    """ports.Threads that finish when they are told to."""

    def __init__(self) -> None:
        self.waiting: list[Deferred[None]] = []
        self.args: list[tuple[Any, ...]] = []

    async def run(self, call: Any, *args: Any, **_: Any) -> Any:
        self.args.append((call.__name__, *args))
        self.waiting.append(Deferred())
        await self.waiting[-1]


class Recording(SynchronousTestCase):
    def test_a_slow_disk_gets_the_newest_state_only(self) -> None:
        class File:
            def write(self, state: MoveState) -> None: ...

            def remove(self) -> None: ...

        threads = SlowThreads()
        recorder = Recorder(File(), threads)  # type: ignore[arg-type]
        for number in range(5):
            recorder(apply_wire(number))
        threads.waiting[0].callback(None)
        self.assertEqual([args[1].wire_in_bytes for args in threads.args], [0, 4])
        recorder(apply_wire(9))
        closing = Deferred.fromCoroutine(recorder.close())
        threads.waiting[1].callback(None)
        threads.waiting[2].callback(None)
        self.successResultOf(closing)
        self.assertEqual([args[0] for args in threads.args], ["write", "write", "remove"])


def apply_wire(bytes_in: int) -> MoveState:
    return replace(NEW, wire_in_bytes=bytes_in)
