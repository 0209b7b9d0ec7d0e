"""A running VM on its way while nothing arrives any more, and nothing says so: with the limits that everybody has."""

from __future__ import annotations

import os
import shutil
import sys
import time

from twisted.trial.unittest import SkipTest

from tests.guest.ticker import read_beats
from tests.patience import patience_s, wait_for
from tests.whole.node import Node
from tests.whole.test_keepalive import FarNode
from tests.whole.test_online import Listener, OnlineCase

HOLE_S = 30.0
"""Twice the time after which a connection that acknowledges nothing is lost."""


class BlackHoleTests(OnlineCase):
    def make_target(self) -> Node:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise SkipTest("needs root and ip (Debian: iproute2): it makes a network namespace")
        self.far = FarNode(self, "[limits]\npark_s = 120")
        return self.far.start()

    def parked(self) -> set[str]:
        tunnels = self.far.ask(cmd="status")["tunnels"]
        return {flow["socket"] for tunnel in tunnels for flow in tunnel["parked"]}

    def test_not_a_beat_is_lost(self) -> None:
        before, after = self.boot(), Listener(self.there.runtime / "200.serial0")
        self.addCleanup(setattr, after, "stopped", True)
        endpoint = self.far.endpoint.replace("host=127.0.0.1", f"host={self.far.OURS}")
        argv = ["ip", "netns", "exec", self.far.spaces[1], sys.executable, "-m", "mtunnel_tx.cli", "migrate", "100"]
        argv += [endpoint, "--online", "--target-vmid", "200", "--target-storage", "local", "--bwlimit", "2048"]
        migration = self.start(argv)
        wait_for("the memory", lambda: (self.there.runtime / "200.migrate").exists() and self.is_sending(), 60)
        self.far.cut()
        began_s = time.monotonic()
        wait_for("parked flows", lambda: "memory" in self.parked(), 60)
        while time.monotonic() < began_s + HOLE_S:
            time.sleep(0.5)  # it is the fault itself that lasts
        self.far.mend()
        out, err = migration.communicate(timeout=patience_s(120))
        self.assertEqual(migration.returncode, 0, (out, err))
        self.assertRegex(out, r"connection lost, waiting \(0:00 of 2:00\)\n(?s:.*)resumed after 0:[1-5]\d")
        wait_for("beats at the target", lambda: len(after.beats) >= 5)
        numbers = [number for number, _ in read_beats(before.text + after.text)]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        self.assertIn("running", self.status(self.there, 200))
        wait_for("the end of the tunnel", lambda: not self.far.ask(cmd="status")["tunnels"])
        self.assertEqual(self.there.left_over()["journals"], [])

    def is_sending(self) -> bool:
        """Whether the mirrors are level, and the memory is on its way."""
        tunnels = self.far.ask(cmd="status")["tunnels"]
        return bool(tunnels) and tunnels[0]["bytes_in"] > 18 << 20
