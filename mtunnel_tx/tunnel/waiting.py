"""Waiting for something, but not for ever."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from mtunnel_tx.ports.clock import Clock


class Task:
    """Work that goes on while others look whether it is done; a failure that nobody asks for is logged as a bug."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._waiters: list[Deferred[None]] = []
        self._settled: Deferred[Any] | None = None
        Deferred.fromCoroutine(work).addCallbacks(
            lambda value: self._settle(succeed(value)), lambda failure: self._settle(fail(failure))
        )

    def _settle(self, settled: Deferred[Any]) -> None:
        self._settled = settled
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(None)

    async def wait(self, clock: Clock, wait_s: float) -> bool:
        """Wait for the end, `wait_s` seconds at most. Returns: it is done."""
        if self._settled is None:
            waiter: Deferred[None] = Deferred()
            self._waiters.append(waiter)
            timer = clock.callLater(wait_s, self._give_up, waiter)
            await waiter
            if timer.active():
                timer.cancel()
        return self._settled is not None

    def _give_up(self, waiter: Deferred[None]) -> None:
        self._waiters.remove(waiter)
        waiter.callback(None)

    def result(self) -> Deferred[Any]:
        """The value, or the failure, of work that is done; to be awaited once."""
        assert self._settled is not None, "the work goes on"
        return self._settled
