"""Another version of the daemon is started in the middle of a move, on the state of the one before."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.guest.ticker import read_beats
from tests.patience import patience_s, wait_for
from tests.whole.hostile import import_child
from tests.whole.moving import Move, make_qcow2, moved, nothing, state_of
from tests.whole.test_online import Listener, OnlineCase
from tests.whole.test_restart import EXTRA, connected, kept
from tests.whole.test_workers import workers
from tests.whole.versions import TREE, VersionedNode, copy_tree, earlier_tree

OTHER_WORDS = "4b7cbcc"
"""Its daemon and workers speak version 1 of each other's words."""
OTHER_JOURNAL = "7bd562c"
"""It writes journals of version 1, and knows nothing of holders."""
NEXT = "99.1.0"
SIGNALS = (signal.SIGTERM, signal.SIGKILL)


def is_there(pid: int) -> bool:
    """Whether a process runs."""
    return Path(f"/proc/{pid}").exists()


class UpgradeCase(SynchronousTestCase):
    extra = EXTRA

    def make_node(self, tree: Path = TREE) -> VersionedNode:
        node = VersionedNode(extra=self.extra)
        self.addCleanup(node.close)
        node.tree = tree
        node.start()
        return node

    def half_a_disk(self, node: VersionedNode) -> tuple[Move, bytes]:
        """A move whose first disk is half sent."""
        move = Move(node, 100, make_qcow2())
        move.version()
        self.stream = move.begin("raw")
        payload = move.payload("raw")
        half = len(payload) // 2
        self.stream.send(payload[:half])
        wait_for("its first half", lambda: node.ask(cmd="status")["tunnels"][0]["bytes_in"] >= half)
        return move, payload[half:]


class OfflineTests(UpgradeCase):
    def go_on(self, signal_number: int) -> None:
        """The new daemon takes over: no connection is made anew, and who has a stream ends when that is over."""
        node, there = self.make_node(), copy_tree(self.addCleanup, NEXT)
        move, rest = self.half_a_disk(node)
        importer, former = import_child(node), workers(node)
        node.upgrade(there, signal_number)
        self.assertEqual(import_child(node), importer)
        self.assertTrue(all(is_there(pid) for pid in former))
        self.assertFalse(set(former) & set(workers(node)))
        self.assertEqual(node.ask(cmd="status")["version"], NEXT)
        self.stream.send(rest)
        self.stream.send_close()
        self.stream.drop()
        move.finish()
        move.run("qcow2", "disk", "config", "unlock", "quit")
        move.leave()
        wait_for("the end of the former workers", lambda: not any(is_there(pid) for pid in former))
        found = state_of(node, 100)
        self.assertEqual(found, {**moved(100, move.image, "TASK OK"), **kept(found)})

    def test_the_daemon_is_asked_to_end(self) -> None:
        self.go_on(signal.SIGTERM)

    def test_the_daemon_is_killed(self) -> None:
        self.go_on(signal.SIGKILL)


def ended(node: VersionedNode, vmid: int) -> dict[str, Any] | None:
    """Returns: state_of, once the task of its tunnel is over."""
    found = state_of(node, vmid)
    is_over = not found["journals"] and all(task.startswith("TASK ") for task in found["tasks"])
    return found if is_over else None


class OtherWordsTests(UpgradeCase):
    def end(self, signal_number: int) -> None:
        """What the new daemon cannot talk to ends by the rule, and says so; nothing is left, the next move works."""
        node = self.make_node(earlier_tree(self.addCleanup, OTHER_WORDS))
        self.half_a_disk(node)
        before = workers(node)
        node.upgrade(TREE, signal_number)
        self.assertFalse(set(workers(node)) & set(before))
        found = wait_for("the end of the task", lambda: ended(node, 100))
        self.assertEqual(found, {**nothing(*found["tasks"]), **kept(found)})
        self.assertEqual([task.startswith("TASK ERROR: ") for task in found["tasks"]], [True])
        log = node.log.read_text()
        self.assertIn("1 workers of another version are ended, with their streams", log)
        if signal_number == signal.SIGKILL:  # else it has ended its tunnels itself
            self.assertIn("a flow of an earlier daemon ends: it was kept in words of version 1, not 2", log)
        self.assertNotIn("Traceback", log)
        again = Move(node, 100, make_qcow2())
        again.run(*Move.STEPS)
        again.leave()
        found = state_of(node, 100)
        self.assertIn("TASK OK", found["tasks"])

    def test_the_daemon_is_asked_to_end(self) -> None:
        self.end(signal.SIGTERM)

    def test_the_daemon_is_killed(self) -> None:
        self.end(signal.SIGKILL)


