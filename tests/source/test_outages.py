"""Connections that are lost and come back: what a source says, and how long its commands wait."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.ports.moves import OutageBegan, OutageEnded, WasParked
from mtunnel_tx.source.outages import Outages, StandingClock


class FakeStream:
    def watch(self, parked, resumed):
        self.lose = lambda: parked("reset", 600.0)
        self.find = resumed


class StandingClockTests(SynchronousTestCase):
    def setUp(self):
        self.real = Clock()
        self.clock = StandingClock(self.real)
        self.called = []

    def test_a_call_comes_so_much_later(self):
        self.clock.callLater(10, self.called.append, "due")
        self.real.advance(4)
        self.clock.stand()
        self.clock.stand()
        self.real.advance(100)
        self.assertEqual((self.called, self.clock.seconds()), ([], 4.0))
        self.clock.go_on()
        self.real.advance(5.9)
        self.assertEqual(self.called, [])
        self.real.advance(0.2)
        self.assertEqual(self.called, ["due"])

    def test_calls_that_are_made_or_cancelled_while_it_stands(self):
        first = self.clock.callLater(1, self.called.append, "first")
        self.clock.stand()
        self.clock.callLater(1, self.called.append, "second")
        self.assertTrue(first.active())
        first.cancel()
        self.assertFalse(first.active())
        self.clock.go_on()
        self.real.advance(1)
        self.assertEqual(self.called, ["second"])
        self.assertEqual(self.real.getDelayedCalls(), [])


class OutageTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.said = []
        self.told = []
        self.outages = Outages(self.clock, self.said.append, self.told.append)
        self.commands, self.memory = FakeStream(), FakeStream()
        self.outages.watch(self.commands, longest_s=600.0, notice_s=20.0, carries_commands=True)
        self.outages.watch(self.memory, longest_s=600.0, notice_s=20.0, carries_commands=False)

    def test_what_is_said(self):
        self.memory.lose()
        self.commands.lose()
        self.clock.advance(10)
        self.commands.find()
        self.clock.advance(4)
        self.memory.find()
        lost = "connection lost, waiting ({} of 10:00)"
        self.assertEqual(self.said, [lost.format("0:00"), lost.format("0:10"), "resumed after 0:14"])
        self.assertEqual(self.outages.summary(), "connection lost once, 0:14 in all")
        self.assertEqual(self.told, [OutageBegan(), WasParked(parked_s=14.0), OutageEnded()])
        self.memory.lose()
        self.outages.forget(self.commands)
        self.assertEqual(self.told[3:], [OutageBegan()])
        self.outages.forget(self.memory)
        self.assertEqual(self.told[3:], [OutageBegan(), OutageEnded()])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.outages.summary(), "connection lost 2 times, 0:14 in all")

    def test_only_the_commands_own_stream_stops_their_clock(self):
        called = []
        self.outages.commands.callLater(5, called.append, "late")
        self.memory.lose()
        self.clock.advance(4)
        self.commands.lose()
        self.clock.advance(60)
        self.assertEqual(called, [])
        self.commands.find()
        self.clock.advance(1)
        self.assertEqual(called, ["late"])

    def test_a_plain_stream_is_not_waited_for(self):
        plain = FakeStream()
        outages = Outages(self.clock, self.said.append)
        outages.watch(plain, longest_s=0.0, notice_s=20.0, carries_commands=True)
        self.assertFalse(hasattr(plain, "lose"))
        self.assertEqual((self.outages.notice_s(), outages.notice_s()), (20.0, 0.0))
