"""A limit for every test of trial: for those that wait for a Deferred, and for those that block."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from pathlib import Path
from typing import Any

from twisted.trial import util
from twisted.trial.unittest import SynchronousTestCase

from tests.patience import patience_s

STACKS = "MTUNNEL_TEST_STACKS"
"""The folder where a process that gets SIGUSR1 writes what its threads do, in a file with its number."""
DEFERRED_S = 120.0
"""For a Deferred, by trial itself, on a quiet machine."""
TEST_S = 300.0
"""For a whole test, on a quiet machine."""


class TestTookTooLong(Exception):
    """Raised in the middle of a test that blocks."""


def limit_every_test() -> None:
    """See that each test ends, and that its stacks can be had (see bounded.py).

    One that blocks is interrupted by SIGALRM. Its cleanup runs, and is interrupted in its turn.
    """
    run = SynchronousTestCase.run

    def run_in_time(self: SynchronousTestCase, result: Any) -> Any:
        limit_s = patience_s(TEST_S)
        util.DEFAULT_TIMEOUT_DURATION = patience_s(DEFERRED_S)

        def interrupt(*_: object) -> None:
            show_stacks()
            raise TestTookTooLong(f"{self.id()} takes longer than {limit_s:.0f} s")

        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, limit_s, limit_s)
        try:
            return run(self, result)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    SynchronousTestCase.run = run_in_time
    if folder := os.environ.get(STACKS):
        number = os.open(Path(folder, str(os.getpid())), os.O_WRONLY | os.O_CREAT, 0o600)
        faulthandler.register(signal.SIGUSR1, number, all_threads=True)


def show_stacks() -> None:
    """Of all threads; the exception has only that of the one that it interrupts."""
    faulthandler.dump_traceback(sys.__stderr__)
