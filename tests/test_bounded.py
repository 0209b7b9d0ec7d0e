"""A run of tests ends, says why, and leaves nothing."""

import os
import signal
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import VARIABLE, patience_s, wait_for
from tests.processes import run_program, started_process

ROOT = Path(__file__).parents[1]
BOUNDED = [sys.executable, "-m", "tests.bounded"]
HANGS = "import time; print('up', flush=True); time.sleep(600)"
LEAVES = "setsid sleep 600 >/dev/null 2>&1 & echo $!; exit 3"


def bounded(*argv, patience="0.002", **options):
    environ = {**os.environ, VARIABLE: patience}
    return run_program([*BOUNDED, *argv], cwd=ROOT, env=environ, check=False, capture_output=True, text=True, **options)


class Bounded(SynchronousTestCase):
    def assert_ended(self, pid):
        wait_for(f"the end of {pid}", lambda: not Path(f"/proc/{pid}").exists())

    def test_the_status_is_the_commands(self):
        for text, status in (("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 128 + signal.SIGKILL)):
            self.assertEqual(bounded("sh", "-c", text, patience="1").returncode, status)

    def test_too_long(self):
        with tempfile.NamedTemporaryFile(dir="/tmp") as log:
            text = f'{sys.executable} -c "{HANGS}" 2>{log.name} & echo $!; wait'
            done = bounded("sh", "-c", text)
        pid = done.stdout.splitlines()[0]
        self.assertEqual(done.returncode, 124, done.stderr)
        self.assertIn("The tests take too long", done.stdout)
        self.assertRegex(done.stdout, rf"(?m)^  {pid} S \d+ s: .*python.* -c import time")
        self.assertIn('File "<string>", line 1 in <module>', done.stdout)
        self.assert_ended(pid)

    def test_something_is_left(self):
        done = bounded("sh", "-c", LEAVES)
        pid = done.stdout.splitlines()[0]
        self.assertEqual(done.returncode, 3)
        self.assertRegex(done.stdout, rf"The tests have left these processes running:\n{pid} S \d+ s: sleep 600")
        self.assert_ended(pid)
        self.assertEqual(bounded("sh", "-c", LEAVES.replace("exit 3", "exit 0")).returncode, 1)

    def test_interrupted(self):
        words = [*BOUNDED, "sh", "-c", "trap 'echo cleaned; exit' TERM; echo up; while :; do sleep 0.1; done"]
        process = started_process(self.addCleanup, words, cwd=ROOT, stdout=PIPE, text=True)
        self.assertEqual(process.stdout.readline(), "up\n")
        process.terminate()
        self.assertEqual(process.communicate(timeout=patience_s())[0], "cleaned\n")
        self.assertEqual(process.returncode, 128 + signal.SIGTERM)
