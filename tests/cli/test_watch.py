"""`mtunnel watch`: a table, or a line for each change; and how it ends."""

import io
import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console
from twisted.internet import defer
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.cli import watch as watch_module
from mtunnel_tx.cli.moves import move_line, moves_table
from mtunnel_tx.cli.watch import ChangeLines, Screen, WatchLoop, make_viewer
from mtunnel_tx.errors import BackendFailed, TimedOut
from mtunnel_tx.ports.moves import Carried, Expected, MovePhase, Reached, StoodStill, TransferKind
from mtunnel_tx.watch.move import apply
from tests.watch.test_move import MIB, NEW

MOVE = apply(NEW, Reached(phase=MovePhase.MIRROR), 1000.0)
for number, kind in ((0, TransferKind.MIRROR), (1, TransferKind.MEMORY)):
    MOVE = apply(MOVE, Expected(label=f"x{number}", kind=kind, total_bytes=100 * MIB), 1000.0)
for second in range(5):
    MOVE = apply(MOVE, Carried(label="x0", done_bytes=second * 10 * MIB), 1000.0 + second)
DONE = apply(apply(MOVE, StoodStill(downtime_s=0.13), 1005.0), Reached(phase=MovePhase.DONE), 1005.0)


class Shown(SynchronousTestCase):
    def test_a_line(self):
        self.assertEqual(
            move_line(MOVE), "VM 100 to b as 200: mirror, 20 %, 40.0 MiB of 200.0 MiB, 10.0 MiB/s, 0:16 left"
        )
        self.assertEqual(move_line(DONE), "VM 100 to b as 200: done, downtime 130 ms")
        coming = replace(MOVE, direction="in", source="", transfers=(), phase=MovePhase.HELD, reason="[why]")
        self.assertEqual(move_line(coming), "VM 100 from 192.0.2.1: held: [why]")

    def test_a_table(self):
        out = io.StringIO()
        Console(file=out, width=150).print(moves_table([MOVE]))
        rows = [" ".join(line.split()) for line in out.getvalue().splitlines()[1:]]
        self.assertEqual(rows, [
            "100 to b as 200 mirror all 40.0 MiB 200.0 MiB 20 10.0 MiB/s 0:16",
            "x0 40.0 MiB 100.0 MiB 40 10.0 MiB/s 0:06",
            "x1 0.0 MiB 100.0 MiB 0",
        ])  # fmt: skip

    def test_a_screen_is_drawn_again(self):
        out = io.StringIO()
        with Screen(Console(file=out, force_terminal=True, width=120)) as screen:
            screen.show([])
            screen.show([MOVE])
        self.assertIn("no moves", out.getvalue())
        self.assertIn("mirror", out.getvalue())


class Ends(SynchronousTestCase):
    """Looks by the clock, at states that are put there."""

    def setUp(self):
        self.clock = Clock()
        self.states = []
        self.out = io.StringIO()

    def start(self, vmid, *states):
        self.states = list(states)
        watch = WatchLoop(self.clock, None, ChangeLines(move_line))

        async def look():
            return self.states.pop(0) if len(self.states) > 1 else self.states[0]

        watch._look = look
        with redirect_stdout(self.out):
            status = defer.Deferred.fromCoroutine(watch.run(vmid))
            self.clock.pump([1] * 9)
        return status

    def test_only_changes_are_printed(self):
        later = apply(MOVE, Carried(label="x0", done_bytes=40 * MIB + 1), 1005.0)
        status = self.start(100, [MOVE], [later], [later], [DONE])
        self.assertEqual(self.successResultOf(status), 0)
        self.assertEqual(self.out.getvalue().splitlines(), [move_line(MOVE), move_line(DONE)])

    def test_it_stayed_there(self):
        over = apply(MOVE, Reached(phase=MovePhase.ROLLED_BACK, reason="no"), 1005.0)
        self.assertEqual(self.successResultOf(self.start(100, [MOVE], [over])), 1)
        self.assertIn("rolled back: no", self.out.getvalue())

    def test_it_does_not_move(self):
        err = io.StringIO()
        self.patch(sys, "stderr", err)
        self.assertEqual(self.successResultOf(self.start(101, [MOVE])), 1)
        self.assertIn("VM 101 does not move", err.getvalue())

    def test_it_does_not_move_as_json(self):
        reactor = Clock()
        loop = WatchLoop(reactor, None, make_viewer(as_json=True), as_json=True)
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        self.assertEqual(self.successResultOf(defer.Deferred.fromCoroutine(loop._after(101, None))), 1)
        self.assertEqual(json.loads(out.getvalue()), {"success": False, "msg": "VM 101 does not move"})

    def test_without_a_vmid_it_goes_on(self):
        self.assertNoResult(self.start(None, [MOVE], [DONE], []))

    def test_without_a_daemon(self):
        """It is said once for each time, and what is waited for."""
        err = io.StringIO()
        self.patch(sys, "stderr", err)
        answers = [BackendFailed("no daemon answers"), TimedOut("no reply"), {"moves": []}, BackendFailed("gone again")]

        async def ask(*_):
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.patch(watch_module, "ask", ask)
        self.patch(watch_module, "deferToThread", lambda *_: defer.succeed([]))
        loop = WatchLoop(self.clock, SimpleNamespace(runtime_dir=Path("/nowhere")), ChangeLines(move_line))
        watching = defer.Deferred.fromCoroutine(loop.run(None))
        self.clock.pump([1] * 9)
        self.assertNoResult(watching)
        rest = "; only moves that go from here are shown, as soon as there are any\n"
        self.assertEqual(err.getvalue(), f"mtunnel watch: no daemon answers{rest}mtunnel watch: gone again{rest}")
        self.assertEqual(self.successResultOf(defer.Deferred.fromCoroutine(loop.run(101))), 1)
        self.assertIn("VM 101 does not move; whether it comes here is not known: gone again\n", err.getvalue())

    def test_json(self):
        self.patch(watch_module.sys, "stdout", self.out)
        with make_viewer(as_json=True) as viewer:
            viewer.show([MOVE])
        self.assertEqual(json.loads(self.out.getvalue())["percent"], 20)
