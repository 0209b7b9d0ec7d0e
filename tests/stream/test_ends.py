"""The rules of ends, without sockets; limits of time and rate."""

import itertools

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.stream.ends import FAILING_CODES, TABLE, Deed, Ends, FlowEvent, Sender
from mtunnel_tx.stream.limits import Bucket, Watch


class EndsTests(SynchronousTestCase):
    def settle(self, ends, *, inward=False, outward=False, now_s=0.0):
        deeds = []
        while more := ends.settle(inward_waits=inward, outward_waits=outward, now_s=now_s):
            deeds += more
        return deeds

    def assert_over(self, ends, reason):
        self.assertEqual((ends.peer_over, ends.local_over, ends.reason), (True, True, reason))
        self.assertIsNone(ends.due_s)

    def test_close_frame_then_end_of_file(self):
        ends = Ends(half_close_s=60)
        ends.close_came(1000)
        self.assertEqual(self.settle(ends, inward=True), [])
        self.assertEqual(self.settle(ends, now_s=5), [Deed.SHUT_LOCAL])
        self.assertEqual(ends.due_s, 65)
        ends.local_ended()
        self.assertEqual(self.settle(ends, outward=True), [Deed.SAY_CLOSE])
        self.assertFalse(ends.peer_over)
        self.assertEqual(self.settle(ends), [])
        self.assert_over(ends, None)

    def test_end_of_file_then_close_frame(self):
        ends = Ends(half_close_s=60)
        ends.local_ended()
        self.assertEqual(self.settle(ends), [Deed.SAY_CLOSE])
        self.assertEqual(ends.due_s, 60)
        ends.close_came(1000)
        self.assertEqual(self.settle(ends, inward=True), [])
        # The bytes that are left have the stall limit, no other.
        self.assertIsNone(ends.due_s)
        self.assertEqual(self.settle(ends), [Deed.SHUT_LOCAL])
        self.assert_over(ends, None)

    def test_end_of_the_connection_is_an_answer_only_to_a_close_frame_that_went_out(self):
        for waits, reason in ((False, None), (True, "gone")):
            ends = Ends(half_close_s=60)
            ends.local_ended()
            self.settle(ends, outward=waits)
            ends.carrier_ended("gone")
            self.settle(ends)
            self.assert_over(ends, reason)

    def test_aborts_say_no_close_frame(self):
        for event in ("carrier_ended", "carrier_failed", "local_failed", "local_deaf", "give_up"):
            ends = Ends(half_close_s=60)
            getattr(ends, event)("why")
            ends.drained(ends.outward)
            self.assertEqual(self.settle(ends), [])
            self.assert_over(ends, "why")

    def test_violation_has_its_code(self):
        ends = Ends(half_close_s=60)
        ends.violated(1009, "too big")
        self.assertEqual(self.settle(ends, inward=True), [Deed.SAY_CLOSE])
        self.assertEqual(ends.close_code, 1009)
        self.assertEqual((ends.peer_over, ends.local_over), (True, False))
        self.settle(ends)
        self.assert_over(ends, "too big")

    def test_failing_statuses_are_no_order(self):
        for code in FAILING_CODES:
            ends = Ends(half_close_s=60)
            ends.close_came(code)
            self.assertEqual(self.settle(ends), [Deed.SAY_CLOSE])
            self.assertEqual(ends.close_code, code)
            self.assert_over(ends, f"peer closed with status {code}")

    def test_a_deaf_peer_may_have_left_its_close_frame(self):
        for frame in (True, False):
            ends = Ends(half_close_s=60)
            ends.carrier_deaf("deaf")
            self.assertIs(ends.inward.sender, Sender.LAST)
            if frame:
                ends.close_came(1000)
            else:
                ends.drained(ends.inward)
            ends.local_ended()
            self.assertEqual(self.settle(ends), [Deed.SHUT_LOCAL] if frame else [])
            self.assert_over(ends, None if frame else "deaf")

    def test_a_deaf_unix_side_is_heard_out(self):
        ends = Ends(half_close_s=60)
        ends.local_deaf("deaf")
        self.assertTrue(ends.outward.takes)
        ends.local_ended()
        self.assertEqual(self.settle(ends), [])
        self.assert_over(ends, "deaf")

    def test_end_of_qemu(self):
        ends = Ends(half_close_s=60, ends_with_local=True)
        ends.local_ended()
        self.assertEqual(self.settle(ends, inward=True), [Deed.SAY_CLOSE])
        self.assert_over(ends, None)

    def test_end_of_the_peer_of_a_qemu(self):
        """What it would still send, nobody takes; it is not to be swallowed."""
        ends = Ends(half_close_s=60, ends_with_peer=True)
        ends.close_came(1000)
        self.assertFalse(ends.outward.takes)
        self.assertEqual(self.settle(ends, inward=True), [Deed.SAY_CLOSE])
        self.assertFalse(ends.local_over)
        self.assertEqual(self.settle(ends), [Deed.SHUT_LOCAL])
        self.assert_over(ends, None)

    def test_limits(self):
        ends = Ends(half_close_s=60)
        ends.close_came(1000)
        self.settle(ends)
        ends.expire()
        self.assertEqual(self.settle(ends), [Deed.SAY_CLOSE])
        self.assert_over(ends, None)

        ends = Ends(half_close_s=60)
        ends.local_ended()
        self.settle(ends)
        ends.expire()
        self.settle(ends)
        self.assert_over(ends, "no Close frame came from the peer")

        ends = Ends(half_close_s=60)
        ends.carrier_ended("gone")
        self.settle(ends, inward=True, now_s=1)
        self.assertEqual(ends.due_s, 61)
        ends.expire()
        self.settle(ends, inward=True)
        self.assert_over(ends, "gone")

    def test_the_first_reason_stays(self):
        ends = Ends(half_close_s=60)
        ends.violated(1002, "first")
        ends.local_failed("second")
        self.assertEqual((ends.reason, ends.close_code), ("first", 1002))


