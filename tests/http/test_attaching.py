"""Attaching another connection to a flow: who may, in which order that is checked, and how long a flow waits."""

import os
from types import SimpleNamespace

from twisted.internet.defer import Deferred
from twisted.web.http import HTTPChannel

from mtunnel_tx.http import resumptions
from mtunnel_tx.http.resumptions import (
    FORGOTTEN,
    MOST_ATTACHES,
    MOST_TOMBSTONES,
    Lasting,
    ResumeLimits,
    Resumptions,
)
from mtunnel_tx.ports.events import TunnelEnded
from mtunnel_tx.stream.flow import FlowOutcome
from mtunnel_tx.wire.resuming import (
    AttachClaim,
    ResumeOffer,
    is_asked_for,
    make_key,
    read_claim,
    read_offer,
    write_claim,
    write_offer,
)
from tests.http.apicase import ApiCase, FakeRoute

TOKEN = "mig@pve!t1"
WEBSOCKET = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")


class FakeFlow:
    def __init__(self, kept_bytes=0):
        self.done = Deferred()
        self.kept_bytes = kept_bytes
        self.aborted = False

    def abort(self, reason):
        self.aborted = True
        self.end(orderly=False, reason="cancelled")

    def end(self, *, orderly=True, reason=""):
        self.done.callback(FlowOutcome(orderly=orderly, bytes_in=0, bytes_out=0, reason=reason))


class AttachCase(ApiCase):
    def flow(self, *, vmid=300, token=TOKEN, kept_bytes=0):
        resumption = self.resumptions.begin(FakeRoute(vmid, token))
        resumption.begin(FakeFlow(kept_bytes))
        return resumption

    def end_tunnel(self, outcome, upid="UPID:x:"):
        facts = SimpleNamespace(upid=upid)
        ended = {"reason": "", "problem": None, "traffic": None, "duration_s": 1.0}
        self.resumptions.observe(TunnelEnded(tunnel=facts, outcome=outcome, **ended))

    def attach(self, resumption, *, vmid=300, token="t1", flow_id=None, key=None, generation=1, header=None):
        offer = resumption.offer
        header = header or write_claim(AttachClaim(key=key or offer.key, generation=generation))
        wire = self.wire()
        path = f"/api2/json/nodes/localhost/qemu/{vmid}/mtunnelattach?id={flow_id or offer.id}"
        wire.write(self.raw("GET", path, headers=(f"Mtunnel-Resume: {header}", *WEBSOCKET), token=token))
        return wire

    def assert_refused_late(self, wire):
        self.clock.advance(2.9)
        self.assertTrue(wire.silent())
        self.clock.advance(0.2)
        self.assertEqual(wire.response().line, "HTTP/1.1 401 permission denied - no such flow")


