import gc

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import TimedOut
from mtunnel_tx.waiting import (
    Latch,
    Occasion,
    Task,
    Turns,
    finish,
    first_of,
    in_time,
    pause,
    together,
    within,
)


async def wait_for(deferred):
    return await deferred


class WithinTest(SynchronousTestCase):
    def test_in_time(self):
        clock, work = Clock(), Deferred()
        waiting = Deferred.fromCoroutine(within(clock, 5, work, "late"))
        work.callback(7)
        self.assertEqual(self.successResultOf(waiting), 7)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_late(self):
        clock = Clock()
        waiting = Deferred.fromCoroutine(within(clock, 5, Deferred(), "late"))
        clock.advance(5)
        self.assertEqual(self.failureResultOf(waiting, TimedOut).value.text, "late")

    def test_its_own_failure(self):
        clock, work = Clock(), Deferred()
        waiting = Deferred.fromCoroutine(within(clock, 5, work, "late"))
        work.errback(KeyError("x"))
        self.failureResultOf(waiting, KeyError)
        self.assertEqual(clock.getDelayedCalls(), [])


class FinishTest(SynchronousTestCase):
    def test_cancelled_work_runs_to_its_end(self):
        work = Deferred()
        waiting = Deferred.fromCoroutine(finish(wait_for(work)))
        waiting.cancel()
        self.assertNoResult(waiting)
        work.callback(1)
        self.failureResultOf(waiting, CancelledError)

    def test_result_and_failure_pass(self):
        work = Deferred()
        waiting = Deferred.fromCoroutine(finish(wait_for(work)))
        work.callback(1)
        self.assertEqual(self.successResultOf(waiting), 1)
        work = Deferred()
        waiting = Deferred.fromCoroutine(finish(wait_for(work)))
        work.errback(KeyError("x"))
        self.failureResultOf(waiting, KeyError)

    def test_a_failure_of_cancelled_work_is_what_counts(self):
        work = Deferred()
        waiting = Deferred.fromCoroutine(finish(wait_for(work)))
        waiting.cancel()
        work.errback(KeyError("x"))
        self.failureResultOf(waiting, KeyError)


class FirstOfTest(SynchronousTestCase):
    def test_the_work_is_first(self):
        work, other = Deferred(), Deferred()
        waiting = Deferred.fromCoroutine(first_of(wait_for(work), other))
        work.callback(1)
        self.assertEqual(self.successResultOf(waiting), 1)
        other.callback(2)
        self.assertEqual(self.successResultOf(other), 2)

    def test_the_other_is_first(self):
        other = Deferred()
        waiting = Deferred.fromCoroutine(first_of(wait_for(Deferred()), other))
        other.callback(2)
        self.assertIsNone(self.successResultOf(waiting))
        self.assertEqual(self.successResultOf(other), 2)

    def test_cancelled(self):
        waiting = Deferred.fromCoroutine(first_of(wait_for(Deferred()), Deferred()))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)


class PauseTest(SynchronousTestCase):
    def test_pause(self):
        clock = Clock()
        waiting = Deferred.fromCoroutine(pause(clock, 2))
        clock.advance(2)
        self.successResultOf(waiting)
        waiting = Deferred.fromCoroutine(pause(clock, 2))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_nothing_is_one_turn_of_the_reactor(self):
        clock = Clock()
        waiting = Deferred.fromCoroutine(pause(clock, -3))
        self.assertNoResult(waiting)
        clock.advance(0)
        self.successResultOf(waiting)


class InTimeTest(SynchronousTestCase):
    def test_it_happened(self):
        clock, event = Clock(), Occasion()
        waiting = Deferred.fromCoroutine(in_time(clock, 5, event.wait()))
        event.happen()
        self.assertTrue(self.successResultOf(waiting))
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_it_did_not(self):
        clock, event = Clock(), Occasion()
        waiting = Deferred.fromCoroutine(in_time(clock, 5, event.wait()))
        clock.advance(5)
        self.assertFalse(self.successResultOf(waiting))
        self.assertFalse(event.is_awaited)

    def test_cancellation_passes(self):
        clock, event = Clock(), Occasion()
        waiting = Deferred.fromCoroutine(in_time(clock, 5, event.wait()))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertFalse(event.is_awaited)
        self.assertEqual(clock.getDelayedCalls(), [])


