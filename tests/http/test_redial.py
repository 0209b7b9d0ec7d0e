"""What is told of connections that are dialled again."""

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.http.client import NotReached
from mtunnel_tx.http.redial import AGAIN_S, _reach, _report


class ReportTests(SynchronousTestCase):
    def test_a_try_that_was_given_up_is_no_failure(self):
        for error in (CancelledError(), ConnectingCancelledError(IPv4Address("TCP", "127.0.0.1", 8016))):
            _report(Failure(error))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_anything_else_is_logged(self):
        _report(Failure(ValueError("strange")))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class ReachTests(SynchronousTestCase):
    """A stream that is opened while the target's daemon is started again."""

    def reach(self, refusals, patience_s):
        clock, tries = Clock(), []

        async def dial():
            tries.append(clock.seconds())
            if len(tries) <= refusals:
                raise NotReached("cannot connect to the target")
            return "a connection"

        reached = Deferred.fromCoroutine(_reach(clock, dial, patience_s))
        clock.pump([AGAIN_S] * 100)
        return reached

    def test_somebody_comes(self):
        self.assertEqual(self.successResultOf(self.reach(3, 30.0)), "a connection")

    def test_nobody_comes(self):
        self.failureResultOf(self.reach(1000, 30.0), NotReached)

    def test_who_has_no_patience(self):
        self.failureResultOf(self.reach(1, 0.0), NotReached)
