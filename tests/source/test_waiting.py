from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import TimedOut
from mtunnel_tx.source.waiting import finish, first_of, pause, within


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
