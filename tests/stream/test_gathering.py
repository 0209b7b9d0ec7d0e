"""How long a pump thread rests: by the rate of the senders, and never where somebody waits."""

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.stream.gathering import BATCH_BYTES, LONG_REST_S, RECENT_S, SHORT_REST_S, FlowPace, Gathering

KIB = 1024


class GatheringTests(SynchronousTestCase):
    def setUp(self):
        self.gathering, self.pace = Gathering(), FlowPace()
        self.now_s = 100.0
        self.bytes_in = self.bytes_out = 0
        self.rest(0)

    def rest(self, bytes_in, bytes_out=0, after_s=0.001):
        self.now_s += after_s
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self.pace.note(self.bytes_in, self.bytes_out, self.now_s)
        return self.gathering.rest_s([self.pace], self.now_s)

    def test_a_trickling_sender_gets_the_time_for_a_full_batch(self):
        rate_bytes_s = 400_000_000
        moved = 40_000
        rest_s = self.rest(moved, after_s=moved / rate_bytes_s)
        self.assertAlmostEqual(rest_s, BATCH_BYTES / rate_bytes_s)

    def test_a_slow_one_does_not_get_more_than_the_most(self):
        self.assertEqual(self.rest(16 * KIB, after_s=0.01), LONG_REST_S)

    def test_a_slow_one_gets_it_after_each_full_batch(self):
        for after_s, rest_s in ((0.002, LONG_REST_S), (0.0015, 0.0015), (0.0005, 0.0)):
            with self.subTest(after_s=after_s):
                self.assertAlmostEqual(self.rest(BATCH_BYTES, after_s=after_s), rest_s)
        self.assertEqual(self.rest(2 * BATCH_BYTES, after_s=0.01), 0.0)

    def test_a_fast_one_gets_the_least(self):
        self.assertEqual(self.rest(120 * KIB, after_s=0.000_01), SHORT_REST_S)

    def test_requests_and_full_batches_do_not_wait(self):
        sizes = (0, 100, 8 * KIB - 1, 128 * KIB, 256 * KIB)
        self.assertEqual([self.rest(size, after_s=0.0004) for size in sizes], [0.0] * 5)

    def test_an_answer_is_not_held_up(self):
        self.rest(0, 20)
        self.assertEqual(self.rest(16 * KIB, after_s=0.01), SHORT_REST_S)
        self.assertEqual(self.rest(16 * KIB, after_s=2 * RECENT_S), LONG_REST_S)

    def test_a_full_batch_outward_filled_the_buffer_of_its_sender(self):
        """To rest then would make a sender slow that is not, and keep it so."""
        self.assertEqual([self.rest(0, 208 * KIB, after_s=0.002) for _ in range(3)], [0.0] * 3)

    def test_outward_it_is_the_same(self):
        self.assertEqual(self.rest(0, 16 * KIB, after_s=0.01), LONG_REST_S)