class OtherJournalTests(UpgradeCase):
    extra = ""

    def killed_after(self, *steps: str) -> VersionedNode:
        node = self.make_node(earlier_tree(self.addCleanup, OTHER_JOURNAL))
        self.move = Move(node, 100, make_qcow2())
        self.move.run(*steps)
        node.stop(signal.SIGKILL)
        self.assertIn('"version":1', (node.state / "journal" / "100.jsonl").read_text().replace(" ", ""))
        node.tree = TREE
        node.start()
        return node

    def test_one_that_was_not_handed_over_is_rolled_back(self) -> None:
        node = self.killed_after("version", "raw", "qcow2", "disk", "config")
        self.assertEqual(state_of(node, 100), nothing("TASK ERROR: the daemon ended before the tunnel did"))

    def test_one_that_was_handed_over_is_kept(self) -> None:
        node = self.killed_after("version", "raw", "qcow2", "disk", "config", "unlock")
        expected = moved(100, self.move.image, "TASK ERROR: the daemon ended before the tunnel did")
        self.assertEqual(state_of(node, 100), expected)


class OnlineTests(OnlineCase):
    def make_target(self) -> VersionedNode:
        node = VersionedNode("there", extra=EXTRA)
        node.start()
        return node

    def begin(self) -> subprocess.Popen[str]:
        """A running VM is half sent; its flows are resumable ones."""
        self.before, self.after = self.boot(), Listener(self.there.runtime / "200.serial0")
        self.addCleanup(setattr, self.after, "stopped", True)
        running = self.start_slow_migration()

        def is_sent() -> bool:
            tunnels = self.there.ask(cmd="status")["tunnels"]
            return bool(tunnels) and tunnels[0]["streams"] >= 2 and tunnels[0]["bytes_in"] > 1 << 18

        wait_for("the mirror", is_sent)
        return running

    def assert_beats(self, text: bytes) -> None:
        beats = read_beats(text)
        numbers = [number for number, _ in beats]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        self.assertEqual({flag for _, flag in beats}, {"."})

    def test_the_next_version_takes_over(self) -> None:
        """The same connections, and not a beat is lost."""
        there = self.there
        assert isinstance(there, VersionedNode)
        running, tree = self.begin(), copy_tree(self.addCleanup, NEXT)
        connections, port = connected(there.port), there.port
        there.upgrade(tree, signal.SIGKILL)
        self.assertGreaterEqual(len(connections & connected(port)), 2, there.log.read_text())
        out, err = running.communicate(timeout=patience_s(90))
        self.assertEqual(running.returncode, 0, (out, err, there.log.read_text()))
        wait_for("beats at the target", lambda: len(self.after.beats) >= 5)
        self.assert_beats(self.before.text + self.after.text)


class OtherWordsOnlineTests(OnlineTests):
    def make_target(self) -> VersionedNode:
        node = VersionedNode("there", extra=EXTRA)
        node.tree = earlier_tree(self.addCleanup, OTHER_WORDS)
        node.start()
        return node

    def test_the_next_version_takes_over(self) -> None:
        """It cannot: the VM runs on at its source, and nothing is left at the target."""
        there = self.there
        assert isinstance(there, VersionedNode)
        running = self.begin()
        there.upgrade(TREE, signal.SIGKILL)
        out, err = running.communicate(timeout=patience_s(90))
        self.assertEqual(running.returncode, 1, (out, err, there.log.read_text()))
        self.assertIn("runs on here", out + err)
        count = len(self.before.beats)
        wait_for("beats at the source", lambda: len(self.before.beats) > count + 3)
        self.assert_beats(self.before.text)
        self.assertEqual((there.guest(200), there.images(200)), (None, []))
        self.assertFalse((there.runtime / "200.pid").exists())