class EventTest(SynchronousTestCase):
    def test_wakes_those_who_wait_now(self):
        event = Occasion()
        first, second = event.wait(), event.wait()
        event.happen()
        self.successResultOf(first)
        self.successResultOf(second)
        self.assertNoResult(event.wait())

    def test_a_cancelled_waiter_is_forgotten(self):
        event = Occasion()
        waiter = event.wait()
        waiter.cancel()
        self.failureResultOf(waiter, CancelledError)
        self.assertFalse(event.is_awaited)
        event.happen()

    def test_one_that_is_woken_may_cancel_another(self):
        event = Occasion()
        first, second = event.wait(), event.wait()
        first.addCallback(lambda _: second.cancel())
        event.happen()
        self.failureResultOf(second, CancelledError)

    def test_one_that_is_woken_waits_for_the_next_time(self):
        event, seen = Occasion(), []

        async def watch():
            while True:
                await event.wait()
                seen.append(1)

        watching = Deferred.fromCoroutine(watch())
        event.happen()
        event.happen()
        self.assertEqual(seen, [1, 1])
        watching.cancel()
        self.failureResultOf(watching, CancelledError)

    def test_soon_is_the_next_turn(self):
        clock, event = Clock(), Occasion()
        waiter = event.wait()
        event.happen_soon(clock)
        self.assertNoResult(waiter)
        clock.advance(0)
        self.successResultOf(waiter)

    def test_soon_needs_no_turn_where_nobody_waits(self):
        clock = Clock()
        Occasion().happen_soon(clock)
        self.assertEqual(clock.getDelayedCalls(), [])


class LatchTest(SynchronousTestCase):
    def test_who_comes_later_need_not_wait(self):
        latch = Latch()
        early = latch.wait()
        self.assertFalse(latch.is_fired)
        latch.fire(7)
        self.assertTrue(latch.is_fired)
        self.assertEqual(self.successResultOf(early), 7)
        self.assertEqual(self.successResultOf(latch.wait()), 7)

    def test_only_the_first_time_counts(self):
        latch = Latch()
        latch.fire(1)
        latch.fire(2)
        self.assertEqual(self.successResultOf(latch.wait()), 1)

    def test_one_waiter_is_cancelled_alone(self):
        latch = Latch()
        first, second = latch.wait(), latch.wait()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        latch.fire(None)
        self.successResultOf(second)

    def test_a_waiter_does_not_change_the_value(self):
        latch = Latch()
        latch.wait().addCallback(lambda value: value + 1)
        latch.fire(1)
        self.assertEqual(self.successResultOf(latch.wait()), 1)


class TaskTest(SynchronousTestCase):
    def test_looks_whether_it_is_done(self):
        clock, work = Clock(), Deferred()
        task = Task(wait_for(work))
        early, late = (Deferred.fromCoroutine(task.wait(clock, wait_s)) for wait_s in (1, 5))
        clock.advance(1)
        self.assertFalse(self.successResultOf(early))
        work.callback(3)
        self.assertTrue(self.successResultOf(late))
        self.assertEqual(self.successResultOf(task.result()), 3)
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_its_failure_is_the_result(self):
        work = Deferred()
        task = Task(wait_for(work))
        work.errback(KeyError("x"))
        self.assertTrue(self.successResultOf(Deferred.fromCoroutine(task.wait(Clock(), 0))))
        self.failureResultOf(task.result(), KeyError)

    def test_a_failure_that_nobody_asks_for_is_logged(self):
        work = Deferred()
        task = Task(wait_for(work))
        work.errback(KeyError("x"))
        del task, work
        gc.collect()
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)


class TogetherTest(SynchronousTestCase):
    async def work(self, until):
        await until

    def begin(self, count):
        untils = [Deferred() for _ in range(count)]
        return untils, Deferred.fromCoroutine(together(*(self.work(until) for until in untils)))

    def test_all_go_on_at_once(self):
        (first, second), work = self.begin(2)
        second.callback(None)
        self.assertNoResult(work)
        first.callback(None)
        self.assertIsNone(self.successResultOf(work))

    def test_each_is_awaited_and_the_first_failure_counts(self):
        (first, second, third), work = self.begin(3)
        third.errback(ValueError())
        second.errback(KeyError())
        self.assertNoResult(work)
        first.callback(None)
        self.failureResultOf(work, KeyError)

    def test_cancelled(self):
        untils, work = self.begin(2)
        work.cancel()
        self.failureResultOf(work, CancelledError)
        self.assertTrue(all(until.called for until in untils))

    def test_nothing(self):
        self.assertIsNone(self.successResultOf(Deferred.fromCoroutine(together())))


class TurnsTest(SynchronousTestCase):
    def setUp(self):
        self.turns = Turns()
        self.order = []

    async def work(self, vmid, name, until):
        async with self.turns.of(vmid):
            self.order.append(name)
            await until

    def begin(self, vmid, name):
        until = Deferred()
        return until, Deferred.fromCoroutine(self.work(vmid, name, until))

    def test_one_after_the_other(self):
        first, second, other = self.begin(1, "a"), self.begin(1, "b"), self.begin(2, "c")
        self.assertEqual(self.order, ["a", "c"])
        first[0].callback(None)
        self.assertEqual(self.order, ["a", "c", "b"])
        for until, work in (second, other):
            until.callback(None)
            self.successResultOf(work)

    def test_nothing_stays(self):
        for vmid in range(100):
            until, work = self.begin(vmid, "x")
            self.assertEqual(len(self.turns), 1)
            until.callback(None)
            self.successResultOf(work)
            del until, work
        self.assertEqual(len(self.turns), 0)
