"""A guest that changes its memory faster than it is sent runs at the target before all of it is there (post-copy)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from mtunnel_tx.backends.process import read_record
from tests.guest.ticker import read_beats
from tests.patience import patience_s, wait_for
from tests.whole.node import Node
from tests.whole.test_online import Listener, OnlineCase

OPTIONS = ("--max-downtime", "0.2", "--timeout", "6", "--on-timeout", "postcopy")


def words(node: Node, name: str) -> list[str]:
    """Of the records in a journal."""
    try:
        return [json.loads(line)["do"] for line in (node.state / "journal" / f"{name}.jsonl").read_text().splitlines()]
    except OSError:
        return []


class PostcopyTests(OnlineCase):
    """8 MiB change many times a second, and 2 MiB a second are sent."""

    def boot_busy(self) -> tuple[Listener, Listener]:
        before, after = self.boot(burst=128), Listener(self.there.runtime / "200.serial0")
        self.addCleanup(setattr, after, "stopped", True)
        return before, after

    def start_moving(self) -> subprocess.Popen[str]:
        """Returns: the program, in the middle of post-copy."""
        argv = [sys.executable, "-m", "mtunnel_tx.cli", "migrate", "100", self.there.endpoint, "--online"]
        argv += ["--target-vmid", "200", "--target-storage", "local", "--bwlimit", "1024", *OPTIONS]
        program = self.start(argv)
        wait_for("post-copy", lambda: "resumed" in words(self.here, "source-100"), 60)
        return program

    def settle(self, node: Node, vmid: int, *decision: str, check: bool = True) -> str:
        done = node.run("mtunnel_tx.cli", "settle", str(vmid), *decision, check=check)
        return f"{done.stdout}{done.stderr}"

    def wait_until_held(self) -> None:
        wait_for("its end there", lambda: "waits for 'mtunnel settle 200'" in self.status_of(self.there), 60)

    def tell_people(self) -> Path:
        """Returns: the file to which the source's command writes each notice, as a line."""
        file = self.here.root / "notices"
        code = f"import sys; open({str(file)!r}, 'a').write(sys.stdin.read() + chr(10))"
        text = f"\n[notify]\ncommand = {json.dumps([sys.executable, '-c', code])}\nend_s = {patience_s():.0f}\n"
        self.here.config.write_text(self.here.config.read_text() + text)
        return file

    def status_of(self, node: Node) -> str:
        return node.run("mtunnel_tx.cli", "status").stdout

    def test_it_runs_there_before_all_of_it_is_there(self) -> None:
        before, after = self.boot_busy()
        done = self.migrate("--bwlimit", "2048", *OPTIONS)
        self.assertRegex(done.stdout, r"it was not there within 6 s: memory: .*; it goes on there before all of its")
        self.assertRegex(done.stdout, r"it runs there; downtime \d+ ms\n(?s:.*)post-copy: \d+\.\d MiB remain\n")
        wait_for("beats there", lambda: len(after.beats) > 3)
        beats = read_beats(before.text + after.text)
        numbers = [number for number, _ in beats]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        self.assertEqual({flag for _, flag in beats}, {"."})
        self.assertIn("running", self.status(self.there, 200))
        self.assertIn("stopped", self.status(self.here, 100))
        self.assertNotIn("lock:", self.there.guest(200) or "")
        self.assertEqual((words(self.here, "source-100"), words(self.there, "200")), ([], []))

    def test_the_source_program_is_killed(self) -> None:
        """Neither side has all of it, and neither lets it run by itself."""
        self.boot_busy()
        self.start_moving().kill()
        said = self.settle(self.here, 100, check=False)
        self.assertIn("VM 100 is in two parts (post-copy)", said)
        self.assertIn("QEMU here has the rest, and waits", said)
        self.there.stop(signal.SIGTERM)
        self.there.start()
        self.assertIn("before all of its memory came (post-copy)", self.status_of(self.there))
        self.assertIn("in two parts", self.migrate(check=False).stderr)
        self.settle(self.here, 100, "--there")
        if "kill this QEMU" in self.settle(self.there, 200, "--resume", check=False):
            os.kill(read_record(self.there.runtime / "200.pid").pid, signal.SIGKILL)
            self.settle(self.there, 200, "--resume")
        self.assertIn("moved:", self.here.guest(100) or "")
        self.assertIn("stopped", self.status(self.there, 200))
        self.there.run("mtunnel_tx.cli", "vm", "start", "200")

    def test_qemu_there_is_killed(self) -> None:
        """People at the source are told that somebody has to decide."""
        self.boot_busy()
        notices = self.tell_people()
        program = self.start_moving()
        record = read_record(self.there.runtime / "200.pid")
        os.kill(record.pid, signal.SIGKILL)
        said = program.communicate(timeout=patience_s(60))[1]
        self.assertIn("VM 100 is in two parts (post-copy)", said)
        (notice,) = map(json.loads, notices.read_text().splitlines())
        self.assertEqual((notice["event"], notice["end"], notice["host"]), ("held", "source", "here"))
        self.assertEqual((notice["move"]["vmid"], notice["move"]["target_vmid"]), (100, 200))
        self.assertNotEqual(notice["move"]["reason"], "")
        self.wait_until_held()
        self.assertIn("and its QEMU here is gone", self.status_of(self.there))
        self.settle(self.here, 100, "--here")
        self.settle(self.there, 200, "--discard")
        self.assertIn("stopped", self.status(self.here, 100))
        self.here.run("mtunnel_tx.cli", "vm", "start", "100")
