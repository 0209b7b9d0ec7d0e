"""What is put into the page: escaped, bounded, exact; and who sees what of it."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.page.facts import PageFacts
from mtunnel_tx.page.html import Html, element, join
from mtunnel_tx.page.moves import MOST_SHOWN, plot, show_moves
from mtunnel_tx.page.rates import FORGET_S, SAMPLES, Rates
from mtunnel_tx.page.sections import MOST_ROWS, show_sections, titles_for
from mtunnel_tx.page.visitor import OPERATOR, Visitor
from mtunnel_tx.ports.moves import MovePhase
from mtunnel_tx.ports.tunnels import ParkedFlow, TunnelStatus
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.users import parse_user_config
from mtunnel_tx.watch.shape import move_json
from tests.http.apicase import NODE, NOW, USERS
from tests.page.pagecase import STATUS, STRONG, WEAK, a_move, a_row

ALL = Visitor(name=OPERATOR, node=NODE, rights=None)


def visitor(token, users=USERS):
    return Visitor(name=token, node=NODE, rights=Rights(parse_user_config(users), token))


def facts(**changes):
    status = replace(STATUS, **{name: changes.pop(name) for name in ("moves", "held", "tunnels") if name in changes})
    rates = [()] * len(status.moves)
    return PageFacts(**{"at_s": NOW, "status": status, "rates": rates, **changes})


class TagReader(HTMLParser):
    """The tags and texts of markup, as a browser takes them."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


class HtmlTests(SynchronousTestCase):
    @settings(max_examples=50)
    @given(st.text())
    def test_a_text_stays_a_text(self, text):
        read = TagReader(element("p", text, title=text))
        self.assertEqual([tag for tag, _ in read.tags], ["p"])
        self.assertEqual(len(unescape(read.tags[0][1]["title"] or "")), len(read.tags[0][1]["title"] or ""))
        self.assertNotRegex(str(element("p", text)).removeprefix("<p>").removesuffix("</p>"), "[<>\"']")

    def test_pieces(self):
        inner = element("b", "<i>")
        self.assertEqual(element("p", inner, None, 3), "<p><b>&lt;i&gt;</b>3</p>")
        self.assertEqual(element("input", data_x=1, required=True, value=None, class_='"'),
                         '<input data-x="1" required class="&quot;">')  # fmt: skip
        self.assertEqual(join([Html("<hr>"), "&"]), "<hr>&amp;")


class HostileTests(SynchronousTestCase):
    def test_no_name_of_a_peer_becomes_markup(self):
        """Names, reasons, labels, volumes: whatever comes from outside, everywhere that it is shown."""
        bad = "<script>alert(1)</script>\"'"
        move = replace(
            a_move(token=bad, reason=bad, parked_s=3.0), source=bad, address=bad, upid=bad, downtime_s=0.1, target=bad
        )
        move = replace(move, transfers=tuple(replace(one, label=bad) for one in move.transfers))
        outgoing = replace(move, direction="out", target_vmid=300)
        parked = (ParkedFlow(socket=bad, since=NOW - 5, park_s=60),)
        tunnel = TunnelStatus(
            vmid=200, token=bad, upid=bad, state=bad, since=NOW, streams=2, bytes_in=1, bytes_out=1, parked=parked
        )
        row = a_row(token=bad, peer=bad, outcome=bad, reason=bad, problem=bad)
        shown = show_sections(
            facts(moves=(move, outgoing), held={300: bad}, tunnels=(tunnel,), history=[row], history_problem=bad,
                  owners={300: bad}), ALL
        )  # fmt: skip
        tags = {tag for markup in shown.values() for tag, _ in TagReader(markup).tags}
        self.assertNotIn("script", tags)
        self.assertGreater("".join(shown.values()).count("&lt;script&gt;"), 12)

    def test_bounded(self):
        many = facts(moves=tuple(a_move(vmid) for vmid in range(200, 300)), history=[a_row()] * 200)
        shown = show_sections(many, ALL)
        self.assertEqual(shown["moves"].count("<article"), MOST_SHOWN)
        self.assertIn("36 more", shown["moves"])
        self.assertEqual(shown["history"].count("<tr"), MOST_ROWS + 1)


