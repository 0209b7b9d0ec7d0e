"""Streams to a target: whom they trust, what a refusal says, and our own server at the other end."""

import random
import socket
import threading
from pathlib import Path
from tempfile import mkdtemp

import treq
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.client import ResponseNeverReceived
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from mtunnel_tx.errors import BackendFailed, TunnelError, Unauthenticated, Unreachable
from mtunnel_tx.http import client
from mtunnel_tx.http.client import NotReached, open_stream, pinned_agent
from mtunnel_tx.http.handshake import check_handshake
from mtunnel_tx.http.upgrade import upgrade
from mtunnel_tx.pve.maps import Endpoint
from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.stream.pump import Pump
from mtunnel_tx.stream.unixside import dial
from mtunnel_tx.tls.pinning import SOMEWHERE, host_header
from mtunnel_tx.tls.protocol import TlsContext, TlsFactory, fingerprint
from tests.http.test_upgrade import FakeRoute
from tests.patience import patience_s
from tests.stream.scene import MIB, read_all, read_exactly
from tests.tls.test_tls import write_pair

TOKEN = "PVEAPIToken=mig@pve!t1=11111111-2222-3333-4444-555555555555"
PATH = "/api2/json/nodes/x/qemu/100/mtunnelwebsocket?socket=%2Frun%2Fx&ticket=A%2BB%3D&"


class Target(Resource):
    """Upgrades what has the right path and token, and says what else it got."""

    def __init__(self, case):
        super().__init__()
        self.case = case

    def getChild(self, path, request):
        return self

    def render_GET(self, request):
        case = self.case
        case.requests.append((request.uri.decode(), request.getHeader("authorization"), request.getHeader("host")))
        if request.uri == b"/plain":
            return b"hello"
        Deferred.fromCoroutine(self.answer(request))
        return NOT_DONE_YET

    async def answer(self, request):
        case = self.case
        try:
            if case.refusal:
                raise case.refusal
            handshake = check_handshake(request)
            local = await dial(reactor, case.route.file)
            relaying = {"relay": case.relay, "limits": FlowLimits(), "reactor": reactor}
            await upgrade(request, handshake, local, case.route, **relaying)
        except TunnelError as error:
            request.setResponseCode(error.status, error.text.encode("latin-1"))
            request.write(b"and a body")
            request.finish()


