"""`workers` and `limits.restart_s`: moves go on when the daemon that receives them is killed and started again."""

from __future__ import annotations

import signal
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.whole.hostile import import_child
from tests.whole.moving import Move, make_qcow2, moved, state_of
from tests.whole.node import Node
from tests.whole.test_workers import can_become_nobody, workers

EXTRA = 'workers = 1\nuser = "nobody"\n[limits]\nrestart_s = 120\n'


class RestartCase(SynchronousTestCase):
    extra = EXTRA

    def setUp(self) -> None:
        if not can_become_nobody():
            raise SkipTest("user nobody cannot read this tree, so its workers cannot run")
        self.node = Node(extra=self.extra)
        self.addCleanup(self.node.close)
        self.node.start()

    def restart(self, signal_number: int) -> None:
        before = workers(self.node)
        self.node.stop(signal_number)
        self.node.start()
        self.assertEqual(workers(self.node), before)


class OfflineTests(RestartCase):
    def move_with_restarts(self, signal_number: int, *others: str) -> None:
        """The daemon is restarted in the middle of a disk, and before some steps. No connection is made anew."""
        image = make_qcow2()
        move = Move(self.node, 100, image)
        move.version()
        stream, payload = move.begin("raw"), move.payload("raw")
        importer, half = import_child(self.node), len(payload) // 2
        stream.send(payload[:half])
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


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """What a daemon of this kind has besides: its holder's socket, and processes."""
    return {"sockets": ["control.sock", "hold.sock"], "processes": found["processes"]}
