"""How long tests wait, in one place.

A wait takes its whole length only where a test fails, so it may be long. On a busy machine everything takes longer:
each time given here is multiplied by `MTUNNEL_TEST_PATIENCE`, and where that is not set, by the number of processes
that compete for one core.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

VARIABLE = "MTUNNEL_TEST_PATIENCE"
POLL_S = 0.02
WAIT_S = 30.0
"""For one event, on a quiet machine."""
LARGEST_FACTOR = 20.0


def patience_s(quiet_s: float = WAIT_S) -> float:
    """How long to wait now. Args: quiet_s: how long on a quiet machine."""
    return quiet_s * factor()


def factor() -> float:
    """Raises: ValueError: MTUNNEL_TEST_PATIENCE is no number above 0."""
    said = os.environ.get(VARIABLE)
    if said:
        number = float(said)
        if not 0 < number < float("inf"):
            raise ValueError(f"{VARIABLE}: {said!r} is no number above 0")
        return number
    return min(LARGEST_FACTOR, max(1.0, _competing() / (os.cpu_count() or 1)))


def _competing() -> float:
    """Processes that run or want to: in the last minute, or now if there are more."""
    average, _, _, running, *_ = Path("/proc/loadavg").read_text().replace("/", " ").split()
    return max(float(average), float(running))


def wait_for(what: str, condition: Callable[[], Any], quiet_s: float = WAIT_S) -> Any:
    """Poll until `condition()` is truthy; a process of its own cannot be awaited otherwise."""
    for _ in tries(what, quiet_s):
        value = condition()
        if value:
            return value
        time.sleep(POLL_S)
    raise AssertionError("not reached")


def tries(what: str, quiet_s: float = WAIT_S) -> Iterator[None]:
    """One turn of a loop for each look at something. Raises: AssertionError: it was looked for long enough."""
    began_s, time_left = time.monotonic(), TimeLeft(quiet_s)
    while time_left:
        yield
    raise AssertionError(f"waited {time.monotonic() - began_s:.0f} s in vain for {what}")


class TimeLeft:
    """True for so many seconds of a quiet machine; a second of a busy one counts for less."""

    def __init__(self, quiet_s: float) -> None:
        self._left_s = quiet_s
        self._seen_s = time.monotonic()

    def __bool__(self) -> bool:
        now_s = time.monotonic()
        self._left_s -= (now_s - self._seen_s) / factor()
        self._seen_s = now_s
        return self._left_s > 0