class SightTests(SynchronousTestCase):
    def shown(self, who):
        known = facts(
            moves=(a_move(200, STRONG), a_move(201, WEAK)), held={300: "why-strong", 301: "why-weak"},
            owners={300: STRONG, 301: WEAK}, history=[a_row(100, STRONG), a_row(101, WEAK)],
        )  # fmt: skip
        return show_sections(known, who)

    def test_with_audit_on_the_node(self):
        shown = self.shown(visitor(STRONG))
        self.assertEqual(set(shown), {"now", "waits", "node", "moves", "held", "history", "workers", "limits"})
        for text in ("VM 200", "VM 201"):
            self.assertIn(text, shown["moves"])
        self.assertIn("why-weak", shown["held"])

    def test_a_token_sees_its_own(self):
        shown = self.shown(visitor(WEAK))
        everything = "".join(shown.values())
        self.assertEqual(set(shown), {"now", "waits", "moves", "held", "history"})
        self.assertEqual(set(titles_for(visitor(WEAK))), {"moves", "held", "history"})
        self.assertIn("VM 201", shown["moves"])
        self.assertIn("why-weak", shown["held"])
        for text in (STRONG, "VM 200", "VM 300", "why-strong", ">100<"):
            self.assertNotIn(text, everything)

    def test_what_nobody_knows_the_owner_of_is_for_auditors(self):
        known = facts(held={300: "why"}, owners={300: ""})
        self.assertIn("why", show_sections(known, visitor(STRONG))["held"])
        self.assertNotIn("why", show_sections(known, visitor(WEAK))["held"])

    def test_buttons_are_for_those_who_may(self):
        self.assertEqual(self.shown(visitor(STRONG))["held"].count("<button"), 4)
        self.assertEqual(self.shown(visitor(WEAK))["held"].count("<button"), 0)
        self.assertIn('formaction="drain"', self.shown(visitor(STRONG))["node"])
        auditor = USERS.replace("acl:1:/:mig@pve:Administrator,PVEAdmin:", "acl:1:/:mig@pve:PVEAuditor:")
        shown = self.shown(visitor(STRONG, auditor))
        self.assertIn("VM 201", shown["moves"])
        self.assertNotIn("<button", "".join(shown.values()))


class FigureTests(SynchronousTestCase):
    def test_figures_are_those_of_the_status(self):
        move = a_move()
        read = TagReader(show_moves(facts(moves=(move,)), ALL))
        figures = {}
        for tag, attributes in read.tags:
            if tag == "data":
                figures[attributes["class"].removeprefix("figure ")] = attributes["value"]
        said = move_json(move)
        for name in ("done_bytes", "total_bytes", "rate_bytes_s", "wire_in_bytes", "percent"):
            self.assertEqual(figures[name], str(said[name]), name)
        self.assertEqual(figures["transfer_done_bytes"], str(3 << 20))
        self.assertIn("3.0 MiB of 10.0 MiB", read.text)

    def test_what_is_not_known(self):
        move = a_move()
        unknown = replace(move, transfers=(replace(move.transfers[0], total_bytes=None),))
        markup = show_moves(facts(moves=(unknown,)), ALL)
        self.assertIn("? %", markup)
        self.assertNotRegex(markup, r"<progress[^>]* value=")

    def test_at_the_end(self):
        markup = show_moves(facts(moves=(replace(a_move(), phase=MovePhase.DONE, ended_s=NOW),)), ALL)
        self.assertIn("100 %", markup)
        self.assertNotIn("rate_bytes_s", re.sub("transfer_rate_bytes_s", "", markup))

    def test_parked_flows(self):
        parked = (ParkedFlow(socket="memory", since=NOW - 75, park_s=600),)
        tunnel = TunnelStatus(
            vmid=200, token=STRONG, upid="UPID:200:", state="serving", since=NOW, streams=3, bytes_in=1, bytes_out=1,
            parked=parked,
        )  # fmt: skip
        text = TagReader(show_moves(facts(moves=(a_move(),), tunnels=(tunnel,)), ALL)).text
        self.assertIn("memory: without a connection for 1:15, given up after 10:00", text)


class PlotTests(SynchronousTestCase):
    def test_the_newest_stands_at_the_right(self):
        self.assertIsNone(plot([1.0]))
        markup = plot([0, 10 << 20])
        self.assertIn('<polyline points="238.0,48.0 240.0,0.0">', markup)
        self.assertIn("up to 10.0 MiB/s", markup)
        self.assertNotIn("style=", markup)

    def test_the_first_sample_whatever_the_clock_says(self):
        for now_s in (0.0, 0.3, 1795989733.7184193, 5213.123456789, 77777.7):
            rates = Rates()
            rates.see([a_move()], now_s)
            self.assertEqual(len(rates.of(a_move())), 1, now_s)

    def test_samples(self):
        rates, move = Rates(), a_move()
        for second in range(SAMPLES + 10):
            rates.see([move], second)
            rates.see([move], second + 0.1)
        self.assertEqual(len(rates.of(move)), SAMPLES)
        rates.see([replace(move, phase=MovePhase.DONE)], SAMPLES + 10 + FORGET_S)
        self.assertEqual(rates.of(move), ())
