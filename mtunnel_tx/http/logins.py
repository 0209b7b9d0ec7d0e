"""Failed logins: one line each that fail2ban can read, counted per address, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from twisted.logger import Logger

log = Logger(namespace="mtunnel_tx.logins")
# docs/operations.md has the expression that finds these lines: name and text change there too, or not at all.

FORGET_S = 600.0
MOST_ADDRESSES = 4096
WINDOW_S = 60.0
LINES_OF_ADDRESS, LINES_IN_ALL = 10, 300
"""Lines within WINDOW_S. fail2ban counts five within ten minutes; each line says how many there were."""


@dataclass(slots=True)
class _Tally:
    count: int = 0
    last_s: float = 0.0
    lines: int = 0
    window: int = 0


class Logins:
    """Counts by address; FORGET_S without a failure and the count begins anew.

    Args: now: seconds, of any origin.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._tallies: OrderedDict[str, _Tally] = OrderedDict()
        self._window = -1
        self._lines = 0
        self._untold = 0

    def fail(self, address: str) -> None:
        """Somebody there has shown a token that is none of ours, or no longer one."""
        tally = self._tally(address)
        self._begin_window(tally)
        if tally.lines >= LINES_OF_ADDRESS or self._lines >= LINES_IN_ALL:
            self._untold += 1
            return
        tally.lines += 1
        self._lines += 1
        log.warn("failed login from {address}, number {count}", address=address, count=tally.count)

    def count(self, address: str) -> int:
        """How often it has failed of late."""
        self._drop_old()
        return self._tallies[address].count if address in self._tallies else 0

    def _tally(self, address: str) -> _Tally:
        self._drop_old()
        tally = self._tallies.setdefault(address, _Tally())
        tally.count += 1
        tally.last_s = self._now()
        self._tallies.move_to_end(address)
        if len(self._tallies) > MOST_ADDRESSES:
            self._tallies.popitem(last=False)
        return tally

    def _begin_window(self, tally: _Tally) -> None:
        """Where another minute has come, lines count from 0, and what was not logged in the last one is told."""
        window = int(self._now() // WINDOW_S)
        if window != self._window:
            self._window, self._lines, untold, self._untold = window, 0, self._untold, 0
            if untold:
                log.warn("{count} more logins have failed, without a line each", count=untold)
        if window != tally.window:
            tally.window, tally.lines = window, 0

    def _drop_old(self) -> None:
        """The order is that of the last failure, so the old ones stand first."""
        while self._tallies:
            address, tally = next(iter(self._tallies.items()))
            if self._now() - tally.last_s < FORGET_S:
                return
            del self._tallies[address]
