"""A command that works on the reactor: its numbers from the command line, its signals, its exit status."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TextIO, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mtunnel_tx.cli.output import FAILED, Forgiving
from mtunnel_tx.net.reactor import prepare

USAGE = 2
SIGNALLED = 128
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end a command."""


def read_vmid(text: str) -> int:
    """A VMID from the command line."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 100):
        raise argparse.ArgumentTypeError(f"'{text}' is not a VMID, a number from 100 to 999999999")
    return int(text)


def run_reactor(
    reactor: Any,
    work: Callable[[], Coroutine[Any, Any, int]],
    notice: str = "",
    hurry: Callable[[], None] | None = None,
) -> int:
    """Run work to its end. A signal cancels it, once; its cleanup is awaited, even where the terminal has gone.

    Args: notice: what to say at the signal, where the cleanup may take a while. hurry: called at the second
    Ctrl-C. Returns: its exit status, or 128 + N.
    """
    prepare(reactor)
    stderr: Any = sys.stderr
    sys.stderr = cast(TextIO, Forgiving(stderr))
    before = {number: signal.getsignal(number) for number in STOPPING}
    run = _Run(reactor, work, notice, hurry)
    reactor.callWhenRunning(run.start)
    try:
        reactor.run()
    finally:
        sys.stderr = stderr
        # What follows without the reactor would not hear of a signal.
        for number, handler in before.items():
            signal.signal(number, handler)
    return run.exit_status


class _Run:
    """See run_reactor."""

    def __init__(
        self, reactor: Any, work: Callable[[], Coroutine[Any, Any, int]], notice: str, hurry: Callable[[], None] | None
    ) -> None:
        self._reactor = reactor
        self._work = work
        self._notice = notice
        self._hurry = hurry
        self._status = FAILED
        self._received: list[int] = []
        self._running: Deferred[int] | None = None

    def start(self) -> None:
        """Begin; from now on signals cancel it."""
        self._running = Deferred.fromCoroutine(self._work())
        for number in STOPPING:
            signal.signal(number, self._interrupt)
        self._running.addBoth(self._finish)

    @property
    def exit_status(self) -> int:
        """Where a signal came and the work failed: 128 + N."""
        return SIGNALLED + self._received[0] if self._received and self._status else self._status

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        if not self._received:
            self._reactor.callFromThread(self._cancel)
        elif self._hurry and number == signal.SIGINT and self._received.count(number) == 1:
            self._reactor.callFromThread(self._hurry)
        self._received.append(number)

    def _cancel(self) -> None:
        if self._notice:
            print(self._notice, file=sys.stderr, flush=True)
        assert self._running is not None, "it was started"
        self._running.cancel()

    def _finish(self, result: int | Failure) -> None:
        if isinstance(result, int):
            self._status = result
        elif not self._received:
            result.printTraceback(sys.stderr)
        self._reactor.stop()
