"""How long a guest that ran stands still for work that the network may hold up."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from mtunnel_tx.backends.qmp import Monitor
from mtunnel_tx.errors import TimedOut
from mtunnel_tx.waiting import first_of

T = TypeVar("T")
_LOOK_S = 0.5
_MOST_S = 2.0
"""So much counts from one look to the next at most: a program that was stopped has read nothing when it wakes."""


class Standstill:
    """One standstill of a guest: `limit_s` for all that is done in it.

    It begins with QEMU's STOP event, or where QEMU stops answering: while it waits for writes that are under way, it
    does nothing else. A guest that is to stand still (`want`) has all the time in the world. Only time counts in which
    this program ran: in the rest it could do nothing, and what it carries stood still.
    """

    def __init__(self, reactor: Any, monitor: Monitor, limit_s: float) -> None:
        self._reactor = reactor
        self._monitor = monitor
        self._limit_s = limit_s
        self._since_s: float = reactor.seconds()
        self._looked_s = self._since_s
        self._stands = self._is_wanted = False

    def want(self) -> None:
        """It is to stand still, for as long as it takes."""
        self._is_wanted = True

    def see_it_run(self) -> None:
        """QEMU has answered that it does."""
        if not self._stands:
            self._since_s = self._reactor.seconds()

    async def limited(self, work: Coroutine[Any, Any, T], text: str) -> T:
        """Await work. Raises: TimedOut: with `text`, the guest has stood still for too long; what the work raises."""
        late: Deferred[None] = Deferred()
        self._looked_s = self._reactor.seconds()
        looking = LoopingCall(self._look, late)
        looking.clock = self._reactor
        looking.start(min(_LOOK_S, self._limit_s / 10))
        end_listening = self._monitor.listen(self._hear)
        try:
            result = await first_of(work, late)
        finally:
            end_listening()
            looking.stop()
        if late.called:
            raise TimedOut(f"{text} within {self._limit_s:g} s")
        return result  # type: ignore[return-value]

    def _look(self, late: Deferred[None]) -> None:
        now_s = self._reactor.seconds()
        missed_s = max(0.0, now_s - self._looked_s - _MOST_S)
        self._since_s, self._looked_s = min(now_s, self._since_s + missed_s), now_s
        over = now_s - self._since_s >= self._limit_s
        if over and not self._is_wanted and not late.called:
            late.callback(None)

    def _hear(self, name: str, _data: Mapping[str, Any]) -> None:
        if name == "STOP" and not self._stands:
            self.see_it_run()
            self._stands = True
