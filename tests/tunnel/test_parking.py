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
        self.parking = Parking(self.clock.seconds, 600.0)
        self.commands, self.memory = Route(COMMANDS), Route(MEMORY)

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
