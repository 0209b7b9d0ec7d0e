"""`workers` and `limits.restart_s`: moves go on when the daemon that receives them is killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.guest.ticker import read_beats
from tests.patience import patience_s, tries, wait_for
from tests.whole.hostile import import_child
from tests.whole.moving import Move, kept, make_qcow2, moved, state_of
from tests.whole.node import Node
from tests.whole.test_online import Listener, OnlineCase
from tests.whole.test_workers import workers

EXTRA = 'workers = 1\nuser = "nobody"\n[limits]\nrestart_s = 120\n'


class RestartCase(SynchronousTestCase):
    extra = EXTRA

    def setUp(self) -> None:
        self.node = Node(extra=self.extra)
        self.addCleanup(self.node.close)
        self.node.start()

    def restart(self, signal_number: int) -> None:
        before = workers(self.node)
        self.node.stop(signal_number)
        self.node.start()
        self.assertEqual(workers(self.node), before)


class StatusTests(SynchronousTestCase):
    """Packages ask before they restart the service."""

    def survives(self, extra: str) -> bool:
        node = Node(extra=extra)
        self.addCleanup(node.close)
        return bool(node.start().ask(cmd="status")["survives_restart"])

    def test_it_says_whether_a_restart_cuts_moves(self) -> None:
        self.assertTrue(self.survives(EXTRA))
        self.assertFalse(self.survives(""))
        self.assertFalse(self.survives("[limits]\nrestart_s = 120\n"))


class OfflineTests(RestartCase):
    def move_with_restarts(self, signal_number: int, *others: str) -> None:
        """The daemon is restarted in the middle of a disk, and before some steps. No connection is made anew."""
        image = make_qcow2()
        move = Move(self.node, 100, image)
        move.version()
        stream, payload = move.begin("raw"), move.payload("raw")
        importer, half = import_child(self.node), len(payload) // 2
        stream.send(payload[:half])
        # A stream whose upgrade was just answered would end with the daemon.
        wait_for("its first half", lambda: self.node.ask(cmd="status")["tunnels"][0]["bytes_in"] >= half)
        self.restart(signal_number)
        self.assertEqual(import_child(self.node), importer)
        stream.send(payload[half:])
        stream.send_close()
        stream.drop()
        move.finish()
        for step in ("qcow2", "disk", "config", "unlock", "quit"):
            if step in others:
                self.restart(signal_number)
            move.run(step)
        move.leave()
        found = state_of(self.node, 100)
        self.assertEqual(found, {**moved(100, image, "TASK OK"), **kept(found)})

    def test_the_daemon_is_killed(self) -> None:
        self.move_with_restarts(signal.SIGKILL, "disk", "unlock", "quit")

    def test_the_daemon_is_asked_to_end(self) -> None:
        self.move_with_restarts(signal.SIGTERM)

    def test_a_worker_that_ends_while_no_daemon_runs(self) -> None:
        """The next daemon starts, and has another one."""
        (worker,) = workers(self.node)
        Move(self.node, 100, make_qcow2()).version()
        usual = self.node.before
        self.node.stop(signal.SIGKILL)
        os.kill(worker, signal.SIGKILL)
        self.node.start()
        wait_for("another worker", lambda: self.node.ask(cmd="status")["workers"])
        self.assertNotEqual(workers(self.node), [worker])
        self.node.before = usual  # with a worker


class OnlineTests(OnlineCase):
    def make_target(self) -> Node:
        return Node("there", extra=EXTRA).start()

    def test_a_running_vm(self) -> None:
        """The daemon is killed while the disk is mirrored; no connection is lost, and not a beat."""
        before, after = self.boot(), Listener(self.there.runtime / "200.serial0")
        self.addCleanup(setattr, after, "stopped", True)
        argv = [sys.executable, "-m", "tests.whole.plainsource", "migrate", "100", self.there.endpoint, "--online"]
        running = self.start([*argv, "--target-vmid", "200", "--target-storage", "local", "--bwlimit", "1000"])
        self.wait_for_streams(2, running)
        connections, port = connected(self.there.port), self.there.port
        self.there.stop(signal.SIGKILL)
        self.there.start()
        self.assertGreaterEqual(len(connections & connected(port)), 2, self.there.log.read_text())
        out, err = running.communicate(timeout=patience_s(90))
        self.assertEqual(running.returncode, 0, (out, err, self.there.log.read_text()))
        wait_for("beats at the target", lambda: len(after.beats) >= 5)
        beats = read_beats(before.text + after.text)
        numbers = [number for number, _ in beats]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        self.assertEqual({flag for _, flag in beats}, {"."})

    def wait_for_streams(self, least: int, running: subprocess.Popen[str]) -> None:
        """Until the source has so many websockets."""
        for _ in tries(f"{least} streams"):
            if running.poll() is not None:
                raise AssertionError(f"{running.communicate(timeout=patience_s())}, {self.there.log.read_text()}")
            tunnels = self.there.ask(cmd="status")["tunnels"]
            # Their websockets are open only when bytes have come.
            if tunnels and tunnels[0]["streams"] >= least and tunnels[0]["bytes_in"] > 1 << 18:
                return
            time.sleep(0.02)


def connected(port: int) -> set[str]:
    """The peers of the connections to this port of the loopback that are established."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {peer for _, own, peer, state, *_ in lines if own == f"0100007F:{port:04X}" and state == "01"}
