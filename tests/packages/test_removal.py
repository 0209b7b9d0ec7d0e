"""Whether the package may be removed: its script, beside real and other answers of `mtunnel status`."""

import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from tests.packages.scripts import write_script
from tests.processes import run_program

BESIDE_PYTHON = Path(sys.executable).parent
OVER, GOING = {"ended_s": 5.0}, {"ended_s": None}
QUIET = {"tunnels": [], "moves": [OVER], "departures": {}, "held": {}}


class Removal(SynchronousTestCase):
    def setUp(self):
        # As short as a socket's path has to be.
        self.root = Path(self.enterContext(TemporaryDirectory(prefix="mtunnel-", dir="/tmp")))
        self.script = write_script("prerm", self.root)
        self.programs = self.root / "bin"
        self.programs.mkdir()

    def remove(self, **environ):
        environ = {**os.environ, "PATH": f"{self.programs}:{os.environ['PATH']}", **environ}
        return run_program(
            ["sh", self.script, "remove"], env=environ, check=False, capture_output=True, text=True, cwd=self.root
        )

    def answer(self, status):
        (self.root / "answer").write_text(json.dumps(status))
        program = self.programs / "mtunnel"
        program.write_text(f"#!/bin/sh\ncat '{self.root}/answer'\n")
        program.chmod(0o755)
        return self.remove()

    def assert_refused(self, done):
        self.assertEqual(done.returncode, 1, done.stderr)
        for text in ("a VM is on its way", "mtunnel settle", "MTUNNEL_REMOVE_ANYWAY=1"):
            self.assertIn(text, done.stderr)

    def test_nothing_is_open(self):
        for status in (QUIET, {"success": False, "journals": [], "departures": {}, "moves": []}):
            done = self.answer(status)
            self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_what_is_open(self):
        for status in (
            {"tunnels": [{"vmid": 100}]},
            {"moves": [OVER, GOING]},
            {"held": {"100": "its source is gone"}},
            {"departures": {"100": "is on its way"}},
            {"success": False, "journals": [100], "moves": []},
        ):
            self.assert_refused(self.answer({**QUIET, **status}))

    def test_no_daemon_answers_after_a_crash(self):
        (self.programs / "mtunnel").symlink_to(BESIDE_PYTHON / "mtunnel")
        config = self.root / "mtunnel.toml"
        config.write_text(f'state_dir = "{self.root}/state"\nruntime_dir = "{self.root}/run"\n')
        self.assertEqual(self.remove(MTUNNEL_CONFIG=str(config)).returncode, 0)
        journal = self.root / "state" / "journal"
        journal.mkdir(parents=True)
        (journal / "100.jsonl").write_text("{}\n")
        self.assert_refused(self.remove(MTUNNEL_CONFIG=str(config)))
        done = self.remove(MTUNNEL_CONFIG=str(config), MTUNNEL_REMOVE_ANYWAY="1")
        self.assertEqual(done.returncode, 0, done.stderr)
