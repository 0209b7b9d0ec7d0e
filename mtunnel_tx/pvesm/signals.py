"""Signals that ask us to stop: noticed wherever the program waits, held back where it must not be disturbed."""

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
    """A signal asks us to stop; everything on the way out cleans up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def catch_signals() -> None:
    """From here on the first of them raises Interrupted in the main thread."""
    if not _bell:
        _bell[:] = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(_bell[1], warn_on_full_buffer=False)
    for number in STOPPING:
        signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    """Only once: nothing may disturb the cleaning up."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(number)


def wait_for(fd: int, events: int) -> None:
    """Until one of `select.POLLIN`, `select.POLLOUT` holds for it, or a signal has come.

    One that comes just before a call that blocks would else be noticed only after it, maybe never.
    """
    poll = select.poll()
    poll.register(fd, events)
    for bell in _bell[:1]:
        poll.register(bell, select.POLLIN)
    if any(ready != fd for ready, _ in poll.poll()):
        os.read(_bell[0], _BELL_BYTES)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What begins inside is also finished."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
