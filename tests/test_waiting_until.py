"""Waiting for a condition: nothing that happens while one looks is missed."""

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.waiting import Occasion, until


class UntilTest(SynchronousTestCase):
    def setUp(self):
        self.clock, self.occasion, self.looks = Clock(), Occasion(), []
        self.waiting = Deferred.fromCoroutine(until(self.clock, self.occasion, self.look, 1.0))

    def look(self):
        self.looks.append(Deferred())
        return self.looks[-1]

    def test_what_happens_during_the_look_is_not_missed(self):
        self.occasion.happen_soon(self.clock)
        self.clock.advance(0)
        self.looks[0].callback(False)
        self.assertEqual(len(self.looks), 2)
        self.looks[1].callback(True)
        self.successResultOf(self.waiting)

    def test_it_looks_again_after_a_while(self):
        self.looks[0].callback(False)
        self.assertEqual(len(self.looks), 1)
        self.clock.advance(1.0)
        self.looks[1].callback(True)
        self.successResultOf(self.waiting)
        self.assertEqual(self.clock.getDelayedCalls(), [])