OPEN, LAST, ENDED, CUT = Sender.OPEN, Sender.LAST, Sender.ENDED, Sender.CUT
DEAF_LOCAL, DEAF_CARRIER = (True, False), (False, True)
HEAR = (False, False)

EXPECTED = {
    # inward from OPEN, LAST; outward from OPEN, LAST; deaf (UNIX socket, carrier); failed; parked
    FlowEvent.CLOSE_CAME: (ENDED, ENDED, OPEN, LAST, HEAR, False, False),
    FlowEvent.CLOSE_CAME_FOR_BOTH: (ENDED, ENDED, CUT, CUT, HEAR, False, False),
    FlowEvent.FAILING_CLOSE_CAME: (CUT, CUT, CUT, CUT, HEAR, True, False),
    FlowEvent.PROTOCOL_VIOLATED: (CUT, CUT, CUT, CUT, HEAR, True, False),
    FlowEvent.CLOSE_ANSWERED: (ENDED, ENDED, OPEN, LAST, HEAR, False, False),
    FlowEvent.CARRIER_DEAF: (LAST, LAST, OPEN, LAST, DEAF_CARRIER, False, False),
    FlowEvent.CARRIER_BROKEN: (OPEN, LAST, OPEN, LAST, DEAF_CARRIER, False, False),
    FlowEvent.CARRIER_LOST: (CUT, CUT, CUT, CUT, HEAR, True, False),
    FlowEvent.CARRIER_DETACHED: (OPEN, OPEN, OPEN, LAST, HEAR, False, True),
    FlowEvent.LOCAL_ENDED: (OPEN, LAST, ENDED, CUT, HEAR, False, False),
    FlowEvent.LOCAL_ENDED_FOR_BOTH: (CUT, CUT, ENDED, CUT, DEAF_LOCAL, False, False),
    FlowEvent.LOCAL_FAILED: (CUT, CUT, CUT, CUT, DEAF_LOCAL, True, False),
    FlowEvent.LOCAL_DEAF: (CUT, CUT, LAST, LAST, DEAF_LOCAL, True, False),
    FlowEvent.LOCAL_DRAINED: (OPEN, LAST, OPEN, CUT, HEAR, False, False),
    FlowEvent.HALF_CLOSE_EXPIRED: (OPEN, LAST, ENDED, ENDED, HEAR, False, False),
    FlowEvent.GIVEN_UP: (CUT, CUT, CUT, CUT, (True, True), True, False),
}


