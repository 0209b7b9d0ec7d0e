"""Signals that ask the program to stop: they interrupt every wait, and are blocked in critical sections."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_BELL_BYTES = 64
_bell: list[int] = []
"""Readable once a signal has come; empty where nobody catches any."""


class Interrupted(BaseException):
    """A signal asks the program to stop; `finally` blocks and context managers clean up on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def catch_signals() -> None:
    """From now on the first such signal raises Interrupted in the main thread."""
    if not _bell:
        _bell[:] = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(_bell[1], warn_on_full_buffer=False)
    for number in STOPPING:
        signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    """Further signals are ignored, so that cleaning up is not interrupted."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)


def wait_for(fd: int, events: int) -> None:
    """Wait until the descriptor is ready for `events` (`select.POLLIN`, `select.POLLOUT`), or a signal has come.

    Without this a signal that arrives just before a blocking call would be handled only after that call.
    """
    poll = select.poll()
    poll.register(fd, events)
    for bell in _bell[:1]:
        poll.register(bell, select.POLLIN)
    if any(ready != fd for ready, _ in poll.poll()):
        os.read(_bell[0], _BELL_BYTES)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Block the stopping signals while the block runs; one that comes meanwhile is handled afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
