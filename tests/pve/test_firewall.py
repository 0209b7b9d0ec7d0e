"""Firewall files."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.pve.firewall import format_firewall

LINES = st.sampled_from(["[OPTIONS]", "[IPSET a]", "[IPSET b] # c", "[x]", "", "a", " b "])


class Firewall(SynchronousTestCase):
    def test_order_and_empty_lines(self) -> None:
        text = (
            "[RULES]\nIN ACCEPT # é\n\n|OUT DROP -i net0\n[IPSET b2] # why\n10.0.0.0/8\n[ipset a1]\n"
            "[aliases]\n\nx 1.2.3.4\n[OPTIONS]\nenable: 1\r\n[RULES]\nGROUP g\n"
        )
        self.assertEqual(
            format_firewall(text),
            (
                "[OPTIONS]\n\nenable: 1\n\n[ALIASES]\n\nx 1.2.3.4\n\n[IPSET a1]\n\n\n[IPSET b2] # why\n\n10.0.0.0/8\n\n"
                "[RULES]\n\nIN ACCEPT # é\n|OUT DROP -i net0\nGROUP g\n\n",
                [],
            ),
        )

    def test_what_stands_outside_is_dropped(self) -> None:
        text, warnings = format_firewall("lost\n[OPTIONS]\nenable: 1\n[group g1]\nIN DROP\n[IPSET]\nx\n[RULES x]\ny\n")
        self.assertEqual(text, "[OPTIONS]\n\nenable: 1\n\n")
        self.assertEqual(
            warnings,
            [f"firewall config: line {number} stands outside a section, dropped" for number in (1, 4, 5, 6, 7, 8, 9)],
        )

    def test_nothing(self) -> None:
        for text in ("", "\n\n", "[OPTIONS]\n[RULES]\n\n"):
            self.assertEqual(format_firewall(text), ("", []))

    def test_control_characters(self) -> None:
        self.assertEqual(format_firewall("[RULES]\nIN\tDROP \0\x1b\ud800\n")[0], "[RULES]\n\nIN DROP ???\n\n")

    def test_warnings_are_bounded(self) -> None:
        _, warnings = format_firewall("x\n" * 1000)
        self.assertEqual(len(warnings), 21)
        self.assertEqual(warnings[-1], "firewall config: 980 more warnings")

    def test_a_line_of_blanks(self) -> None:
        """It would take for ever if two parts of a header could share them."""
        for blank in " \t":
            _, warnings = format_firewall("[a" + blank * 100_000 + "x")
            self.assertEqual(len(warnings), 1)

    @settings(deadline=None, max_examples=100)
    @given(
        st.one_of(
            st.text(), st.lists(st.sampled_from(["[OPTIONS]", "[IPSET a]", "[x]", "", "a", " b "])).map("\n".join)
        )
    )
    def test_never_an_error_and_stable(self, text: str) -> None:
        written, _ = format_firewall(text)
        self.assertEqual(format_firewall(written), (written, []))
        written.encode()
