from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import WrongState
from mtunnel_tx.pve.guestconf import format_guest_config, parse_guest_config
from mtunnel_tx.pve.moved import check_not_moved, find_move, forget_move, mark_moved

CONF = parse_guest_config("memory: 512\nname: web\n\n[old]\nmemory: 1\n")
MARKED = mark_moved(CONF, host="pve2.example.org", vmid=200, at_s=1_790_856_000.0)
TEXT = "moved to pve2.example.org as VM 200 on 2026-10-01 12:00 UTC"


class MovedTest(SynchronousTestCase):
    def test_it_is_found_again_in_the_file(self):
        text = format_guest_config(MARKED)
        self.assertIn(f"\n{TEXT.replace('moved', 'moved:', 1)}\n", text)
        self.assertEqual(find_move(parse_guest_config(text)), TEXT)

    def test_a_vm_of_this_host_has_none(self):
        self.assertIsNone(find_move(CONF))
        check_not_moved(100, CONF)

    def test_no_start_without_a_decision(self):
        with self.assertRaises(WrongState) as caught:
            check_not_moved(100, MARKED)
        self.assertEqual(
            caught.exception.text,
            f"VM 100 was {TEXT}; if it is gone there, 'mtunnel vm forget-move 100' makes this copy the VM",
        )

    def test_forgotten(self):
        self.assertEqual(forget_move(MARKED), CONF)
        self.assertEqual(forget_move(CONF), CONF)

    def test_a_mark_that_somebody_spoiled_still_counts(self):
        with self.assertRaises(WrongState):
            check_not_moved(100, parse_guest_config("moved: x\x1b[2J\n"))
