import os
import select
import signal
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.orphans import VARIABLE, end_orphans
from tests.patience import patience_s
from tests.processes import started_process

FOREVER = "import signal; print('up', flush=True); signal.pause()"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {FOREVER!r}], start_new_session=True)"


class OrphansTest(SynchronousTestCase):
    def setUp(self):
        self.owner = os.path.realpath(self.mktemp())

    def start(self, owner, script=FOREVER):
        """Returns: the process, once it or its child is there."""
        argv = [sys.executable, "-c", script]
        process = started_process(self.addCleanup, argv, env={VARIABLE: owner}, stdout=subprocess.PIPE)
        self.assertEqual(process.stdout.readline(), b"up\n")
        return process

    def test_those_of_this_owner_only(self):
        ours, other = self.start(self.owner), self.start(self.owner + "2")
        self.assertEqual(end_orphans(self.owner), 1)
        self.assertEqual(ours.wait(patience_s()), -signal.SIGKILL)
        self.assertIsNone(other.poll())

    def test_children_of_children_in_sessions_of_their_own(self):
        process = self.start(self.owner, PARENT)
        self.assertEqual(end_orphans(self.owner), 2)
        process.wait(patience_s())
        # The end of its output: nobody holds the pipe any more.
        self.assertEqual(select.select([process.stdout], [], [], patience_s())[0], [process.stdout])
        self.assertEqual(process.stdout.read(), b"")

    def test_none(self):
        self.assertEqual(end_orphans(self.owner), 0)
