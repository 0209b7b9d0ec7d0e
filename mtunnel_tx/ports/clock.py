"""Time, later calls, and threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar


class Timer(Protocol):
    """A call that waits for its time (IDelayedCall)."""

    def cancel(self) -> Any: ...

    def active(self) -> Any: ...


class Clock(Protocol):
    """Time in seconds that never steps, of any origin, and later calls (IReactorTime)."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, callable: Callable[..., Any], /, *args: Any) -> Any: ...  # noqa: N802


WallClock = Callable[[], float]
"""Seconds since the epoch, as this host's clock has them: whoever sets it makes them step. For what others read."""

T = TypeVar("T")
P = ParamSpec("P")


class Threads(Protocol):
    """Where work runs that takes a while; everything else goes on meanwhile."""

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
