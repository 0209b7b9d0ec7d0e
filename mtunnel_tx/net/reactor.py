"""Twisted's reactor as we need it: timers that follow the monotonic clock, and events that reach the right descriptor.

Twisted's timers follow the wall clock: a step back silences all of them, the watchdog's too, a step forward ends
whatever has a limit. So `reactor.seconds` becomes the monotonic clock; what needs the date asks the wall clock itself.

epoll tells of many descriptors at once. While they are served, one may be closed whose event is still to come, and
another be opened, which gets the same number: Twisted hands it the event of the other, and a hang-up ends it. On a busy
daemon that was a connection just accepted, once in some thousands. So each event goes to whom it was meant for, or to
nobody.
"""

from __future__ import annotations

import time
from typing import Any

from twisted.logger import Logger
from twisted.python.log import callWithLogger

log = Logger()
_PARTS = ("_poller", "_selectables", "_doReadOrWrite", "doIteration")


def prepare(reactor: Any) -> None:
    """Make a reactor ours; to be called before it has any timer."""
    reactor.seconds = time.monotonic
    close_hole(reactor)


def close_hole(reactor: Any) -> bool:
    """Let a reactor of Twisted's that is one for epoll take its turns in this way.

    Returns: whether it does; others stay as they are, and those whose parts are not known, with a warning.
    """
    if type(reactor).__name__ != "EPollReactor":
        return False
    if not all(hasattr(reactor, name) for name in _PARTS):
        log.warn("this Twisted's epoll reactor is not known: events may reach the wrong connection")
        return False
    reactor.doIteration = lambda timeout_s: _turn(reactor, timeout_s)
    return True


def _turn(reactor: Any, timeout_s: float | None) -> None:
    """Wait for events, and serve those whose owner is the one that epoll spoke of."""
    owners = reactor._selectables
    events = reactor._poller.poll(-1 if timeout_s is None else timeout_s, max(1, len(owners)))
    for number, event, owner in [(number, event, owners.get(number)) for number, event in events]:
        if owner is not None and owners.get(number) is owner:
            callWithLogger(owner, reactor._doReadOrWrite, owner, number, event)