class Streams(TestCase):
    def setUp(self):
        folder = Path(mkdtemp(dir="/tmp"))
        self.addCleanup(lambda: [path.unlink() for path in folder.iterdir()] and folder.rmdir())
        self.requests, self.refusal = [], None
        self.route = FakeRoute(folder / "100.storage")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.route.file))
        self.listener.listen()
        self.listener.settimeout(patience_s())
        self.relay = Pump(reactor)
        certificate, key = write_pair(folder, "localhost")
        self.fingerprint = fingerprint(certificate.read_bytes())
        self.factory = TlsFactory(TlsContext(certificate, key), Site(Target(self)), reactor)
        self.port = reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.ours, self.far = socket.socketpair()
        self.far.settimeout(patience_s())

    async def tearDown(self):
        self.listener.close()
        self.far.close()
        self.ours.close()
        await self.relay.stop()
        await self.port.stopListening()

    def endpoint(self, **changes):
        known = {"host": "127.0.0.1", "port": self.port.getHost().port, "fingerprint": self.fingerprint}
        return Endpoint(apitoken=TOKEN, **{**known, **changes})

    def open(self, **changes):
        return open_stream(reactor, self.endpoint(**changes), PATH, self.ours, relay=self.relay)

    async def assert_refused(self, kind, text, **changes):
        try:
            await self.open(**changes)
        except kind as error:
            self.assertIn(text, error.text)
        else:
            self.fail("it was opened")
        self.assertEqual(self.far.recv(1), b"")

    async def test_both_ways_to_our_own_server(self):
        flow = await self.open()
        payload = random.randbytes(4 * MIB)

        def play():
            local, _ = self.listener.accept()
            local.settimeout(patience_s())
            thread = threading.Thread(target=lambda: (self.far.sendall(payload), self.far.shutdown(socket.SHUT_WR)))
            thread.start()
            got = read_all(local)
            thread.join()
            local.sendall(payload[:1000])
            local.close()
            return got, read_exactly(self.far, 1000), self.far.recv(1)

        got, back, end = await deferToThread(play)
        self.assertEqual((got == payload, back, end), (True, payload[:1000], b""))
        self.assertTrue(await flow.ended())
        outcome = await flow.done
        self.assertEqual((outcome.bytes_out, outcome.bytes_in, outcome.orderly), (len(payload), 1000, True))
        uri, token, host = self.requests[0]
        self.assertEqual((uri, token), (PATH, TOKEN))
        self.assertEqual(host, f"127.0.0.1:{self.port.getHost().port}")

    async def test_abort_is_no_end_in_order(self):
        flow = await self.open()
        local, _ = await deferToThread(self.listener.accept)
        local.settimeout(patience_s())
        flow.abort()
        self.assertFalse(await flow.ended())
        self.assertEqual(await deferToThread(local.recv, 1), b"")
        local.close()
        self.assertIn(False, self.route.said)

    async def test_no_descriptor_is_left_for_the_connection(self):
        """The last step may fail, too: then the local socket is closed as after any other failure."""

        async def refuse(transport, opening, leftover):
            transport.abortConnection()
            raise ConnectionLost("no descriptor is left for the connection")

        self.patch(client, "take_over", refuse)
        await self.assert_refused(Unreachable, "the target closed the connection")

    async def test_another_certificate(self):
        await self.assert_refused(Unreachable, "TLS", fingerprint="AA:" * 31 + "AA")
        self.assertEqual(self.requests, [])

    async def test_without_a_fingerprint_the_cas_decide(self):
        await self.assert_refused(Unreachable, "TLS", fingerprint=None)
        self.assertEqual(self.requests, [])

    async def test_fingerprint_in_small_letters(self):
        flow = await self.open(fingerprint=self.fingerprint.lower())
        flow.abort()
        await flow.ended()

    async def test_refusals_carry_the_status_text(self):
        for refusal, kind, text in (
            (Unauthenticated("permission denied - invalid PVETUNNEL ticket"), Unauthenticated, "401 permission denied"),
            (TunnelError("storage 'x' is gone"), BackendFailed, "500 storage 'x' is gone"),
            (Unreachable("b\xe4d"), BackendFailed, "502 b\xe4d"),
        ):
            self.refusal = refusal
            await self.assert_refused(kind, text)
            self.ours, self.far = socket.socketpair()

    async def test_nobody_listens(self):
        with socket.create_server(("127.0.0.1", 0)) as closed:
            number = closed.getsockname()[1]
        await self.assert_refused(NotReached, "cannot connect", port=number)

    async def test_target_that_closes_in_the_handshake(self):
        class Rude(Protocol):
            def connectionMade(self):
                self.transport.loseConnection()

        port = reactor.listenTCP(0, Factory.forProtocol(Rude), interface="127.0.0.1")
        try:
            await self.assert_refused(NotReached, "", port=port.getHost().port)
        finally:
            await port.stopListening()

    async def test_answers_that_are_none(self):
        class Odd(Protocol):
            def dataReceived(self, data):
                self.transport.write(self.factory.answer)

        long = b"9" * 5000
        ended = b'{"data": {"verdict": "rolled back", "reason": "its disk is full", "orderly": false}}'
        gone = b"HTTP/1.1 410 Gone\r\nContent-Length: %d\r\n\r\n%b" % (len(ended), ended)
        for answer, text in (
            (b"hello\r\n\r\n", "answer"),
            (b"HTTP/1.1 101 Yes\r\n\r\n", "answer"),
            (b"HTTP/1.1 \xff\xfe\r\n\r\n", "answer"),
            (b"x" * 70000, "answer"),
            (b"HTTP/1.1 " + long + b" No\r\n\r\n", "cannot be read"),
            (b"HTTP/1.1 410 Gone\r\nContent-Length: " + long + b"\r\n\r\n" + b" " * 40000, "has ended the flow"),
            (gone, "has ended the flow: rolled back (its disk is full)"),
        ):
            factory = Factory.forProtocol(Odd)
            factory.answer = answer
            folder = Path(self.mktemp())
            folder.mkdir(parents=True)
            context = TlsContext(*write_pair(folder))
            print_ = fingerprint((folder / "node.pem").read_bytes())
            port = reactor.listenTCP(0, TlsFactory(context, factory, reactor), interface="127.0.0.1")
            try:
                await self.assert_refused(BackendFailed, text, port=port.getHost().port, fingerprint=print_)
            finally:
                await port.stopListening()
            self.ours, self.far = socket.socketpair()

    async def test_agent(self):
        await self.assert_hello(self.endpoint())

    async def assert_hello(self, endpoint):
        client, headers = HTTPClient(pinned_agent(reactor, endpoint)), {"Host": host_header(endpoint)}
        response = await client.get(f"{SOMEWHERE}/plain", headers=headers, unbuffered=True)
        self.assertEqual(await treq.content(response), b"hello")

    async def test_agent_and_an_address_of_ipv6(self):
        port = reactor.listenTCP(0, self.factory, interface="::1")
        try:
            endpoint = self.endpoint(host="::1", port=port.getHost().port)
            self.assertEqual(host_header(endpoint), f"[::1]:{endpoint.port}")
            await self.assert_hello(endpoint)
        finally:
            await port.stopListening()

    async def test_agent_and_another_certificate(self):
        for wrong in ("AA:" * 31 + "AA", None):
            try:
                await HTTPClient(pinned_agent(reactor, self.endpoint(fingerprint=wrong))).get(f"{SOMEWHERE}/plain")
            except ResponseNeverReceived:
                continue
            self.fail("it was trusted")
        self.assertEqual(self.requests, [])
