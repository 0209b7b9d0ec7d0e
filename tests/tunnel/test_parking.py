"""Which flows of a tunnel are parked, and for how long there was any."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.tunnel.parking import MOST_TOLD, Parking
from mtunnel_tx.wire.socketkinds import COMMANDS, MEMORY


class Route:
    def __init__(self, kind):
        self.kind = kind


class ParkingTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.steps_s = 1000.0
        self.parking = Parking(self.clock.seconds, self.wall, 600.0)
        self.commands, self.memory = Route(COMMANDS), Route(MEMORY)

    def wall(self):
        return self.clock.seconds() + self.steps_s

    def test_what_waited_under_an_earlier_daemon_has_waited_longer(self):
        self.clock.advance(100)
        self.parking.park(self.memory, 30.0)
        self.parking.park(self.commands, 40.0)
        self.assertEqual([flow.since for flow in self.parking.flows()], [1070.0, 1060.0])
        self.assertEqual(self.parking.parked_s, 40)
        self.clock.advance(2)
        self.parking.forget(self.commands)
        self.parking.forget(self.memory)
        self.assertEqual(self.parking.parked_s, 42)

    def test_a_clock_that_is_set_changes_nothing(self):
        self.parking.park(self.memory)
        self.steps_s += 3600
        self.clock.advance(5)
        self.assertEqual(self.parking.parked_s, 5)
        self.assertEqual([flow.since for flow in self.parking.flows()], [1000.0])
        self.parking.forget(self.memory)
        self.assertEqual(self.parking.parked_s, 5)

    def test_time_counts_once_however_many_are_parked(self):
        self.parking.park(self.memory)
        self.clock.advance(2)
        self.parking.park(self.commands)
        self.clock.advance(3)
        self.assertEqual([flow.socket for flow in self.parking.flows()], ["memory", "commands"])
        self.parking.forget(self.memory)
        self.clock.advance(1)
        self.assertEqual(self.parking.parked_s, 6)
        self.parking.forget(self.commands)
        self.parking.forget(self.commands)
        self.clock.advance(100)
        self.assertEqual((self.parking.parked_s, self.parking.flows(), self.parking.times), (6, (), 2))

    def test_a_log_is_not_filled(self):
        for _ in range(MOST_TOLD):
            self.parking.park(self.memory)
        self.assertTrue(self.parking.is_told)
        self.parking.park(self.memory)
        self.assertFalse(self.parking.is_told)
