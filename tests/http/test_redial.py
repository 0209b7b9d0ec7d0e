"""What is told of connections that are dialled again."""

from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError
from twisted.internet.error import ConnectingCancelledError
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.http.redial import _report


class ReportTests(SynchronousTestCase):
    def test_a_try_that_was_given_up_is_no_failure(self):
        for error in (CancelledError(), ConnectingCancelledError(IPv4Address("TCP", "127.0.0.1", 8016))):
            _report(Failure(error))
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_anything_else_is_logged(self):
        _report(Failure(ValueError("strange")))
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
