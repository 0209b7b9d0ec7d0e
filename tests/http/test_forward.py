"""Who answers a request, what it takes to be passed on, and how often that may happen."""

from dataclasses import replace

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyRequest

from mtunnel_tx.config import Forward
from mtunnel_tx.config.settings import ClusterNode
from mtunnel_tx.errors import Unauthenticated, Unreachable
from mtunnel_tx.http.forward import Destination, Elsewhere, LoopDetected, count_hops, read_authorization
from mtunnel_tx.http.operation import Parts
from mtunnel_tx.http.replies import Reply
from mtunnel_tx.pve.maps import Endpoint
from tests.http.apicase import SECRET, ApiCase

PRINT = ":".join(["CD"] * 32)
NODES = {
    "pveb": ClusterNode(host="192.0.2.2", port=8017, fingerprint=PRINT),
    "pvetest": ClusterNode(host="x", port=1, fingerprint=""),
}
TOKEN = f"PVEAPIToken=mig@pve!t1={SECRET}"


def path(text):
    return ("api2", "json", *text.split("/"))


async def no_websocket(_request, _endpoint, _headers):
    raise Unreachable("nobody there")


def request(**headers):
    made = DummyRequest([b""])
    for name, value in headers.items():
        made.requestHeaders.setRawHeaders(name.replace("_", "-"), [value])
    return made


class FindTests(SynchronousTestCase):
    def elsewhere(self, api="https://127.0.0.1:8006", fingerprint=None):
        forward = Forward(api=api, nodes=NODES, fingerprint=fingerprint)
        return Elsewhere(forward, Clock(), node="pvetest", own_fingerprint=lambda: "OWN", cross_over=no_websocket)

    def test_another_node_known_call_or_not(self):
        endpoint = Endpoint(apitoken="", host="192.0.2.2", port=8017, fingerprint=PRINT)
        expected = Destination(name="node 'pveb'", endpoint=endpoint, is_node=True)
        for known in (True, False):
            self.assertEqual(self.elsewhere().find(path("nodes/pveb/qemu/100/mtunnel"), known=known), expected)

    def test_ours(self):
        for text in ("nodes/pvetest/storage", "nodes/localhost/storage", "nodes/unknown/storage", "version"):
            self.assertIsNone(self.elsewhere().find(path(text), known=True))

    def test_api_gets_what_we_do_not_know(self):
        found = self.elsewhere().find(path("nodes/pvetest/qemu"), known=False)
        self.assertEqual(found.endpoint, Endpoint(apitoken="", host="127.0.0.1", port=8006, fingerprint="OWN"))
        self.assertFalse(found.is_node)
        named = self.elsewhere(fingerprint=PRINT).find(path("access"), known=False)
        self.assertEqual(named.endpoint.fingerprint, PRINT)

    def test_nobody(self):
        self.assertIsNone(self.elsewhere(api=None).find(path("access"), known=False))
        for other in ((), ("",), ("api2", "extjs", "access"), ("pve2",), ("api2",)):
            self.assertIsNone(self.elsewhere().find(other, known=False))


class CredentialTests(SynchronousTestCase):
    def test_token_goes_as_it_came(self):
        for text in (TOKEN, "PVEAPIToken mig@pve!t1=a;x", "PVEAPIToken=mig%40pve%21t1=s"):
            self.assertEqual(read_authorization(request(authorization=text)), text)

    def test_what_is_none(self):
        for text in (None, "", "Basic x", "PVEAPIToken="):
            given = request(authorization=text) if text is not None else request()
            error = self.assertRaises(Unauthenticated, read_authorization, given)
            self.assertEqual(error.text, "No ticket")
        for text in (
            "PVEAPIToken=mig@pve=s",
            "PVEAPIToken=mig@pve!t1=",
            "PVEAPIToken=x",
            "PVEAPIToken=mig@pve!t1=\xe9",
        ):
            error = self.assertRaises(Unauthenticated, read_authorization, request(authorization=text))
            self.assertEqual(error.text, "Authentication failed!")

    def test_hops(self):
        self.assertEqual(count_hops(request()), 0)
        self.assertEqual(count_hops(request(x_mtunnel_hops="1")), 1)
        for text in ("2", "9", "-1", "01", "x", "1" * 5000):
            self.assertRaises(LoopDetected, count_hops, request(x_mtunnel_hops=text))


class StandIn(Elsewhere):
    """Passes nothing on: says what would be, or what it was told to."""

    reply = None

    async def answer(self, request, destination, gone):
        read_authorization(request)
        if self.reply is not None:
            return self.reply
        raise Unreachable(f"to {destination.name}")


class FakePlace:
    is_trusted = False

    def trust(self, token=""):
        self.is_trusted = True

    def rest(self, end):
        """It may end for another's sake."""

    def work(self):
        """A request comes in."""


