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
    status = FAILED
    received: list[int] = []

    def finished(result: int | Failure) -> None:
        nonlocal status
        if isinstance(result, int):
            status = result
        elif not received:
            result.printTraceback(sys.stderr)
        reactor.stop()

    def start() -> None:
        running = Deferred.fromCoroutine(work())

        def interrupt(number: int, _frame: FrameType | None) -> None:
            if not received:
                reactor.callFromThread(_cancel, running, notice)
            elif hurry and number == signal.SIGINT and received.count(number) == 1:
                reactor.callFromThread(hurry)
            received.append(number)

        for number in STOPPING:
            signal.signal(number, interrupt)
        running.addBoth(finished)

    before = {number: signal.getsignal(number) for number in STOPPING}
    reactor.callWhenRunning(start)
    try:
        reactor.run()
    finally:
        sys.stderr = stderr
        # What follows without the reactor would not hear of a signal.
        for number, handler in before.items():
            signal.signal(number, handler)
    return SIGNALLED + received[0] if received and status else status


def _cancel(running: Deferred[int], notice: str) -> None:
    if notice:
        print(notice, file=sys.stderr, flush=True)
    running.cancel()
