import contextlib
import os
import select
import signal
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.orphans import VARIABLE, end_orphans

FOREVER = "import signal; print('up', flush=True); signal.pause()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {FOREVER!r}], start_new_session=True)"


class OrphansTest(SynchronousTestCase):
    def setUp(self):
        self.owner = os.path.realpath(self.mktemp())

    def start(self, owner, script=FOREVER):
        """Returns: the process, once it or its child is there."""
        process = subprocess.Popen(
            [sys.executable, "-c", script], env={VARIABLE: owner}, stdout=subprocess.PIPE, start_new_session=True
        )
        self.addCleanup(self.end, process)
        self.assertEqual(process.stdout.readline(), b"up\n")
        return process

    def end(self, process):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        process.stdout.close()

    def test_those_of_this_owner_only(self):
        ours, other = self.start(self.owner), self.start(self.owner + "2")
        self.assertEqual(end_orphans(self.owner), 1)
        self.assertEqual(ours.wait(10), -signal.SIGKILL)
        self.assertIsNone(other.poll())

    def test_children_of_children_in_sessions_of_their_own(self):
        process = self.start(self.owner, PARENT)
        self.assertEqual(end_orphans(self.owner), 2)
        process.wait(10)
        # The end of its output: nobody holds the pipe any more.
        self.assertEqual(select.select([process.stdout], [], [], 10)[0], [process.stdout])
        self.assertEqual(process.stdout.read(), b"")

    def test_none(self):
        self.assertEqual(end_orphans(self.owner), 0)