class WhoMayAttach(AttachCase):
    def test_a_wrong_key_a_foreign_one_and_an_unknown_flow_look_alike(self):
        mine, other = self.flow(), self.flow()
        forged = make_key(bytes(31) + b"x", vmid=300, flow_id=mine.offer.id, token=TOKEN)
        self.assert_refused_late(self.attach(mine, key=other.offer.key))
        self.assert_refused_late(self.attach(mine, key=forged))
        self.assert_refused_late(self.attach(mine, flow_id="AAAAAAAAAAAAAAAAAAAAAA"))
        self.assert_refused_late(self.attach(mine, header="1; gen=1"))
        self.assert_refused_late(self.attach(mine, header="2; key=x; gen=1"))

    def test_another_tunnels_flow(self):
        self.assert_refused_late(self.attach(self.flow(vmid=301), vmid=300))

    def test_another_tokens_flow_even_with_its_key(self):
        self.assert_refused_late(self.attach(self.flow(), token="poor"))

    def test_a_token_that_was_revoked(self):
        flow = self.flow()
        (self.root / "priv" / "token.cfg").write_text("")
        wire = self.attach(flow)
        self.clock.advance(3.1)
        self.assertIn(" 401 ", wire.response().line)
        self.assertFalse(flow.flow.aborted)

    def test_privileges_are_asked_for_again(self):
        flow = self.flow(token="mig@pve!poor")
        self.assertIn(" 403 Permission check failed (/, Sys.Incoming)", self.attach(flow, token="poor").response().line)
        self.assertFalse(flow.flow.aborted)

    def test_an_older_process_of_the_same_source(self):
        flow = self.flow()
        flow.generation = 7
        for generation in (1, 7):
            self.assertIn(" 409 ", self.attach(flow, generation=generation).response().line)

    def test_what_became_of_a_flow_that_has_ended(self):
        flow = self.flow()
        flow.flow.end()
        response = self.attach(flow).response()
        self.assertEqual(response.line, "HTTP/1.1 410 the flow has ended: ended")
        self.assertEqual(response.data, {"verdict": "ended", "reason": "", "orderly": True})
        self.end_tunnel("kept")
        self.assertEqual(self.attach(flow).response().data["verdict"], "kept")

    def test_a_flow_that_this_daemon_does_not_know(self):
        """Its key shows that there was one, and whose; how it has ended nobody knows."""
        flow = self.flow()
        self.resumptions.drop(flow)
        response = self.attach(flow).response()
        self.assertEqual(response.line, "HTTP/1.1 410 the flow has ended: ended")
        self.assertEqual((response.data["verdict"], response.data["orderly"]), ("ended", False))
        self.assertEqual(response.data["reason"], "it is not known here any more, as after a restart")
        self.assert_refused_late(self.attach(flow, key="x" * 43))
        self.assert_refused_late(self.attach(flow, token="poor"))

    def test_the_flow_of_the_commands_is_told_the_verdict_whichever_ends_first(self):
        first, second = self.flow(), self.flow()
        first.flow.end(orderly=False, reason="no connection came")
        line = self.attach(first).response().line
        self.assertEqual(line, "HTTP/1.1 503 the tunnel of VM 300 is being ended")
        self.end_tunnel("held")
        second.flow.end(orderly=False, reason="cancelled")
        for flow in (first, second):
            response = self.attach(flow).response()
            self.assertEqual(response.line, "HTTP/1.1 410 the flow has ended: held")
            self.assertEqual((response.data["verdict"], response.data["orderly"]), ("held", False))

    def test_verdicts_are_few(self):
        for number in range(MOST_TOMBSTONES + 5):
            self.end_tunnel("kept", f"UPID:{number}:")
        self.assertEqual(len(self.resumptions._verdicts), MOST_TOMBSTONES)

    def test_the_right_one_becomes_a_websocket(self):
        flow, left = self.flow(), []
        self.patch(HTTPChannel, "requestDone", lambda channel, request: left.append(request))
        self.attach(flow, generation=3)
        self.clock.advance(0)
        self.assertEqual((len(left), flow.generation), (1, 3))

    def test_without_an_upgrade(self):
        flow = self.flow()
        header = write_claim(AttachClaim(key=flow.offer.key, generation=1))
        path = f"/nodes/localhost/qemu/300/mtunnelattach?id={flow.offer.id}"
        self.assertIn(" 400 ", self.ask("GET", path, headers=(f"Mtunnel-Resume: {header}",)).line)


class Floods(AttachCase):
    def test_connections_of_one_flow(self):
        flow, other = self.flow(), self.flow()
        self.patch(HTTPChannel, "requestDone", lambda _channel, _request: None)
        for generation in range(1, 1 + MOST_ATTACHES):
            self.attach(flow, generation=generation)
            self.clock.advance(0)
        self.assertEqual(flow.generation, MOST_ATTACHES)
        for _ in range(3):
            line = self.attach(flow, generation=100).response().line
            self.assertEqual(line, "HTTP/1.1 503 too many connections were attached to this flow")
        self.assertEqual((flow.generation, flow.flow.aborted), (MOST_ATTACHES, False))
        self.attach(other)
        self.clock.advance(1)
        self.assertEqual(other.generation, 1)
        for generation in (100, 101, 102):
            self.attach(flow, generation=generation)
            self.clock.advance(0)
        self.assertEqual(flow.generation, 101)

    def test_windows_of_one_token_and_in_all(self):
        limits = ResumeLimits(window_bytes=4 << 20, windows_bytes=20 << 20)
        self.resumptions = Resumptions(self.clock, bytes(32), os.urandom, limits)
        windows = [self.flow().offer.window_bytes for _ in range(3)]
        self.assertEqual(windows, [4 << 20, 4 << 20, 2 << 20])
        self.assertIsNone(self.resumptions.begin(FakeRoute(300, TOKEN)))
        others = [self.flow(token="a@pve!b") for _ in range(3)]
        self.assertIsNone(self.resumptions.begin(FakeRoute(300, "c@pve!d")))
        others[0].flow.end()
        self.assertEqual(self.flow(token="c@pve!d").offer.window_bytes, 4 << 20)

    def test_windows_of_an_earlier_daemons_flows_count_and_none_of_them_is_ended(self):
        limits = ResumeLimits(window_bytes=4 << 20, windows_bytes=20 << 20)
        self.resumptions = Resumptions(self.clock, bytes(32), os.urandom, limits)
        lasting = [Lasting(id=f"{n:032x}", generation=1, window_bytes=16 << 20, park_s=60.0) for n in range(2)]
        restored = [self.resumptions.restore(FakeRoute(300, TOKEN), one, None) for one in lasting]
        self.assertEqual([one.offer.window_bytes for one in restored], [16 << 20] * 2)
        self.assertIsNone(self.resumptions.begin(FakeRoute(301, "a@pve!b")))
        for one in restored:
            self.resumptions.drop(one)
        self.assertEqual(self.flow().offer.window_bytes, 4 << 20)


