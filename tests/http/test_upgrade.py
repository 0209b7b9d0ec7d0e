"""From HTTP to a stream: refusals, the 101, and that no byte is lost in between, in any split."""

import os
import random
import socket
import threading
from pathlib import Path
from tempfile import mkdtemp

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.threads import blockingCallFromThread, deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site
from wsproto import frame_protocol as theirs

from mtunnel_tx.errors import TunnelError, Unreachable, WrongState
from mtunnel_tx.http.handshake import check_handshake
from mtunnel_tx.http.upgrade import upgrade
from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.stream.pump import Pump
from mtunnel_tx.stream.reactorrelay import ReactorRelay
from mtunnel_tx.stream.unixside import dial
from mtunnel_tx.tls.protocol import TlsContext, TlsFactory
from mtunnel_tx.wire.socketkinds import find_socket_kind
from tests.patience import patience_s
from tests.stream.scene import MIB, TlsSocket, in_thread, read_all
from tests.tls.test_tls import write_pair

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


class FakeRoute:
    """Remembers what it was told."""

    vmid, token = 100, "mig@pve!t1"

    def __init__(self, file):
        self.file = file
        self.kind = find_socket_kind(file.name)
        self.said = []
        self.refuse = False
        self.ended = Deferred()

    def opened(self, stream):
        if self.refuse:
            raise WrongState("there already")
        self.said.append("opened")

    async def closed(self, *, orderly):
        self.said.append(orderly)
        if len(self.said) == 6:
            self.ended.callback(None)


class Upgrades(Resource):
    """Upgrades everything, and waits for nothing it is not told to wait for."""

    def __init__(self, case):
        super().__init__()
        self.case = case

    def getChild(self, path, request):
        return self

    def render_GET(self, request):
        Deferred.fromCoroutine(self.answer(request))
        return NOT_DONE_YET

    async def answer(self, request):
        case = self.case
        try:
            handshake = check_handshake(request)
            await case.before_dial()
            local = await dial(reactor, case.route.file)
            relaying = {"relay": case.relay, "limits": case.limits, "reactor": reactor}
            await upgrade(request, handshake, local, case.route, **relaying)
        except ConnectionLost:
            case.gone.callback(None)
        except TunnelError as error:
            request.setResponseCode(error.status, error.text.encode())
            request.setHeader(b"Content-Length", b"0")
            request.finish()


async def nothing():
    """No delay."""


