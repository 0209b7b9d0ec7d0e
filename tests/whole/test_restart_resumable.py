"""Moves by `mtunnel migrate` whose receiving daemon is killed, or asked to end, and started again in their middle."""

from __future__ import annotations

import signal
import subprocess
import time

from tests.guest.ticker import read_beats
from tests.patience import patience_s, wait_for
from tests.whole.node import Node
from tests.whole.test_online import Listener, OnlineCase
from tests.whole.test_outages import StoppedVmCase
from tests.whole.test_restart import connected
from tests.whole.test_workers import workers

EXTRA = 'workers = 1\nuser = "nobody"\n[limits]\nrestart_s = 120\npark_s = 60\n'
AWAY_S = 2.0


class StoppedVmTests(StoppedVmCase):
    extra = EXTRA

    def move(self, number: int, *, cut: str = "") -> str:
        """A disk is sent; in its middle there is no daemon for a while. Returns: what the source has said.

        Args: cut: when every connection is lost, `before` the daemon ends or `meanwhile`.
        """
        data = self.make_disk(16 << 20)
        migration = self.start("--bwlimit", "2048")
        self.through.cut(most=0, every_s=(1, 1)).stop()
        wait_for("some of the disk", lambda: self.through.tunnels()[0]["bytes_in"] > 1 << 20)
        before = workers(self.there)
        if cut == "before":
            self.through.proxy.cut_all()
        self.there.stop(number)
        if cut == "meanwhile":
            self.through.proxy.cut_all()
            time.sleep(AWAY_S)  # so long there is nobody, and the source dials
        self.assertIsNone(migration.poll())
        self.there.start()
        self.through.proxy.port = self.there.port
        self.through.proxy.down = False
        self.assertEqual(workers(self.there), before)
        out, err = migration.communicate(timeout=patience_s(120))
        self.assertEqual(migration.returncode, 0, (out, err, self.there.log.read_text()[-4000:]))
        self.assertTrue((self.there.storage / "images" / "200" / "vm-200-disk-0.raw").read_bytes() == data)
        self.wait_for_end()
        self.assertEqual(self.there.left_over()["journals"], [])
        return out

    def test_killed(self) -> None:
        self.assertNotIn("connection lost", self.move(signal.SIGKILL))

    def test_asked_to_end(self) -> None:
        self.assertNotIn("connection lost", self.move(signal.SIGTERM))
        self.assertIn("left to the next daemon, which has 120 s: moves: 1", self.there.log.read_text())

    def test_killed_while_parked(self) -> None:
        self.assertIn("resumed after", self.move(signal.SIGKILL, cut="before"))

    def test_connections_are_lost_while_nobody_is_there(self) -> None:
        self.assertIn("resumed after", self.move(signal.SIGKILL, cut="meanwhile"))


class RunningVmTests(OnlineCase):
    """Not a beat is lost, and no connection, whenever the daemon is restarted."""

    def make_target(self) -> Node:
        return Node("there", extra=EXTRA).start().keep_port()

    def restart(self, number: int, running: subprocess.Popen[str], *, least: int) -> None:
        """So many connections at least are still the same ones; a stream may have ended meanwhile."""
        port, before = self.there.port, (connected(self.there.port), workers(self.there))
        self.there.stop(number)
        self.there.start()
        self.assert_runs(running)
        after = connected(port), workers(self.there)
        self.assertEqual(before[1], after[1], self.tail())
        self.assertGreaterEqual(len(before[0] & after[0]), least, (before, after, self.tail()))

    def assert_runs(self, running: subprocess.Popen[str]) -> None:
        if running.poll() is not None:
            self.fail(f"the migration has ended: {running.communicate(timeout=patience_s(10))}, {self.tail()}")

    def tail(self) -> str:
        return self.there.log.read_text()[-4000:]

    def move(self, number: int) -> None:
        before, after = self.boot(), Listener(self.there.runtime / "200.serial0")
        self.addCleanup(setattr, after, "stopped", True)
        running = self.start_slow_migration()
        for least_bytes, least in ((1 << 18, 1), (18 << 20, 2)):
            self.wait_for_bytes(least_bytes, running)
            self.restart(number, running, least=least)
        out, err = running.communicate(timeout=patience_s(180))
        self.assertEqual(running.returncode, 0, (out, err, self.there.log.read_text()[-6000:]))
        unused = self.there.log.read_text().count("lost before it was used")
        self.assertLessEqual(out.count("resumed after"), unused, (out, self.tail()))
        wait_for("beats at the target", lambda: len(after.beats) >= 5)
        beats = read_beats(before.text + after.text)
        numbers = [number for number, _ in beats]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        self.assertEqual({flag for _, flag in beats}, {"."})
        self.assertIn("running", self.status(self.there, 200))
        self.assertIn("stopped", self.status(self.here, 100))
        wait_for("the end of the tunnel", lambda: not self.there.ask(cmd="status")["tunnels"])
        self.assertEqual(self.there.left_over()["journals"], [])

    def wait_for_bytes(self, least_bytes: int, running: subprocess.Popen[str]) -> None:
        """The disk has 16 MiB; what comes then is memory."""

        def have_come() -> bool:
            self.assert_runs(running)
            tunnels = self.there.ask(cmd="status")["tunnels"]
            return bool(tunnels) and tunnels[0]["bytes_in"] >= least_bytes and tunnels[0]["streams"] >= 2

        wait_for(f"{least_bytes} bytes", have_come)

    def test_killed(self) -> None:
        self.move(signal.SIGKILL)

    def test_asked_to_end(self) -> None:
        self.move(signal.SIGTERM)
