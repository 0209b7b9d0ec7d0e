"""Tests end, and nothing that they start outlives them."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, TimeoutExpired

from twisted.internet.defer import Deferred
from twisted.trial.reporter import TestResult
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests import limits
from tests.patience import VARIABLE, factor, patience_s, tries, wait_for
from tests.processes import run_program, started_process

CHILD = "sleep 600 & echo $!; sleep 600"
"""A shell with a child that does not end with it."""


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Patience(SynchronousTestCase):
    def set(self, value):
        self.addCleanup(os.environ.update, {VARIABLE: os.environ.get(VARIABLE, "")})
        os.environ[VARIABLE] = value

    def test_what_is_set_counts(self):
        self.set("2.5")
        self.assertEqual(patience_s(10), 25)

    def test_what_is_no_number(self):
        for value in ("x", "0", "-1", "inf", "nan"):
            self.set(value)
            self.assertRaises(ValueError, factor)

    def test_it_grows_with_the_load(self):
        self.set("")
        self.assertGreaterEqual(factor(), 1)
        self.assertLessEqual(factor(), 20)
        self.patch(os, "cpu_count", lambda: 1)
        with ExitStack() as owner:
            busy = [started_process(owner.callback, ["sh", "-c", "while :; do :; done"]) for _ in range(3)]
            wait_for("three that run", lambda: factor() >= len(busy))

    def test_in_vain(self):
        self.set("0.01")
        error = self.assertRaises(AssertionError, wait_for, "rain", lambda: False, 1)
        self.assertRegex(str(error), r"^waited \d+ s in vain for rain$")

    def test_it_is_asked_again_while_it_waits(self):
        self.set("0.001")
        turns = tries("it", 1)
        next(turns)
        self.set("1000")
        time.sleep(0.01)
        self.assertIsNone(next(turns))


class Processes(SynchronousTestCase):
    def child_of(self, owner):
        process = started_process(owner.callback, ["sh", "-c", CHILD], stdout=PIPE)
        return process, int(process.stdout.readline())

    def test_the_whole_group_ends(self):
        with ExitStack() as owner:
            process, child = self.child_of(owner)
        self.assertEqual(process.returncode, -signal.SIGKILL)
        wait_for("the child's end", lambda: not is_alive(child))

    def test_children_of_one_that_has_ended(self):
        with ExitStack() as owner:
            process, child = self.child_of(owner)
            process.kill()
            process.wait()
            self.assertTrue(is_alive(child))
        wait_for("the child's end", lambda: not is_alive(child))

    def test_nothing_is_left_of_a_program_that_ended(self):
        done = run_program(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True)
        wait_for("the child's end", lambda: not is_alive(int(done.stdout)))

    def test_nothing_is_left_of_a_program_that_is_late(self):
        error = self.assertRaises(TimeoutExpired, run_program, ["sh", "-c", CHILD], stdout=PIPE, quiet_s=0.5)
        wait_for("the child's end", lambda: not is_alive(int(error.output)))


class Limits(SynchronousTestCase):
    def run_case(self, kind):
        """Returns: what is wrong with a test that may take a moment only, in words."""
        handler = signal.getsignal(signal.SIGALRM)
        self.addCleanup(signal.setitimer, signal.ITIMER_REAL, *signal.getitimer(signal.ITIMER_REAL))
        self.addCleanup(signal.signal, signal.SIGALRM, handler)
        self.patch(limits, "TEST_S", 0.2 / factor())
        self.patch(limits, "DEFERRED_S", 0.1 / factor())
        self.patch(limits, "show_stacks", lambda: None)
        result = TestResult()
        kind()(result)
        return [error.getErrorMessage() for _, error in result.errors]

    def test_one_that_blocks(self):
        ended = []

        class Blocks(SynchronousTestCase):
            def runTest(self):
                self.addCleanup(ended.append, True)
                with started_process(self.addCleanup, ["sleep", "600"]):
                    """Its end is waited for."""

        errors = self.run_case(Blocks)
        self.assertEqual((len(errors), ended), (1, [True]))
        self.assertIn("takes longer than 0 s", errors[0])

    def test_one_that_waits(self):
        class Waits(TestCase):
            def runTest(self):
                return Deferred()

        self.assertEqual(len(self.run_case(Waits)), 1)