class ApiTests(ApiCase):
    """In which order the API decides."""

    def parts(self) -> Parts:
        self.elsewhere = StandIn(
            Forward(api="https://127.0.0.1:8006", nodes=NODES),
            self.clock,
            node="pvetest",
            own_fingerprint=lambda: "OWN",
            cross_over=no_websocket,
        )
        return replace(super().parts(), elsewhere=self.elsewhere)

    def passed_on(self, target, reply, *headers, token="unknown", peer="192.168.1.1"):
        """A connection on which a request was passed on, and its place."""
        self.elsewhere.reply = reply
        wire = self.wire()
        wire.transport.place = FakePlace()
        wire.transport.peerAddr = IPv4Address("TCP", peer, 54321)
        wire.write(self.raw("GET", f"/api2/json{target}", token=token, headers=headers))
        return wire, wire.transport.place

    def test_foreign_token_is_theirs_to_judge(self):
        for target in ("/access/roles", "/nodes/pveb/storage"):
            response = self.ask("GET", target, token="unknown")
            self.assertTrue(response.line.startswith("HTTP/1.1 502 to "), response.line)

    def test_our_own_calls_want_ours(self):
        wire = self.wire()
        wire.write(self.raw("GET", "/api2/json/version", token="unknown"))
        self.assertTrue(wire.silent())
        self.clock.advance(3)
        self.assertEqual(wire.response().line, "HTTP/1.1 401 Authentication failed!")

    def test_no_token_waits_three_seconds(self):
        wire = self.wire()
        wire.write(self.raw("GET", "/api2/json/access/roles", token=None))
        self.assertTrue(wire.silent())
        self.clock.advance(3)
        self.assertEqual(wire.response().line, "HTTP/1.1 401 No ticket")

    def test_login_that_fails_there_fails_here(self):
        """Else whoever guesses at a node's tokens does it in the name of the daemon in between."""
        for target in ("/nodes/pveb/storage", "/access/roles"):
            with capturedLogs() as events:
                wire, place = self.passed_on(target, Reply(status=401, reason="Authentication failed!"))
                self.assertTrue(wire.silent())
                self.clock.advance(3)
            self.assertEqual(wire.response().line, "HTTP/1.1 401 Authentication failed!")
            self.assertIn("failed login from 192.168.1.1", "".join(map(formatEvent, events)))
            self.assertFalse(place.is_trusted)

    def test_bad_ticket_there_is_no_failed_login(self):
        with capturedLogs() as events:
            self.passed_on("/nodes/pveb/x", Reply(status=401, reason="permission denied - invalid PVETUNNEL ticket"))
        self.assertNotIn("failed login", "".join(map(formatEvent, events)))

    def test_whom_another_node_trusts(self):
        """A token that only it knows; an answer of the API may need none."""
        for target, status, trusted in (
            ("/nodes/pveb/storage", 200, True),
            ("/nodes/pveb/storage", 503, False),
            ("/access/domains", 200, False),
        ):
            _, place = self.passed_on(target, Reply(status=status, reason="so"))
            self.assertEqual(place.is_trusted, trusted, (target, status))

    def test_neighbour_counts_those_it_passes_on(self):
        for peer, headers, counted in (
            ("192.0.2.2", ("X-Mtunnel-Hops: 1",), False),
            ("192.0.2.2", (), True),
            ("192.0.2.9", ("X-Mtunnel-Hops: 1",), True),
        ):
            with capturedLogs() as events:
                self.passed_on("/version", None, *headers, peer=peer)
            self.assertEqual("failed login" in "".join(map(formatEvent, events)), counted, (peer, headers))

    def test_unknown_node_is_refused_by_us(self):
        response = self.ask("GET", "/nodes/unknown/storage")
        self.assert_parameters(response, node="node needs to be 'localhost' or local hostname 'pvetest'")


class AnswerTests(SynchronousTestCase):
    """What is refused before anything leaves."""

    def refusal(self, given, uri=b"/api2/json/nodes/pveb/x"):
        elsewhere = FindTests().elsewhere()
        given.uri, given.method = uri, b"GET"
        destination = elsewhere.find(path("nodes/pveb/x"), known=False)
        return self.failureResultOf(Deferred.fromCoroutine(elsewhere.answer(given, destination, Deferred()))).value

    def test_websocket_that_is_refused(self):
        error = self.refusal(request(authorization=TOKEN, upgrade="websocket"))
        self.assertEqual((type(error), error.text), (Unreachable, "nobody there"))

    def test_loop(self):
        self.assertIsInstance(self.refusal(request(authorization=TOKEN, x_mtunnel_hops="2")), LoopDetected)

    def test_uri_that_could_name_another_host(self):
        for uri in (b"@evil.example/api2/json", b"http://evil.example/", b"*"):
            self.assertEqual(self.refusal(request(authorization=TOKEN), uri).text, "only paths are passed on")
