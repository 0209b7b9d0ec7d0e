"""The websocket's requests, the limits of a request, replies; over real sockets too."""

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, serverFromString
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mtunnel_tx.errors import BackendFailed, TunnelError, WrongState
from mtunnel_tx.http.replies import reason_phrase
from mtunnel_tx.stream.peer import flush
from tests.http.apicase import NODE, ApiCase

UNDEFINED = "property is not defined in schema and the schema does not allow additional properties"
MISSING = "property is missing and it is not optional"
CONFLICT = "duplicate parameter (already defined in URI) with conflicting values!"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
WEBSOCKET = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")


class WebsocketTests(ApiCase):
    def get(self, query="socket=%2Frun%2Fqemu-server%2F300.mtunnel&ticket=good", vmid=300, **more):
        return self.ask("GET", f"/nodes/localhost/qemu/{vmid}/mtunnelwebsocket?{query}", **more)

    def test_without_upgrade(self):
        self.assertEqual(self.get().json, {"data": {"socket": "/run/qemu-server/300.mtunnel"}})

    def test_a_trailing_ampersand(self):
        self.assertEqual(self.get("ticket=good&socket=x&").data, {"socket": "x"})

    def test_with_upgrade(self):
        wire = self.wire()
        path = "/api2/json/nodes/localhost/qemu/300/mtunnelwebsocket?socket=x&ticket=good&"
        wire.write(self.raw("GET", path, headers=WEBSOCKET))
        self.assertTrue(wire.silent())
        ((request, handshake, route),) = self.upgraded
        self.assertEqual((route.vmid, route.token), (300, "mig@pve!t1"))
        self.assertIs(request.channel, wire.channel)
        self.assertEqual((handshake.key, handshake.protocol), (KEY, None))
        self.assertTrue(handshake.answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n"))

    def test_missing_parameters(self):
        self.assert_parameters(self.get("socket=x"), ticket=MISSING)
        self.assert_parameters(self.get(""), ticket=MISSING, socket=MISSING)

    def test_no_config_is_told_before_the_ticket_is_looked_at(self):
        text = f"Configuration file 'nodes/{NODE}/qemu-server/399.conf' does not exist"
        self.assert_error(self.get("socket=x&ticket=bad", 399), f"500 {text}")

    def test_a_bad_ticket_waits(self):
        wire = self.wire()
        path = "/api2/json/nodes/localhost/qemu/300/mtunnelwebsocket?socket=x&ticket=bad"
        wire.write(self.raw("GET", path, headers=WEBSOCKET))
        self.clock.advance(2.9)
        self.assertTrue(wire.silent())
        self.clock.advance(0.2)
        self.assert_error(wire.response(), "401 permission denied - invalid PVETUNNEL ticket")
        self.assertEqual(self.upgraded, [])

    def refused(self, *headers):
        response = self.get(headers=headers)
        self.assertEqual(self.upgraded, [])
        self.assertEqual(response.body.decode(), response.line.partition(" 500 ")[2])
        return response.line

    def test_version_key_protocol(self):
        upgrade, _, version, key = WEBSOCKET
        old = "Sec-WebSocket-Version: 8"
        self.assertEqual(self.refused(upgrade, old, key), "HTTP/1.1 500 unsupported websocket-version '8'")
        self.assertEqual(self.refused(upgrade, key), "HTTP/1.1 500 unsupported websocket-version ''")
        self.assertEqual(self.refused(upgrade, version), "HTTP/1.1 500 missing websocket-key")
        self.assertEqual(self.refused("Upgrade: h2c", version, key), "HTTP/1.1 500 unable to upgrade to protocol 'h2c'")

    def test_a_second_command_connection(self):
        self.upgrade_failure = WrongState("the tunnel has its command connection already")
        response = self.get(headers=WEBSOCKET)
        self.assert_error(response, "409 the tunnel has its command connection already")

    def test_nobody_listens(self):
        self.upgrade_failure = BackendFailed("can't connect to '300.mtunnel'")
        self.assert_error(self.get(headers=WEBSOCKET), "502 can't connect to '300.mtunnel'")

    def test_a_client_that_leaves_during_the_upgrade(self):
        self.upgrade_failure = ConnectionLost()
        wire = self.wire()
        wire.write(
            self.raw(
                "GET", "/api2/json/nodes/localhost/qemu/300/mtunnelwebsocket?socket=x&ticket=good", headers=WEBSOCKET
            )
        )
        wire.hang_up()
        self.assertTrue(wire.silent())

    def test_vmid_and_node_are_checked(self):
        self.assert_parameters(self.get(vmid="abc"), vmid="type check ('integer') failed - got 'abc'")
        path = "/nodes/other/qemu/300/mtunnelwebsocket?socket=x&ticket=good"
        self.assertEqual(list(self.ask("GET", path).json["errors"]), ["node"])

    def test_a_key_given_in_the_query_too(self):
        self.assert_parameters(self.get("socket=x&ticket=good&vmid=301"), vmid=CONFLICT)

    def test_digest(self):
        path = "/nodes/localhost/qemu/300/mtunneldigest"
        good = self.ask("GET", f"{path}?volume=local:300/vm-300-disk-0.raw")
        self.assertEqual(good.json, {"data": {"sha256": "ab" * 32}})
        content = self.ask("GET", f"{path}?volume=local:300/vm-300-disk-0.raw&content=1")
        self.assertEqual(content.json, {"data": {"sha256": "cd" * 32}})
        text = "volume 'local:1' is not of a live tunnel of yours"
        self.assert_error(self.ask("GET", f"{path}?volume=local:1"), f"500 {text}")
        self.assert_parameters(self.ask("GET", path), volume=MISSING)


class LimitTests(ApiCase):
    def test_a_body_that_says_it_is_too_large(self):
        wire = self.wire()
        wire.write(b"POST /api2/json/version HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1048577\r\n\r\n")
        self.assertEqual(wire.response().line, "HTTP/1.1 413 Request Entity Too Large")
        wire.write(b"x" * 1_048_577)
        self.assertTrue(wire.silent())
        self.clock.advance(2)
        self.assertTrue(wire.transport.disconnecting)

    def test_the_largest_body(self):
        response = self.post(body=b"foo=" + b"x" * (self.limits.body_bytes - 4))
        self.assert_parameters(response, foo=UNDEFINED)

    def test_a_body_in_chunks_that_is_too_large(self):
        wire = self.wire()
        wire.write(self.raw("POST", "/api2/json/version", headers=["Transfer-Encoding: chunked"]))
        for _ in range(17):
            wire.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
        self.assertEqual(wire.response().line, "HTTP/1.1 413 Request Entity Too Large")
        wire.write(b"0\r\n\r\n" + self.raw("GET", "/api2/json/version"))
        self.assertTrue(wire.silent())

    def test_a_body_in_chunks(self):
        wire = self.wire()
        path = "/api2/json/nodes/localhost/qemu/300/mtunnel"
        wire.write(self.raw("POST", path, headers=["Transfer-Encoding: chunked"]) + b"5\r\nfoo=1\r\n0\r\n\r\n")
        self.assert_parameters(wire.response(), foo=UNDEFINED)

    def test_what_follows_a_line_that_is_no_request(self):
        wire = self.wire()
        wire.write(b"\x16\x03\x01 hello\r\n")
        self.assertEqual(wire.response().line, "HTTP/1.1 400 Bad Request")
        self.assertTrue(wire.transport.disconnecting)
        for more in (b"\r\n", b"Host: h\r\n\r\n", self.raw("GET", "/api2/json/version")):
            wire.write(more)
        self.assertTrue(wire.silent())

    def test_headers_that_are_too_large(self):
        for head in (
            b"X: " + b"x" * 40_000,
            b"X: " + b"x" * 40_000 + b"\r\n",
            (b"Xy: " + b"z" * 100 + b"\r\n") * 400,
            b"x" * 40_000,
        ):
            wire = self.wire()
            wire.write(b"GET /api2/json/version HTTP/1.1\r\n" + head)
            self.assertEqual(wire.response().line, "HTTP/1.1 431 Request Header Fields Too Large")
            wire.write(b"\r\n\r\n")
            self.assertTrue(wire.silent())
            self.clock.advance(2)
            self.assertTrue(wire.transport.disconnecting)

    def test_large_headers(self):
        response = self.ask("GET", "/version", headers=["X: " + "x" * 30_000])
        self.assertEqual(response.line, "HTTP/1.1 200 OK")

    def test_the_header_limit_is_for_each_request(self):
        wire = self.wire()
        for _ in range(3):
            response = self.ask("GET", "/version", headers=["X: " + "x" * 30_000], wire=wire)
            self.assertEqual(response.line, "HTTP/1.1 200 OK")

    def test_a_request_that_trickles_in(self):
        wire = self.wire()
        for _ in range(29):
            wire.write(b"G")
            self.clock.advance(1)
        self.assertFalse(wire.transport.disconnecting)
        self.clock.advance(1)
        self.assertTrue(wire.transport.disconnecting)

    def test_a_body_that_trickles_in(self):
        wire = self.wire()
        wire.write(self.raw("POST", "/api2/json/version", headers=["Content-Length: 100"]))
        for _ in range(30):
            wire.write(b"x")
            self.clock.advance(1)
        self.assertTrue(wire.transport.disconnecting)

    def test_an_idle_connection_ends(self):
        wire = self.wire()
        self.ask("GET", "/version", wire=wire)
        self.clock.advance(29)
        self.assertFalse(wire.transport.disconnecting)
        self.clock.advance(1)
        self.assertTrue(wire.transport.disconnecting)

    def test_a_next_request_has_its_own_time(self):
        wire = self.wire()
        self.ask("GET", "/version", wire=wire)
        data = self.raw("GET", "/api2/json/version")
        self.clock.advance(29)
        wire.write(data[:10])
        self.clock.advance(29)
        wire.write(data[10:])
        self.assertEqual(wire.response().line, "HTTP/1.1 200 OK")

    def test_a_slow_answer_is_no_idle_connection(self):
        held = Deferred()

        async def slow_open(*_):
            await held
            raise TunnelError("no")

        self.tunnels.open = slow_open
        wire = self.wire()
        wire.write(self.raw("POST", "/api2/json/nodes/localhost/qemu/300/mtunnel", body=b""))
        self.clock.advance(600)
        held.callback(None)
        self.assert_error(wire.response(), "500 no")

    def test_pipelined_requests_are_answered_in_order(self):
        wire = self.wire()
        wire.write(
            self.raw("GET", "/", token=None)
            + self.raw("GET", "/api2/json/version")
            + self.raw("POST", "/api2/json/nodes/localhost/qemu/300/mtunnel", body=b"foo=1")
            + self.raw("GET", "/nowhere")
        )
        self.assertTrue(wire.silent())
        self.clock.advance(3)
        self.assertEqual([wire.response().line[9:12] for _ in range(4)], ["401", "200", "400", "501"])

    def test_http_1_0(self):
        wire = self.wire()
        wire.write(self.raw("GET", "/api2/json/version").replace(b"HTTP/1.1", b"HTTP/1.0"))
        self.assertEqual(wire.response().line, "HTTP/1.0 200 OK")
        self.assertTrue(wire.transport.disconnecting)

    def test_connection_close(self):
        wire = self.wire()
        self.assertEqual(self.ask("GET", "/version", headers=["Connection: close"], wire=wire).line[9:12], "200")
        self.assertTrue(wire.transport.disconnecting)

    def test_nonsense(self):
        for data in (
            b"\x16\x03\x01\x02\x00\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET / HTTP/1.1\r\nbad\r\n\r\n",
        ):
            wire = self.wire()
            wire.write(data)
            self.assertEqual(wire.response().line, "HTTP/1.1 400 Bad Request")
            self.assertTrue(wire.transport.disconnecting)

    def test_a_bug_in_the_resource(self):
        def fail(request):
            raise ZeroDivisionError("secret")

        self.site.resource.render = fail
        response = self.ask("GET", "/version")
        self.assertEqual((response.line, response.body), ("HTTP/1.1 500 internal error", b""))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_only_http_1_1_is_offered(self):
        self.assertEqual(self.site.acceptableProtocols(), [b"http/1.1"])


class ReplyTests(SynchronousTestCase):
    @given(st.text())
    def test_a_reason_is_one_short_line(self, text):
        reason = reason_phrase(text)
        self.assertLessEqual(len(reason), 200)
        self.assertFalse(set(reason) & {*range(32), *range(127, 160)})

    def test_a_reason_is_latin_1(self):
        self.assertEqual(reason_phrase("ü\u4e2d\n"), b"\xfc?")


class Collector(Protocol):
    """Everything until the connection ends."""

    def __init__(self):
        self.data = b""
        self.ended = Deferred()

    def dataReceived(self, data):
        self.data += data

    def connectionLost(self, reason):
        self.ended.callback(self.data)


class RealSocketTests(ApiCase, TestCase):
    async def connect(self):
        port = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(self.site)
        self.addCleanup(port.stopListening)
        peer = await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", port.getHost().port), Collector())
        self.addCleanup(peer.transport.abortConnection)
        return peer

    async def exchange(self, data):
        """What a real connection answers until the other end closes it."""
        peer = await self.connect()
        peer.transport.write(data)
        return await peer.ended

    async def test_a_request(self):
        data = await self.exchange(self.raw("GET", "/api2/json/version", headers=["Connection: close"]))
        self.assertTrue(data.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertEqual(json.loads(data.partition(b"\r\n\r\n")[2])["data"]["release"], "9.2")

    async def test_a_client_that_sends_too_much_gets_its_answer(self):
        head = self.raw("POST", "/api2/json/version", headers=["Content-Length: 8000000"])
        peer = await self.connect()
        await flush(peer.transport, head + b"x" * 8_000_000)
        while not peer.data:
            await deferLater(reactor, 0.01)
        self.clock.advance(2)
        data = await peer.ended
        self.assertTrue(data.startswith(b"HTTP/1.1 413 "), data)
