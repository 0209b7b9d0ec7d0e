"""Who gets a place: bounds in all and per address, and what counts as one address."""

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.config import Limits
from mtunnel_tx.net.admission import TELL_EVERY_S, Admission, TooManyConnections, address_of, group_of


def v4(host="192.0.2.1"):
    return IPv4Address("TCP", host, 1)


def v6(host):
    return IPv6Address("TCP", host, 1)


class AdmissionTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.ended = []
        self.admission = Admission(Limits(connections=5, connections_unauthenticated_per_address=2), self.clock)

    def enter(self, host="192.0.2.1"):
        return self.admission.enter(v4(host))

    def test_unauthenticated_connections_of_one_address(self):
        first = self.enter()
        self.assertTrue(self.enter())
        self.assertIsNone(self.enter())
        self.assertTrue(self.enter("192.0.2.2"))
        first.leave()
        self.assertTrue(self.enter())

    def test_a_trusted_connection_does_not_count_for_its_address(self):
        for _ in range(5):
            self.enter().trust()
        self.assertEqual(self.admission.taken, 5)
        self.assertIsNone(self.enter("192.0.2.9"))

    def test_all_places_taken(self):
        places = [self.enter(f"192.0.2.{number}") for number in range(5)]
        self.assertIsNone(self.enter("192.0.2.200"))
        places[0].leave()
        self.assertTrue(self.enter("192.0.2.200"))

    def test_each_is_counted_out_once(self):
        place = self.enter()
        place.trust()
        place.trust()
        place.leave()
        place.leave()
        self.assertEqual(self.admission.taken, 0)
        self.assertTrue(self.enter() and self.enter())
        self.assertIsNone(self.enter())

    def test_leaving_untrusted(self):
        self.enter().leave()
        self.assertTrue(self.enter() and self.enter())
        self.assertIsNone(self.enter())

    def resting(self, host, token="a@pve!t"):
        """A place whose connection waits for its next request; `ended` has its host once it was ended."""
        place = self.enter(host)
        place.trust(token)
        place.rest(lambda: self.ended.append(host))
        return place

    def test_the_longest_idle_one_makes_room(self):
        places = [self.resting(f"192.0.2.{number}") for number in range(5)]
        places[0].work()
        places[1].carry()
        self.assertTrue(self.enter("192.0.2.9") and self.enter("192.0.2.10"))
        self.assertEqual(self.ended, ["192.0.2.2", "192.0.2.3"])
        self.assertEqual(self.admission.taken, 5)
        places[2].leave()
        self.assertEqual(self.admission.taken, 5)

    def test_a_stream_does_not_rest(self):
        place = self.enter()
        place.carry()
        place.rest(self.fail)
        self.assertEqual(self.admission.resting, {})

    def test_a_token_has_its_share(self):
        admission = self.admission = Admission(Limits(connections=9, connections_per_token=2), self.clock)
        first, second = self.resting("192.0.2.1"), self.resting("192.0.2.2")
        self.resting("192.0.2.3", "b@pve!t")
        first.work()
        self.resting("192.0.2.4")
        self.assertEqual(self.ended, ["192.0.2.2"])
        second.leave()
        admission.resting.clear()
        with self.assertRaises(TooManyConnections):
            self.enter("192.0.2.5").trust("a@pve!t")
        first.carry()
        self.enter("192.0.2.6").trust("c@pve!t")
        self.assertEqual(admission.taken, 5)

    def test_a_network_of_one_customer_is_one_address(self):
        self.assertTrue(self.admission.enter(v6("2001:db8::1")) and self.admission.enter(v6("2001:db8::2")))
        self.assertIsNone(self.admission.enter(v6("2001:db8::ffff:3")))
        self.assertTrue(self.admission.enter(v6("2001:db8:0:1::1")))

    def test_ipv4_by_an_ipv6_socket_is_ipv4(self):
        self.assertTrue(self.admission.enter(v6("::ffff:192.0.2.1")) and self.enter())
        self.assertIsNone(self.admission.enter(v6("::ffff:192.0.2.1")))
        self.assertTrue(self.admission.enter(v6("::ffff:192.0.2.2")))

    def test_refusals_do_not_fill_the_log(self):
        with capturedLogs() as events:
            for _ in range(1002):
                self.enter()
            self.clock.advance(TELL_EVERY_S)
            self.enter()
        self.assertEqual([event["count"] for event in events], [1, 1001])


class AddressTests(SynchronousTestCase):
    def test_addresses(self):
        self.assertEqual(address_of(v4()), "192.0.2.1")
        self.assertEqual(address_of(v6("2001:DB8::1")), "2001:db8::1")
        self.assertEqual(address_of(v6("fe80::1%eth0")), "fe80::1%eth0")
        self.assertEqual(address_of(v6("::ffff:192.0.2.1")), "192.0.2.1")
        self.assertEqual(address_of(UNIXAddress(b"/x")), "local")
        self.assertEqual(address_of(None), "local")

    def test_groups(self):
        self.assertEqual(group_of("192.0.2.1"), "192.0.2.1")
        self.assertEqual(group_of("2001:db8::1"), "2001:db8::/64")
        self.assertEqual(group_of("fe80::1%eth0"), "fe80::/64")
        self.assertEqual(group_of("local"), "local")
