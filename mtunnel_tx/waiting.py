"""Waiting for events, for a time, for one's turn, and for work; all of it can be cancelled.

It is built on Twisted's Deferreds. Functions that need time take a clock; nothing imports a reactor. A cancelled wait
leaves no timer and no entry in a list of waiters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredLock, fail, succeed
from twisted.python.failure import Failure

from mtunnel_tx.errors import TimedOut, WrongState
from mtunnel_tx.ports.clock import Clock

T = TypeVar("T")


class Occasion:
    """An event that may happen many times; a waiter waits for the next time."""

    def __init__(self) -> None:
        self._waiters: dict[Deferred[None], None] = {}

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits."""
        return bool(self._waiters)

    def happen(self) -> None:
        """Wake everybody who waits, in the order they came, at once: they run before this returns."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.called:
                waiter.callback(None)

    def happen_soon(self, clock: Clock) -> None:
        """Wake all waiters in the reactor's next turn, so that they do not run inside the caller."""
        if self._waiters:
            clock.callLater(0, self.happen)

    def wait(self) -> Deferred[None]:
        """Returns: a Deferred that fires the next time."""
        waiter: Deferred[None] = Deferred(self._forget)
        self._waiters[waiter] = None
        return waiter

    def _forget(self, waiter: Deferred[None]) -> None:
        self._waiters.pop(waiter, None)


class Latch(Generic[T]):
    """An event that happens once and has a value; later callers get the value at once."""

    def __init__(self) -> None:
        self._event = Occasion()
        self._values: list[T] = []

    @property
    def is_fired(self) -> bool:
        """Whether it has happened."""
        return bool(self._values)

    def fire(self, value: T) -> None:
        """It has happened; only the first time counts."""
        if not self._values:
            self._values.append(value)
            self._event.happen()

    def wait(self) -> Deferred[T]:
        """Fires with the value, at once where it has happened; each caller has a Deferred of its own."""
        happened = succeed(None) if self._values else self._event.wait()
        return happened.addCallback(lambda _: self._values[0])


class Task:
    """Work that goes on while others look whether it is done; a failure that nobody asks for is logged as a bug."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self._done: Latch[None] = Latch()
        self._settled: Deferred[Any] | None = None
        Deferred.fromCoroutine(work).addCallbacks(
            lambda value: self._settle(succeed(value)), lambda failure: self._settle(fail(failure))
        )

    def _settle(self, settled: Deferred[Any]) -> None:
        self._settled = settled
        self._done.fire(None)

    async def wait(self, clock: Clock, wait_s: float) -> bool:
        """Wait for the end, `wait_s` seconds at most. Returns: it is done."""
        return self._done.is_fired or await in_time(clock, wait_s, self._done.wait())

    def result(self) -> Deferred[Any]:
        """The value, or the failure, of work that is done; to be awaited once."""
        assert self._settled is not None, "the work goes on"
        return self._settled


class Turns:
    """A lock for each number, which is there while somebody has it or waits for it: VMIDs come and go without end."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[int, DeferredLock] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._locks)

    def of(self, vmid: int) -> DeferredLock:
        """The lock, to be used at once: `async with turns.of(100)`."""
        return self._locks.setdefault(vmid, DeferredLock())


class Quota:
    """Turns for work of which only so much may go on at a time, in all and for each owner; the rest waits, in order."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._counts: Counter[Hashable] = Counter()
        self._waiting: dict[Deferred[None], Mapping[Hashable, int]] = {}

    @asynccontextmanager
    async def turn(self, owners: Mapping[Hashable, int]) -> AsyncIterator[None]:
        """Wait for a turn, and have it.

        Args: owners: whose work it is, and how much of each one's work may go on at a time.
        """
        if self._has_room(owners):
            self._enter(owners)
        else:
            turn: Deferred[None] = Deferred(self._forget)
            self._waiting[turn] = owners
            await turn
        try:
            yield
        finally:
            self._leave(owners)

    def _has_room(self, owners: Mapping[Hashable, int]) -> bool:
        return self._count < self._most and all(self._counts[owner] < most for owner, most in owners.items())

    def _enter(self, owners: Mapping[Hashable, int]) -> None:
        self._count += 1
        self._counts.update(owners.keys())

    def _leave(self, owners: Mapping[Hashable, int]) -> None:
        self._count -= 1
        self._counts.subtract(owners.keys())
        self._counts = +self._counts
        for turn, waiting in list(self._waiting.items()):
            if turn in self._waiting and self._has_room(waiting):
                del self._waiting[turn]
                self._enter(waiting)
                turn.callback(None)

    def _forget(self, turn: Deferred[None]) -> None:
        self._waiting.pop(turn, None)


class OwnedWork:
    """Work that ends with its owner at the latest. Args: reason: what work that is cut short fails with."""

    def __init__(self, reason: str) -> None:
        self._reason = reason
        self._running: set[Deferred[Any]] = set()
        self._ended = Occasion()
        self._over = False

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work. Raises: WrongState: the owner has ended; else what the work raises."""
        if self._over:
            work.close()
            raise WrongState(self._reason)
        running = Deferred.fromCoroutine(work)
        self._running.add(running)
        try:
            return await running
        except CancelledError as error:
            if self._over:
                raise WrongState(self._reason) from error
            raise
        finally:
            self._running.discard(running)
            self._ended.happen()

    async def end(self) -> None:
        """Cancel all work, and wait until it has ended; take no more."""
        self._over = True
        for running in list(self._running):
            running.cancel()
        while self._running:
            await self._ended.wait()


async def pause(clock: Clock, seconds: float) -> None:
    """Wait so long; 0 is one turn of the reactor."""
    over: Deferred[None] = Deferred()
    timer = clock.callLater(max(0.0, seconds), over.callback, None)
    try:
        await over
    finally:
        if timer.active():
            timer.cancel()


async def within(clock: Clock, wait_s: float, work: Deferred[T], text: str) -> T:
    """Await work, and cancel it when its time is up. Raises: TimedOut: with `text`; else what the work raises."""
    late = False

    def expire() -> None:
        nonlocal late
        late = True
        work.cancel()

    timer = clock.callLater(max(0.0, wait_s), expire)
    try:
        return await work
    except Exception as error:
        if late:
            raise TimedOut(text) from error
        raise
    finally:
        if timer.active():
            timer.cancel()


async def in_time(clock: Clock, wait_s: float, event: Deferred[Any]) -> bool:
    """Wait for an event, for so long at most. Returns: it happened; else it is cancelled."""
    try:
        await within(clock, wait_s, event, "it did not happen")
    except TimedOut:
        return False
    return True


async def together(*works: Coroutine[Any, Any, object]) -> None:
    """Await several things that go on at the same time, each to its end. Raises: what the first of them raises."""
    ends: list[tuple[bool, Any]] = await DeferredList(
        [Deferred.fromCoroutine(work) for work in works], consumeErrors=True
    )
    for succeeded, end in ends:
        if not succeeded:
            end.raiseException()


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


async def until(clock: Clock, occasion: Occasion, holds: Callable[[], Awaitable[bool]], poll_s: float) -> None:
    """Wait until a condition holds; it is looked at again each time the occasion happens, and every `poll_s` seconds.

    Each wait begins before the look: what happens during the look is not missed.
    """
    happened = occasion.wait()
    while not await holds():
        await in_time(clock, poll_s, happened)
        happened = occasion.wait()
