"""`mtunnel demo` as a person runs it: it ends well, and leaves nothing behind, however it ends."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.host import PROGRAM
from mtunnel_tx.demo.live import LEFT_OUT
from mtunnel_tx.demo.nodes import why_no_workers
from mtunnel_tx.demo.show import volumes
from tests.patience import patience_s
from tests.processes import run_program, started_process

COMMAND = [sys.executable, "-m", "mtunnel_tx.cli", "demo", "--data", "2"]
QUIET_S = 110
LEFT_BEHIND = "processes were left behind"


def processes_that_name(folder):
    """Returns: pids whose command line has this folder in it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if folder.encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:
            continue  # it has ended meanwhile
    return found


def run(argv, **options):
    return run_program(argv, check=False, capture_output=True, text=True, quiet_s=QUIET_S, **options)


class Demo(SynchronousTestCase):
    def setUp(self):
        # Short, as sockets are made below it.
        folder = tempfile.TemporaryDirectory(prefix="d", dir="/tmp")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.environ = {**os.environ, "TMPDIR": self.folder, "COLUMNS": "200"}
        self.environ.pop("MTUNNEL_CONFIG", None)

    def assert_nothing_left(self):
        self.assertEqual(processes_that_name(self.folder), [], LEFT_BEHIND)
        self.assertEqual(list(Path(self.folder).iterdir()), [])

    def test_a_vm_arrives(self):
        done = run(COMMAND, env=self.environ)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertNotIn("\x1b", done.stdout)
        self.assertNotIn("PVEAPIToken", done.stdout)
        for text in ("TASK OK", "scsi0: local:200/vm-200-disk-0.raw", "snapshot 'before'", " in 0:0", "name: demo"):
            self.assertIn(text, done.stdout)
        self.assertEqual(done.stdout.count(" same"), 3 + 1, done.stdout)
        self.assertRegex(done.stdout, r"watch it arrive, .* https://127\.0\.0\.1:\d+/mtunnel/enter\?key=[\w-]{43}\n")
        moved = ("none is missing, none came twice", "has cut all connections 3 times", "connection lost 3 times")
        for text in moved if shutil.which(PROGRAM) else (LEFT_OUT,):
            self.assertIn(text, done.stdout)
        if shutil.which(PROGRAM) and why_no_workers() is None:
            self.assertRegex(done.stdout, r"daemon was killed, pid (\d+), and started again, pid (?!\1;)\d+;")
        self.assertTrue(done.stdout.endswith("The VM arrived, every disk is the same.\n"))
        self.assert_nothing_left()

    def test_interrupted(self):
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            self.interrupt("listens on", number, status)

    def test_interrupted_while_it_migrates(self):
        self.interrupt("mtunnel migrate", signal.SIGINT, 130)

    def interrupt(self, when, number, status):
        """Wait for a line with this text, then send a signal."""
        # A shell's background job, as these tests may be, ignores SIGINT, and its children would.
        signals = partial(signal.signal, number, signal.SIG_DFL)
        options = {"env": self.environ, "stdout": subprocess.PIPE, "text": True, "preexec_fn": signals}
        process = started_process(self.addCleanup, COMMAND, **options)
        for line in process.stdout:
            if when in line:
                break
        process.send_signal(number)
        process.communicate(timeout=patience_s(QUIET_S))
        self.assertEqual(process.returncode, status)
        self.assert_nothing_left()

    def test_something_is_missing(self):
        environ = {**self.environ, "PATH": self.folder}
        done = run(COMMAND, env=environ)
        self.assertEqual(done.returncode, 1)
        self.assertIn("not installed: qemu-img, qemu-io; on Debian: apt-get install qemu-utils", done.stderr)
        self.assertTrue(done.stdout.endswith("It failed.\n"))
        self.assert_nothing_left()

    def test_bad_amount(self):
        for amount in ("0", "1001", "x", "-1"):
            done = run([*COMMAND[:-1], amount])
            self.assertEqual(done.returncode, 2, amount)

    def test_volumes(self):
        guest = "scsi0: local:1/a.raw,size=1G\nscsihw: virtio-scsi-single\nscsi1: local:1/b.qcow2\n"
        self.assertEqual(volumes(guest), {"scsi0": "local:1/a.raw", "scsi1": "local:1/b.qcow2"})