class TableTests(SynchronousTestCase):
    """Each event in each pair of states."""

    def after(self, event, inward, outward):
        ends = Ends(half_close_s=60)
        ends.inward.sender, ends.outward.sender = inward, outward
        ends._apply(event, "why", 1002)
        return ends

    def test_each_row(self):
        self.assertEqual(set(EXPECTED), set(FlowEvent))
        self.assertEqual(set(TABLE), set(FlowEvent))
        for event, (in_open, in_last, out_open, out_last, deaf, fails, parks) in EXPECTED.items():
            for inward, outward in itertools.product(Sender, Sender):
                ends = self.after(event, inward, outward)
                expected = {OPEN: in_open, LAST: in_last}.get(inward, inward)
                self.assertIs(ends.inward.sender, expected, (event, inward, outward))
                expected = {OPEN: out_open, LAST: out_last}.get(outward, outward)
                self.assertIs(ends.outward.sender, expected, (event, inward, outward))
                self.assertEqual((ends.inward.deaf, ends.outward.deaf), deaf, event)
                self.assertEqual((ends.reason, ends.close_code), ("why", 1002) if fails else (None, 1000), event)
                self.assertEqual(ends.parked, "why" if parks else None, event)

    def test_a_flow_that_has_failed_comes_to_its_end(self):
        """Whatever happened before: once nothing waits and nothing comes, both sides are over."""
        for event, inward, outward in itertools.product(FlowEvent, Sender, Sender):
            ends = self.after(event, inward, outward)
            if ends.reason is None:
                continue
            ends.drained(ends.inward)
            ends.drained(ends.outward)
            while ends.settle(inward_waits=False, outward_waits=False, now_s=0.0):
                pass
            self.assertEqual((ends.peer_over, ends.local_over), (True, True), (event, inward, outward))

    def test_a_flow_without_a_carrier_is_open(self):
        """It hears its next carrier, whatever was wrong with the last one."""
        ends = Ends(half_close_s=60)
        ends.carrier_deaf("no answer")
        ends.carrier_detached("taken away")
        self.assertEqual((ends.parked, ends.reason), ("taken away", None))
        ends.carrier_attached()
        self.assertEqual((ends.parked, ends.inward.sender, ends.outward.deaf), (None, OPEN, False))
        self.assertEqual(ends.settle(inward_waits=False, outward_waits=False, now_s=0.0), [])
        self.assertEqual((ends.peer_over, ends.local_over, ends.due_s), (False, False, None))


class Limits(SynchronousTestCase):
    def test_bucket(self):
        bucket = Bucket(1000)
        self.assertFalse(bucket.is_empty(50.0))
        bucket.spend(2100)
        self.assertTrue(bucket.is_empty(50.0))
        self.assertAlmostEqual(bucket.due_s, 52.0, places=2)
        self.assertTrue(bucket.is_empty(51.9))
        self.assertFalse(bucket.is_empty(bucket.due_s))
        self.assertIsNone(bucket.due_s)
        # Silence saves up a tenth of a second, not more.
        self.assertFalse(bucket.is_empty(1000.0))
        bucket.spend(101)
        self.assertTrue(bucket.is_empty(1000.0))

    def test_no_limit(self):
        bucket = Bucket(None)
        bucket.spend(1 << 40)
        self.assertFalse(bucket.is_empty(0.0))

    def test_watch(self):
        watch = Watch(10)
        self.assertFalse(watch.look(waits=False, taken=0, now_s=0))
        self.assertFalse(watch.look(waits=True, taken=0, now_s=100))
        self.assertFalse(watch.look(waits=True, taken=0, now_s=109))
        self.assertFalse(watch.look(waits=True, taken=1, now_s=109.5))
        self.assertEqual(watch.due_s, 119.5)
        self.assertFalse(watch.look(waits=False, taken=1, now_s=200))
        self.assertIsNone(watch.due_s)
        self.assertFalse(watch.look(waits=True, taken=1, now_s=200))
        self.assertTrue(watch.look(waits=True, taken=1, now_s=210))
