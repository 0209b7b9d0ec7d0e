"""A short run of the soak with cuts: resumable flows of all sizes, with and without workers, each byte compared."""

from __future__ import annotations

import re
import sys

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.processes import run_program
from tests.whole.node import can_become_nobody


class ShortSoak(SynchronousTestCase):
    def test_every_byte_arrives_once(self) -> None:
        if not can_become_nobody():
            raise SkipTest("user 'nobody' cannot read this folder")
        argv = (sys.executable, "-m", "tests.soak.cuts", "0.5", "0.3", "--mib-s", "40")
        done = run_program(argv, check=False, capture_output=True, text=True, quiet_s=120)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr[-4000:])
        resumed = re.findall(r"([0-9]+) resumed", done.stdout)[-1]
        self.assertGreater(int(resumed), 10, done.stdout)
