from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.pve.sections import Section, parse_sections
from tests.pve.sections import format_sections

words = st.from_regex(r"[a-z][a-z0-9._-]{0,8}", fullmatch=True)
values = st.from_regex(r"[!-~]([ -~]{0,10}[!-~])?", fullmatch=True)
sections = st.builds(Section, type=words, id=words, options=st.dictionaries(words, values, max_size=4), line=st.just(0))


def parse(text):
    warnings = []
    return parse_sections(text, warnings.append), warnings


def plain(parsed):
    return [(section.type, section.id, section.options) for section in parsed]


class SectionsTest(SynchronousTestCase):
    @settings(deadline=None)
    @given(st.lists(sections, max_size=4))
    def test_round_trip(self, given_sections):
        again, warnings = parse(format_sections(given_sections))
        self.assertEqual(plain(again), plain(given_sections))
        self.assertEqual(warnings, [])

    def test_canonical(self):
        text = "dir: local\n\tpath /var/lib/vz\n\tshared 1\n\nlvm: two\n"
        self.assertEqual(format_sections(parse(text)[0]), text)

    def test_what_is_read(self):
        text = "# note\n\nDIR:local  \n    path   /a b \n# inside\n  #too\n\tmkdir\n\n\nnfs: n2\n"
        parsed, warnings = parse(text)
        self.assertEqual(plain(parsed), [("dir", "local", {"path": "/a b", "mkdir": "1"}), ("nfs", "n2", {})])
        self.assertEqual([section.line for section in parsed], [3, 10])
        self.assertEqual(warnings, [])

    def test_first_of_a_duplicate_key_stays(self):
        parsed, warnings = parse("dir: a\n path /1\n path /2\n")
        self.assertEqual(parsed[0].options, {"path": "/1"})
        self.assertEqual(len(warnings), 1)
        self.assertIn("line 3", warnings[0])

    def test_skipped(self):
        parsed, warnings = parse(" path /x\nwhat is this\ndir: a\nwhat now\n path /1\n")
        self.assertEqual(plain(parsed), [("dir", "a", {"path": "/1"})])
        self.assertEqual([warning[:6] for warning in warnings], ["line 1", "line 2", "line 4"])

    def test_the_empty_line_between_two_sections_is_missing(self):
        parsed, warnings = parse("dir: a\n path /1\nnfs: b\n path /2\n content iso\n")
        self.assertEqual(plain(parsed), [("dir", "a", {"path": "/1"}), ("nfs", "b", {"path": "/2", "content": "iso"})])
        self.assertEqual(warnings, ["line 3: no empty line before 'nfs: b'; Proxmox skips such a section"])

    def test_what_only_looks_like_a_header(self):
        """An option that stands at the beginning of its line, with a colon."""
        warnings = []
        parsed = parse_sections("dir: a\ncontent: iso\n path /1\n", warnings.append, types=["dir"])
        self.assertEqual(plain(parsed), [("dir", "a", {"path": "/1"})])
        self.assertEqual(warnings, ["line 2: not an option, skipped"])

    def test_lines_of_another_system(self):
        parsed, warnings = parse("dir: a\r\n\tpath /1\r\n\r\ndir: b\r\n")
        self.assertEqual(plain(parsed), [("dir", "a", {"path": "/1"}), ("dir", "b", {})])
        self.assertEqual(warnings, [])