class HowLongAFlowWaits(AttachCase):
    def test_one_that_nobody_comes_for_is_aborted(self):
        flow = self.flow()
        flow.parked("end of file")
        self.clock.advance(59)
        self.assertFalse(flow.flow.aborted)
        self.clock.advance(2)
        self.assertTrue(flow.flow.aborted)
        self.assertEqual(flow.route.said, ["end of file"])

    def test_one_that_goes_on_has_its_whole_time_again(self):
        flow = self.flow()
        for _ in range(3):
            flow.parked("reset")
            self.clock.advance(50)
            flow.resumed()
        self.clock.advance(1000)
        self.assertFalse(flow.flow.aborted)
        self.assertEqual(flow.route.said, ["reset", 50.0] * 3)

    def test_the_largest_goes_where_all_keep_too_much(self):
        small, large, live = self.flow(kept_bytes=300), self.flow(kept_bytes=600), self.flow(kept_bytes=5000)
        for flow in (small, large):
            flow.parked("reset")
        self.assertFalse(large.flow.aborted)
        third = self.flow(kept_bytes=300)
        third.parked("reset")
        self.assertEqual([flow.flow.aborted for flow in (small, large, live, third)], [False, True, False, False])

    def test_one_token_does_not_push_out_another_ones(self):
        many = [self.flow(kept_bytes=300, token="mig@pve!many") for _ in range(3)]
        own = self.flow(kept_bytes=600)
        for flow in (*many, own):
            flow.parked("reset")
        self.assertEqual((own.flow.aborted, sum(flow.flow.aborted for flow in many)), (False, 2))

    def test_tombstones_of_another_token_stay(self):
        self.patch(resumptions, "MOST_TOMBSTONES", 3)
        own = self.flow()
        own.flow.end()
        for _ in range(5):
            self.flow(token="mig@pve!many").flow.end()
        self.assertEqual(self.attach(own).response().line, "HTTP/1.1 410 the flow has ended: ended")

    def test_tombstones_are_few_and_go(self):
        flows = [self.flow() for _ in range(MOST_TOMBSTONES + 1)]
        for flow in flows:
            flow.flow.end()
        self.assert_told(flows[0], FORGOTTEN)
        self.assert_told(flows[1], "")
        self.clock.advance(61)
        self.flow().flow.end()
        self.assert_told(flows[1], FORGOTTEN)

    def assert_told(self, flow, reason):
        self.assertEqual(self.attach(flow).response().data["reason"], reason)


class Headers(ApiCase):
    def test_they_are_read_as_they_were_written(self):
        offer = ResumeOffer(id="abc_-", key="KEY", window_bytes=1 << 24, park_s=600.0)
        self.assertEqual(write_offer(offer), "1; id=abc_-; key=KEY; window=16777216; park=600")
        self.assertEqual(read_offer(write_offer(offer)), offer)
        claim = AttachClaim(key="KEY", generation=2)
        self.assertEqual(read_claim(write_claim(claim)), claim)
        self.assertNotIn("KEY", repr((offer, claim)))

    def test_everything_else_is_no_offer(self):
        for text in (None, "", "1", "2; id=a; key=b; window=1000000; park=1", "1; id=a; key=b; window=x; park=1"):
            self.assertIsNone(read_offer(text), text)
        for text in ("1; id=a; key=b; window=1; park=nan", "1; id=a b; key=b; window=1; park=1"):
            self.assertIsNone(read_offer(text), text)
        for text in (None, "1; key=a", "1; key=a; gen=0", "1; key=a; gen=-1", "1; key=a; gen=99999999999", "1; gen=1"):
            self.assertIsNone(read_claim(text), text)

    def test_versions(self):
        self.assertEqual([is_asked_for(text) for text in ("1", "2, 1")], [True, True])
        self.assertEqual([is_asked_for(text) for text in ("2", "", None)], [False, False, False])
