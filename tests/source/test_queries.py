"""Questions after an import while the network is lost: each has an answer, and the real one is told once."""

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.source.helper.queries import PENDING, PENDING_S, ImportQueries, is_import_query

LINE = b'{"cmd":"query-disk-import"}'


class QueryTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.asked = []
        self.is_parked = True
        self.queries = ImportQueries(self.clock, self.ask, lambda: self.is_parked)

    def ask(self, line):
        self.asked.append(Deferred())
        return self.asked[-1]

    def test_a_reply_in_time_is_passed_on(self):
        told = self.queries.ask(LINE)
        self.asked[0].callback(b"real")
        self.assertEqual(self.successResultOf(told), b"real")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_pending_until_the_network_is_back_and_the_real_one_once(self):
        for _ in range(3):
            told = self.queries.ask(LINE)
            self.clock.advance(PENDING_S - 0.1)
            self.assertNoResult(told)
            self.clock.advance(0.2)
            self.assertEqual(self.successResultOf(told), PENDING)
        self.assertEqual(len(self.asked), 1)
        told = self.queries.ask(LINE)
        self.asked[0].callback(b"complete")
        self.assertEqual(self.successResultOf(told), b"complete")
        self.queries.ask(LINE)
        self.assertEqual(len(self.asked), 2)

    def test_a_reply_that_comes_between_two_questions(self):
        self.queries.ask(LINE)
        self.clock.advance(PENDING_S)
        self.asked[0].callback(b"complete")
        self.assertEqual(self.successResultOf(self.queries.ask(LINE)), b"complete")
        self.assertEqual(len(self.asked), 1)

    def test_with_a_connection_nothing_is_made_up(self):
        self.is_parked = False
        told = self.queries.ask(LINE)
        self.clock.advance(60)
        self.assertNoResult(told)
        self.is_parked = True
        self.clock.pump([PENDING_S])
        self.assertEqual(self.successResultOf(told), PENDING)

    def test_the_end_of_the_connection(self):
        told = self.queries.ask(LINE)
        self.clock.advance(PENDING_S)
        self.assertEqual(self.successResultOf(told), PENDING)
        self.asked[0].errback(BackendFailed("lost"))
        self.failureResultOf(self.queries.ask(LINE), BackendFailed)

    def test_which_lines(self):
        self.assertTrue(is_import_query(LINE))
        for line in (b"{", b'{"cmd":"version"}', b'{"cmd":"x","of":"query-disk-import"}', b'["query-disk-import"]'):
            self.assertFalse(is_import_query(line), line)
