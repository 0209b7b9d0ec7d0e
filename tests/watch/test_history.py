"""The history: rows come back, are pruned, survive a crash and a damaged file, and hold nothing up."""

import sqlite3
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.ports.events import (
    ByteCount,
    PhaseReached,
    TunnelEnded,
    TunnelFacts,
    TunnelOpened,
    TunnelPhase,
)
from mtunnel_tx.watch import history
from mtunnel_tx.watch.history import FinishedMove, HistoryFile, HistoryObserver, find_outcome, record_outcome
from tests.processes import started_process

DAY_S = 86400.0
MOVE = FinishedMove(
    vmid=100, kind="qemu", direction="in", token="mig@pve!t1", peer="192.0.2.1", upid="UPID:x", since_s=1000.0,
    duration_s=2.5, outcome="kept", reason="", problem=None, bytes_in=1 << 40, bytes_out=3, phases={"serving": 0.5},
)  # fmt: skip
FACTS = TunnelFacts(
    vmid=100, kind="qemu", token="mig@pve!t1", address="192.0.2.1", upid="UPID:x", since_s=1000.0,
    traffic=lambda: ByteCount(0, 0),
)  # fmt: skip
ENDED = TunnelEnded(
    tunnel=FACTS, reason="", outcome="kept", problem=None, traffic=ByteCount(1 << 40, 3), duration_s=2.5
)


class Threads:
    async def run(self, call, *args):
        return call(*args)


class Case(SynchronousTestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "history.sqlite3")
        self.now_s = 1000.0
        self.file = self.open()

    def open(self, **bounds):
        return HistoryFile(self.path, **{"most_rows": 100, "most_days": 10, **bounds}, now=lambda: self.now_s)


class FileTests(Case):
    def test_rows_come_back_as_they_went(self):
        self.file.add(MOVE)
        self.assertEqual(self.file.find(), [MOVE])
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)

    def test_nothing_is_made_by_a_look(self):
        self.assertEqual(self.file.find(), [])
        self.assertFalse(self.path.exists())

    def test_choices(self):
        for number in range(5):
            self.file.add(replace(MOVE, vmid=100 + number % 2, since_s=1000.0 + number))
        times = lambda **chosen: [move.since_s for move in self.file.find(**chosen)]  # noqa: E731
        self.assertEqual(times(), [1004, 1003, 1002, 1001, 1000])
        self.assertEqual(times(vmid=101), [1003, 1001])
        self.assertEqual(times(since_s=1002), [1004, 1003, 1002])
        self.assertEqual(times(since_s=1001, vmid=100, limit=1), [1004])

    def test_what_became_of_a_tunnel(self):
        held = replace(MOVE, outcome="held", since_s=1000.7)
        settled = replace(MOVE, outcome="rolled back", duration_s=60.0)  # its journal has whole seconds
        others = [replace(MOVE, upid="UPID:y"), replace(MOVE, token="a@pve!b"), replace(MOVE, direction="out")]
        for move in (held, settled, *others):
            self.file.add(move)
        self.assertEqual(self.outcome(100, "mig@pve!t1", "UPID:x"), "rolled back")
        self.assertIsNone(self.outcome(101, "mig@pve!t1", "UPID:x"))
        self.assertIsNone(self.outcome(100, "c@pve!d", "UPID:x"))
        self.path.write_bytes(b"no database" * 100)
        self.assertIsNone(self.outcome(100, "mig@pve!t1", "UPID:x"))

    def outcome(self, vmid, token, upid):
        return self.successResultOf(Deferred.fromCoroutine(find_outcome(self.file, Threads(), vmid, token, upid)))

    def record(self, outcome, upid="UPID:x"):
        work = record_outcome(self.file, Threads(), 100, "mig@pve!t1", upid, outcome)
        self.successResultOf(Deferred.fromCoroutine(work))

    def test_what_was_recorded_before_the_end_was_told(self):
        """A VM that was held has a row that says so."""
        self.record("kept")
        self.assertEqual((self.outcome(100, "mig@pve!t1", "UPID:x"), self.file.find()), ("kept", []))
        for other in ((101, "mig@pve!t1", "UPID:x"), (100, "x", "UPID:x"), (100, "mig@pve!t1", "UPID:y")):
            self.assertIsNone(self.outcome(*other))
        self.file.add(replace(MOVE, outcome="held"))
        self.record("rolled back")
        self.assertEqual(self.outcome(100, "mig@pve!t1", "UPID:x"), "rolled back")

    def test_old_and_surplus_records_go(self):
        self.file = self.open(most_rows=2)
        for number in range(3):
            self.now_s += 1
            self.record("kept", f"UPID:{number}")
        found = [self.outcome(100, "mig@pve!t1", f"UPID:{number}") for number in range(3)]
        self.assertEqual(found, [None, "kept", "kept"])
        self.now_s += 11 * DAY_S
        self.record("kept")
        self.assertIsNone(self.outcome(100, "mig@pve!t1", "UPID:2"))

    def test_a_record_in_a_damaged_file_or_none(self):
        self.path.write_bytes(b"this is no database at all" * 100)
        self.record("kept")
        self.assertEqual(self.outcome(100, "mig@pve!t1", "UPID:x"), "kept")
        self.file = HistoryFile(Path("/proc/no/history"), most_rows=1, most_days=1)
        self.record("kept")
        self.assertEqual(len(self.flushLoggedErrors()), 0)

    def test_old_and_surplus_rows_go(self):
        file = self.open(most_rows=3)
        for number in range(5):
            file.add(replace(MOVE, since_s=1000.0 + number))
        self.assertEqual([move.since_s for move in file.find()], [1004, 1003, 1002])
        self.now_s = 1003.5 + 10 * DAY_S
        file.add(replace(MOVE, since_s=self.now_s))
        self.assertEqual([move.since_s for move in file.find()], [self.now_s, 1004])

    def test_a_damaged_file_is_put_aside(self):
        self.path.write_bytes(b"this is no database at all" * 100)
        self.file.add(MOVE)
        self.assertEqual(self.file.find(), [MOVE])
        aside = self.path.with_name("history.sqlite3.damaged-1000")
        self.assertTrue(aside.read_bytes().startswith(b"this is no"))

    def test_a_newer_file_is_left_alone(self):
        with sqlite3.connect(self.path) as database:
            database.execute("PRAGMA user_version = 99")
        self.assertRaisesRegex(sqlite3.OperationalError, "newer version", self.file.add, MOVE)
        self.assertRaisesRegex(sqlite3.OperationalError, "newer version", self.file.find)

    def test_a_writer_that_is_killed_leaves_whole_rows(self):
        code = (
            "import sys, itertools; from pathlib import Path; from dataclasses import replace\n"
            "from tests.watch.test_history import MOVE; from mtunnel_tx.watch.history import HistoryFile\n"
            "file = HistoryFile(Path(sys.argv[1]), most_rows=1000, most_days=1, now=lambda: 1000.0)\n"
            "for number in itertools.count():\n"
            "    file.add(replace(MOVE, since_s=1000.0 + number)); print(number, flush=True)\n"
        )
        argv = [sys.executable, "-c", code, str(self.path)]
        with ExitStack() as owner:
            root = Path(__file__).parents[2]
            writer = started_process(owner.callback, argv, stdout=subprocess.PIPE, cwd=root)
            told = [int(writer.stdout.readline()) for _ in range(5)]
        moves = self.file.find()
        self.assertGreaterEqual(len(moves), len(told))
        self.file.add(replace(MOVE, since_s=5000.0))
        self.assertEqual(self.file.find()[0].since_s, 5000.0)


