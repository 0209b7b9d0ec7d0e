"""Ways to wait that cancellation (Ctrl-C) goes well with."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from mtunnel_tx.errors import TimedOut
from mtunnel_tx.ports.clock import Clock

T = TypeVar("T")


async def pause(clock: Clock, seconds: float) -> None:
    """Wait; a cancelled wait leaves no timer behind."""
    over: Deferred[None] = Deferred()
    timer = clock.callLater(max(0.0, seconds), over.callback, None)
    try:
        await over
    finally:
        if timer.active():
            timer.cancel()


async def within(clock: Clock, wait_s: float, work: Deferred[T], text: str) -> T:
    """Await work, and cancel it when its time is up. Raises: TimedOut: with `text`."""
    late = False

    def expire() -> None:
        nonlocal late
        late = True
        work.cancel()

    timer = clock.callLater(wait_s, expire)
    try:
        return await work
    except Exception as error:
        if late:
            raise TimedOut(text) from error
        raise
    finally:
        if timer.active():
            timer.cancel()


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Await something to its end even when cancelled; only then the cancellation counts."""
    outcome: Deferred[T] = Deferred()
    late: Deferred[T] = Deferred()
    over = False

    def pass_on(result: T | Failure) -> None:
        nonlocal over
        over = True
        (late if outcome.called else outcome).callback(result)

    Deferred.fromCoroutine(work).addBoth(pass_on)
    try:
        return await outcome
    except CancelledError:
        if not over:
            await late
        raise


async def first_of(work: Coroutine[Any, Any, T], other: Deferred[Any]) -> T | None:
    """Await work, but no longer than until `other` fires.

    `other` keeps its result. Returns: the work's result; None: it was cancelled since `other` came first.
    """
    running: Deferred[T] = Deferred.fromCoroutine(work)
    overtaken = False

    def stop(result: object) -> object:
        nonlocal overtaken
        if not running.called:
            overtaken = True
            running.cancel()
        return result

    other.addBoth(stop)
    try:
        return await running
    except CancelledError:
        if not overtaken:
            raise
        return None
