"""Tickets: who, where, how long, and nothing that was changed on the way."""

import string

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import Unauthenticated
from mtunnel_tx.wire.ticket import check_ticket, make_ticket, normalise

KEY = bytes(range(32))
USER = "mig@pve!t1"
PATH = "/run/qemu-server/300.mtunnel"
NOW = 0x6B035030


def is_valid(text, *, key=KEY, user=USER, path=PATH, now=NOW):
    try:
        check_ticket(text, key, user, path, now)
    except Unauthenticated as error:
        assert error.text == "permission denied - invalid PVETUNNEL ticket"
        return False
    return True


class TicketTests(SynchronousTestCase):
    ticket = make_ticket(KEY, USER, PATH, NOW + 0.7)

    def test_form(self):
        self.assertRegex(self.ticket, r"\APVETUNNEL:6B035030::[A-Za-z0-9+/]{43}=\Z")

    def test_valid_again_and_again(self):
        self.assertTrue(all(is_valid(self.ticket) for _ in range(3)))

    def test_age(self):
        for age, expected in (
            (-20, False),
            (-19, True),
            (0, True),
            (39, True),
            (39.9, True),
            (40, False),
            (1e9, False),
        ):
            self.assertIs(is_valid(self.ticket, now=NOW + age), expected, age)

    def test_bound_to_key_user_and_path(self):
        self.assertFalse(is_valid(self.ticket, key=bytes(32)))
        self.assertFalse(is_valid(self.ticket, user="mig@pve!t2"))
        self.assertFalse(is_valid(self.ticket, user="mig@pve"))
        for path in (
            "/run/qemu-server/301.mtunnel",
            "/run/qemu-server/300.mtunnel2",
            "",
            "/socket" + PATH,
            "../" + PATH,
        ):
            self.assertFalse(is_valid(self.ticket, path=path), path)

    def test_path_is_normalised(self):
        for path in ("run/qemu-server/300.mtunnel", "//run//qemu-server///300.mtunnel/"):
            self.assertTrue(is_valid(self.ticket, path=path), path)
        self.assertEqual(normalise("//a///b/"), "a/b")
        self.assertEqual(normalise("/"), "")

    def test_odd_texts(self):
        texts = [
            "",
            "PVETUNNEL",
            self.ticket + "\n",
            " " + self.ticket,
            self.ticket.replace("::", ":"),
            self.ticket[:-1],
        ]
        texts += [self.ticket.lower(), self.ticket + "=", "\ud800", "ü" * 80, self.ticket.replace("6B", "6b")]
        for text in texts:
            self.assertFalse(is_valid(text), text)

    def test_surrogates_in_a_path(self):
        self.assertFalse(is_valid(self.ticket, path="/run/\ud800", user="\udcff"))

    @given(st.integers(0, len(ticket) - 1), st.sampled_from(string.printable))
    @settings(deadline=None, max_examples=100)
    def test_mutated(self, position, character):
        mutated = self.ticket[:position] + character + self.ticket[position + 1 :]
        self.assertIs(is_valid(mutated), mutated == self.ticket)

    @given(st.binary(min_size=32, max_size=32), st.from_regex(r"[^\s:/]+@pve![a-z]+", fullmatch=True), st.text())
    @settings(deadline=None, max_examples=100)
    def test_round_trip(self, key, user, path):
        ticket = make_ticket(key, user, path, NOW)
        self.assertTrue(is_valid(ticket, key=key, user=user, path=path))