class LateThreads:
    """Work begins when the test says so."""

    def __init__(self):
        self.waiting = []

    def run(self, call, *args):
        done = Deferred()
        self.waiting.append((done, call, args))
        return done

    def go_on(self):
        done, call, args = self.waiting.pop(0)
        try:
            done.callback(call(*args))
        except Exception as error:
            done.errback(error)


class ObserverTests(Case):
    def setUp(self):
        super().setUp()
        self.threads = LateThreads()
        self.seconds = 50.0
        self.observer = HistoryObserver(self.file, self.threads, lambda: self.seconds)

    def test_a_row_has_the_phases(self):
        self.observer(TunnelOpened(tunnel=FACTS))
        self.seconds = 50.5
        self.observer(PhaseReached(tunnel=FACTS, phase=TunnelPhase.SERVING))
        self.seconds = 52.0
        self.observer(PhaseReached(tunnel=FACTS, phase=TunnelPhase.SERVING))
        self.observer(ENDED)
        self.threads.go_on()
        self.assertEqual(self.file.find(), [MOVE])

    def test_rows_are_written_one_after_the_other_and_not_without_bound(self):
        for _ in range(history.MOST_WAITING + 5):
            self.observer(ENDED)
        self.assertEqual(len(self.threads.waiting), 1)
        written = 0
        while self.threads.waiting:
            self.threads.go_on()
            written += 1
        self.assertEqual(written, history.MOST_WAITING + 1)

    def test_a_failure_costs_a_row_only(self):
        self.path.mkdir()
        self.observer(ENDED)
        self.threads.go_on()
        self.path.rmdir()
        self.observer(ENDED)
        self.threads.go_on()
        self.assertEqual(len(self.file.find()), 1)
