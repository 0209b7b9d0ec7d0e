from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import WrongState
from mtunnel_tx.waiting import (
    OwnedWork,
    Quota,
)


async def wait_for(deferred):
    return await deferred


class QuotaTest(SynchronousTestCase):
    def setUp(self):
        self.quota = Quota(3)
        self.log = []

    def work(self, name, **owners):
        """Work that goes on until its Deferred fires."""
        over = Deferred()

        async def run():
            async with self.quota.turn(owners):
                self.log.append(name)
                await over

        return over, Deferred.fromCoroutine(run())

    def test_the_rest_waits_in_order(self):
        works = [self.work(number) for number in range(5)]
        self.assertEqual(self.log, [0, 1, 2])
        works[1][0].callback(None)
        works[0][0].callback(None)
        self.assertEqual(self.log, [0, 1, 2, 3, 4])

    def test_who_has_his_share_holds_nobody_up(self):
        first, _ = self.work("a1", a=1)
        self.work("a2", a=1)
        self.work("b1", a=1, b=1)
        self.work("c1", c=1)
        self.assertEqual(self.log, ["a1", "c1"])
        first.callback(None)
        self.assertEqual(self.log, ["a1", "c1", "a2"])

    def test_one_that_gives_up_waiting(self):
        works = [self.work(number) for number in range(5)]
        works[3][1].cancel()
        self.failureResultOf(works[3][1], CancelledError)
        works[0][0].callback(None)
        self.assertEqual(self.log, [0, 1, 2, 4])

    def test_one_that_fails_or_is_cancelled_leaves(self):
        works = [self.work(number, a=3) for number in range(5)]
        works[0][0].errback(ZeroDivisionError())
        self.failureResultOf(works[0][1], ZeroDivisionError)
        works[1][1].cancel()
        self.failureResultOf(works[1][1], CancelledError)
        self.assertEqual(self.log, [0, 1, 2, 3, 4])
        for over, _ in works[2:]:
            over.callback(None)
        self.assertEqual((self.quota._count, self.quota._counts), (0, {}))


class OwnedWorkTest(SynchronousTestCase):
    def setUp(self):
        self.owner = OwnedWork("its owner has ended")

    def test_a_result_passes(self):
        async def work():
            return 7

        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(self.owner.run(work()))), 7)

    def test_the_end_waits_for_cleanup(self):
        cleanup = Deferred()

        async def work():
            try:
                await Deferred()
            finally:
                await cleanup

        running = Deferred.fromCoroutine(self.owner.run(work()))
        ending = Deferred.fromCoroutine(self.owner.end())
        self.assertNoResult(ending)
        cleanup.callback(None)
        self.successResultOf(ending)
        self.assertEqual(self.failureResultOf(running, WrongState).value.text, "its owner has ended")

    def test_nothing_begins_after_the_end(self):
        async def work():
            self.fail("it has begun")

        self.successResultOf(Deferred.fromCoroutine(self.owner.end()))
        self.failureResultOf(Deferred.fromCoroutine(self.owner.run(work())), WrongState)

    def test_a_cancelled_caller_cancels_the_work(self):
        waiting = Deferred()

        async def work():
            await waiting

        running = Deferred.fromCoroutine(self.owner.run(work()))
        running.cancel()
        self.failureResultOf(running, CancelledError)
        self.assertTrue(waiting.called)