class UpgradeTests:
    tls = True
    before_dial = staticmethod(nothing)
    limits = FlowLimits(half_close_s=5, linger_s=1)

    def setUp(self):
        folder = Path(mkdtemp(dir="/tmp"))
        self.addCleanup(lambda: [path.unlink() for path in folder.iterdir()] and folder.rmdir())
        self.route = FakeRoute(folder / "100.storage")
        self.gone = Deferred()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.route.file))
        self.listener.listen()
        self.listener.settimeout(patience_s())
        self.relay = self.make_relay()
        context = TlsContext(*write_pair(folder)) if self.tls else None
        self.port = reactor.listenTCP(0, TlsFactory(context, Site(Upgrades(self)), reactor), interface="127.0.0.1")
        self.socks = []

    async def tearDown(self):
        self.listener.close()
        for sock in self.socks:
            sock.close()
        await self.relay.stop()
        await self.port.stopListening()

    def connect(self):
        sock = socket.create_connection(self.port.getHost().host and ("127.0.0.1", self.port.getHost().port))
        sock.settimeout(patience_s())
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socks.append(sock)
        if self.tls:
            sock = TlsSocket(sock)
            sock.handshake()
        return sock

    def request(self, *lines, path=b"/"):
        basic = (b"Host: x", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13")
        return b"\r\n".join((b"GET %b HTTP/1.1" % path, *basic, b"Sec-WebSocket-Key: " + KEY, *lines, b"", b""))

    def accept(self):
        local, _ = self.listener.accept()
        local.settimeout(patience_s())
        self.socks.append(local)
        return local

    def head(self, sock):
        """The head of an answer, and what came behind it."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65536)
            assert piece, data
            data += piece
        return data.split(b"\r\n\r\n", 1)

    @in_thread
    def test_101(self):
        sock = self.connect()
        sock.sendall(
            self.request(b"Sec-WebSocket-Protocol: chat, binary", b"Sec-WebSocket-Extensions: permessage-deflate")
        )
        head, rest = self.head(sock)
        lines = head.split(b"\r\n")
        self.assertEqual(lines[0], b"HTTP/1.1 101 Switching Protocols")
        self.assertIn(b"Sec-WebSocket-Accept: " + ACCEPT, lines)
        self.assertIn(b"Sec-WebSocket-Protocol: binary", lines)
        self.assertNotIn(b"Extensions", head)
        self.assertNotIn(b"Server:", head)
        self.assertEqual(rest, b"")
        self.accept()
        self.assertEqual(self.route.said, ["opened"])

    @in_thread
    def test_protocol_only_if_asked_for(self):
        for line in ((), (b"Sec-WebSocket-Protocol: chat",)):
            sock = self.connect()
            sock.sendall(self.request(*line))
            head, _ = self.head(sock)
            self.assertNotIn(b"Protocol:", head)

    @in_thread
    def test_upgrade_alone_asks_for_it(self):
        """Not all of Proxmox's clients send `Connection`."""
        for line in (b"", b"Connection: keep-alive\r\n", b"Connection: TE, upgrade\r\n"):
            sock = self.connect()
            sock.sendall(self.request().replace(b"Connection: Upgrade\r\n", line))
            head, _ = self.head(sock)
            self.assertIn(b"\r\nConnection: Upgrade", head)
            self.assertIn(b"Sec-WebSocket-Accept: " + ACCEPT, head)
            self.assertTrue(head.startswith(b"HTTP/1.1 101 "), head)

    @in_thread
    def test_refusals_are_plain_http_and_the_connection_goes_on(self):
        sock = self.connect()
        good = self.request()
        for old, new, text in (
            (b"Version: 13", b"Version: 8", b"500 unsupported websocket-version '8'"),
            (b"Sec-WebSocket-Version: 13\r\n", b"", b"500 unsupported websocket-version ''"),
            (b"Sec-WebSocket-Key: " + KEY + b"\r\n", b"", b"500 missing websocket-key"),
            (b"Upgrade: websocket", b"Upgrade: h2c", b"500 unable to upgrade to protocol 'h2c'"),
            (KEY, b"short", b"400 websocket handshake failed: bad Sec-WebSocket-Key"),
        ):
            sock.sendall(good.replace(old, new))
            head, _ = self.head(sock)
            self.assertTrue(head.startswith(b"HTTP/1.1 " + text), head)
        self.assert_nobody_dialled()
        self.route.refuse = True
        sock.sendall(good)
        self.assertTrue(self.head(sock)[0].startswith(b"HTTP/1.1 409 there already"))
        self.assertEqual(self.accept().recv(1), b"")
        self.route.refuse = False
        sock.sendall(good)
        self.assertTrue(self.head(sock)[0].startswith(b"HTTP/1.1 101"))
        self.assertEqual(self.route.said, ["opened"])

    def assert_nobody_dialled(self):
        self.listener.setblocking(False)
        self.assertRaises(BlockingIOError, self.listener.accept)
        self.listener.settimeout(patience_s())

    @in_thread
    def test_nobody_behind_the_socket(self):
        self.listener.close()
        sock = self.connect()
        sock.sendall(self.request())
        self.assertTrue(self.head(sock)[0].startswith(b"HTTP/1.1 502 cannot connect to socket"))

    def check_bytes(self, pieces, payload):
        """Send pieces one by one, expect the payload and an end in order."""
        sock = self.connect()

        def send():
            for piece in pieces:
                sock.sendall(piece)

        thread = threading.Thread(target=send)
        thread.start()
        local = self.accept()
        got = read_all(local)
        thread.join()
        self.assertEqual(got, payload)
        self.assertTrue(self.head(sock)[0].startswith(b"HTTP/1.1 101"))
        local.close()

    @in_thread
    def test_first_frames_in_the_same_segment_in_every_split(self):
        frames = theirs.FrameProtocol(client=True, extensions=[])
        tail = frames.send_data(b"first") + frames.send_data(b"second" * 50) + frames.close(1000)
        data = self.request() + tail
        begin = len(data) - len(tail)
        for cut in (*range(begin - 3, begin + 20), len(data) - 1, len(data)):
            self.check_bytes([data[:cut], data[cut:]] if cut < len(data) else [data], b"first" + b"second" * 50)

    @in_thread
    def test_much_data_right_behind_the_request(self):
        for size in (10_000, 17_000, 100_000, 3 * MIB):
            payload = random.randbytes(size)
            frames = theirs.FrameProtocol(client=True, extensions=[])
            data = self.request() + frames.send_data(payload) + frames.close(1000)
            pieces, position = [], 0
            while position < len(data):
                step = random.choice([1, 100, 16384, 200_000])
                pieces.append(data[position : position + step])
                position += step
            self.check_bytes(pieces if len(pieces) < 500 else [data], payload)

    @in_thread
    def test_much_data_while_the_upgrade_has_to_wait(self):
        gate = Deferred()

        async def wait():
            await gate

        self.before_dial = wait
        frames = theirs.FrameProtocol(client=True, extensions=[])
        payload = random.randbytes(MIB)
        sock = self.connect()
        thread = threading.Thread(
            target=lambda: sock.sendall(self.request() + frames.send_data(payload) + frames.close(1000))
        )
        thread.start()
        reactor.callFromThread(reactor.callLater, 0.3, gate.callback, None)
        local = self.accept()
        self.assertEqual(read_all(local), payload)
        thread.join()

    @in_thread
    def test_bytes_from_the_unix_side_come_right_behind_the_101(self):
        sock = self.connect()
        sock.sendall(self.request())
        local = self.accept()
        local.sendall(b"hello")
        _, rest = self.head(sock)
        while len(rest) < 7:
            rest += sock.recv(100)
        self.assertEqual(rest, b"\x82\x05hello")

    def test_client_that_leaves_before_the_upgrade(self):
        gate = Deferred()

        async def wait():
            await gate

        self.before_dial = wait

        def play():
            sock = self.connect()
            sock.sendall(self.request())
            sock.close()

        # Only then, however long it took: what is left to do is to see the end that is there.
        deferToThread(play).addCallback(lambda _: reactor.callLater(0.3, gate.callback, None))
        return self.gone.addCallback(lambda _: self.assertEqual(self.route.said, []))

    @in_thread
    def test_streams_in_a_row_and_their_ends(self):
        for _ in range(3):
            sock = self.connect()
            sock.sendall(self.request() + theirs.FrameProtocol(client=True, extensions=[]).close(1000))
            self.assertEqual(self.accept().recv(1), b"")
            sock.close()
        self.socks, socks = [], self.socks
        for one in socks:
            one.close()
        blockingCallFromThread(reactor, lambda: self.route.ended)
        self.assertEqual(sorted(self.route.said, key=str), [True] * 3 + ["opened"] * 3)


class TlsPumpUpgrade(UpgradeTests, TestCase):
    def make_relay(self):
        return Pump(reactor)


class PlainPumpUpgrade(UpgradeTests, TestCase):
    tls = False

    def make_relay(self):
        return Pump(reactor)


class RelayUpgrade(UpgradeTests, TestCase):
    def make_relay(self):
        return ReactorRelay(reactor)


class Dialling(TestCase):
    def setUp(self):
        self.folder = Path(self.mktemp())
        self.folder.mkdir(parents=True)

    async def test_missing_and_deaf(self):
        path = self.folder / "none"
        with self.assertRaises(Unreachable):
            await dial(reactor, path)
        with self.assertRaises(Unreachable):
            await dial(reactor, self.folder / "no" / "folder")

    async def test_a_full_backlog_is_waited_for_but_not_for_ever(self):
        path = self.folder / ("x" * 80)  # with its folder longer than a socket address
        listener, waiting = socket.socket(socket.AF_UNIX), []
        self.addCleanup(listener.close)
        folder = os.open(self.folder, os.O_RDONLY)
        self.addCleanup(os.close, folder)
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        listener.listen(0)
        with self.assertRaises(Unreachable):
            while len(waiting) < 5:
                waiting += [await dial(reactor, path.absolute(), 0.2)]
        self.assertTrue(waiting)
        reactor.callLater(0.1, lambda: [listener.accept()[0].close() for _ in waiting])
        (await dial(reactor, path.absolute(), patience_s())).close()
        for sock in waiting:
            sock.close()
