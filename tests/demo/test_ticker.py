"""What the ticking guest's serial ports tell."""

from twisted.trial.unittest import SynchronousTestCase

from tests.guest.ticker import is_unbroken, read_beats


class Beats(SynchronousTestCase):
    def test_lines_that_begin_here_and_end_there(self):
        whole = b"00000009 .\n0000000A .\n0000000B .\n"
        for cut in range(len(whole) + 1):
            self.assertTrue(is_unbroken(read_beats(whole[:cut] + whole[cut:])))
        self.assertEqual(read_beats(whole[:14]) + read_beats(whole[14:]), [(9, "."), (11, ".")])

    def test_what_breaks_them(self):
        for beats in ([], [(1, "."), (3, ".")], [(1, "."), (1, ".")], [(2, "."), (1, ".")], [(1, "."), (2, "M")]):
            self.assertFalse(is_unbroken(beats))
        self.assertTrue(is_unbroken([(7, "."), (8, ".")]))
