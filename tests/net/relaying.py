"""What every relay must do, on real sockets and real TLS; `RelayTests` is mixed into one TestCase per relay.

A scenario is a plain function that runs in a thread and blocks as it likes: it plays both the websocket's peer and the
UNIX side, and neither knows anything of our code.
"""

import contextlib
import fcntl
import hashlib
import os
import random
import socket
import ssl
import struct
import tempfile
import termios
import threading
import time
from pathlib import Path

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread, deferToThread
from wsproto import frame_protocol as theirs

from mtunnel_tx.net.certificate import make_certificate
from mtunnel_tx.net.link import Link, Terms
from mtunnel_tx.net.peer import Peer
from mtunnel_tx.net.stream import StreamLimits
from mtunnel_tx.net.tls import new_context
from mtunnel_tx.wire.frames import Role, unmask_bytes

PATIENCE_S = 10
MIB = 1 << 20
CERTIFICATE = make_certificate("testnode")


def server_context():
    context = new_context()
    with tempfile.TemporaryDirectory() as folder:
        for name, data in (("cert", CERTIFICATE.certificate), ("key", CERTIFICATE.key)):
            Path(folder, name).write_bytes(data)
        context.use_certificate_file(f"{folder}/cert")
        context.use_privatekey_file(f"{folder}/key")
    return context


SERVER_CONTEXT = server_context()


def client_context():
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.settimeout(PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


class TlsSocket:
    """TLS for a blocking peer that reads in one thread and writes in another (an SSLSocket allows only one)."""

    def __init__(self, sock):
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_context().wrap_bio(self.incoming, self.outgoing)
        self.lock = threading.Lock()
        self.sending = threading.Lock()

    def do(self, action, *args):
        """Returns: its result, None: it needs more from the network; and what is to be sent."""
        with self.lock:
            try:
                result = action(*args)
            except ssl.SSLWantReadError:
                result = None
            return result, self.outgoing.read()

    def handshake(self):
        while True:
            result, data = self.do(lambda: self.tls.do_handshake() or True)
            self.sock.sendall(data)
            if result:
                return
            self.incoming.write(self.sock.recv(65536))

    def take_tickets(self):
        """Read the session tickets: what is unread when a socket is closed makes it a reset."""
        self.incoming.write(self.sock.recv(65536))
        self.do(self.tls.read, 1)

    def sendall(self, data):
        with self.sending:
            for start in range(0, len(data), 1 << 18):
                _, sealed = self.do(self.tls.write, data[start : start + (1 << 18)])
                self.sock.sendall(sealed)

    def send(self, data):
        """Gives up the whole connection where it times out."""
        self.sendall(data)
        return len(data)

    def recv(self, size):
        while True:
            try:
                data, sealed = self.do(self.tls.read, size)
            except ssl.SSLZeroReturnError:
                return b""
            if sealed:
                self.sock.sendall(sealed)
            if data is not None:
                return data
            received = self.sock.recv(1 << 18)
            if not received:
                raise ssl.SSLEOFError("end of file without close_notify")
            with self.lock:
                self.incoming.write(received)

    def __getattr__(self, name):
        return getattr(self.sock, name)


def shake_hands(ours, far):
    """TLS on a socket pair: our connection on memory BIOs, and the peer's TlsSocket."""
    connection = SSL.Connection(SERVER_CONTEXT, None)
    connection.set_accept_state()
    peer = TlsSocket(far)
    thread = threading.Thread(target=peer.handshake)
    thread.start()
    done = False
    while not done:
        try:
            connection.do_handshake()
            done = True
        except SSL.WantReadError:
            pass
        with contextlib.suppress(SSL.WantReadError):
            while True:
                ours.sendall(connection.bio_read(65536))
        if not done:
            connection.bio_write(ours.recv(65536))
    thread.join()
    peer.take_tickets()
    return connection, peer


class Party:
    """A blocking websocket peer."""

    def __init__(self, sock, client=True):
        self.sock = sock
        self.frames = theirs.FrameProtocol(client=client, extensions=[])
        self.client = client
        self.received = []

    def send(self, data):
        self.sock.sendall(data)

    def data(self, payload, fin=True):
        self.send(self.frames.send_data(payload, fin=fin))

    def close(self, code=1000):
        self.send(self.frames.close(code))

    def raw(self, first, payload=b"", mask=b"\x01\x02\x03\x04", length=None):
        size = len(payload) if length is None else length
        bit = 0x80 if mask else 0
        if size < 126:
            head = bytes([first, bit | size])
        elif size < 65536:
            head = bytes([first, bit | 126]) + struct.pack(">H", size)
        else:
            head = bytes([first, bit | 127]) + struct.pack(">Q", size)
        return head + (mask or b"") + unmask_bytes(payload, mask)

    def events(self):
        """All frames up to the end of the connection, as (opcode, payload); `reset` where it was cut."""
        events = []
        try:
            while data := self.sock.recv(1 << 18):
                self.frames.receive_bytes(data)
                events += [(frame.opcode, frame.payload) for frame in self.frames.received_frames()]
            events.append(("eof", b""))
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            events.append(("eof", b""))
        except ConnectionResetError:
            events.append(("reset", b""))
        return events

    def frame(self):
        """The next frame."""
        while not self.received:
            data = self.sock.recv(1 << 18)
            if not data:
                raise EOFError
            self.frames.receive_bytes(data)
            self.received += [(frame.opcode, frame.payload) for frame in self.frames.received_frames()]
        return self.received.pop(0)

    def payload(self, size):
        data = b""
        while len(data) < size:
            opcode, payload = self.frame()
            assert opcode in (theirs.Opcode.BINARY, theirs.Opcode.TEXT), opcode
            data += payload
        return data

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def codes(events):
    return [payload[0] if payload else None for opcode, payload in events if opcode is theirs.Opcode.CLOSE]


def joined(events):
    return b"".join(bytes(payload) for opcode, payload in events if opcode in (theirs.Opcode.BINARY,))


def read_all(sock):
    data = b""
    while piece := sock.recv(1 << 18):
        data += piece
    return data


def read_exactly(sock, size):
    data = b""
    while len(data) < size:
        piece = sock.recv(min(1 << 18, size - len(data)))
        if not piece:
            raise EOFError(len(data))
        data += piece
    return data


def waiting_bytes(sock):
    """What a socket could receive now."""
    return struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))[0]


class Scene:
    """One running stream: `peer` (a Party), `local` (the UNIX side's other end), `closed` (what the route was told)."""

    def __init__(self, case, *, tls, role=Role.SERVER, early=b"", small=False, hold=None, **terms):
        ours, near = tcp_pair()
        if small:
            for sock in (ours, near):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection = None
        if tls:
            connection, near = shake_hands(ours, near)
        local, self.local = socket.socketpair(socket.AF_UNIX)
        self.local.settimeout(PATIENCE_S)
        self.peer = Party(near, client=role is Role.SERVER)
        self.closed = []
        self.open_at_close = []
        self.limits = StreamLimits(**{"half_close_s": 5, "stall_s": 30, "linger_s": 5, **terms.pop("limits", {})})

        async def closed(orderly):
            self.closed.append(orderly)
            self.open_at_close.append(local.fileno() >= 0)
            if hold is not None:
                await hold()

        ours.setblocking(False)
        self.link = Link(case.relays, local, Terms(role=role, limits=self.limits, closed=closed, **terms))
        self._ended = threading.Event()
        self.link.done.addCallback(self._end)
        peer = Peer(ours, connection, early)
        blockingCallFromThread(reactor, self.link.start, peer)

    def _end(self, outcome):
        self._outcome = outcome
        self._ended.set()
        return outcome

    def outcome(self):
        assert self._ended.wait(PATIENCE_S), "the stream does not end"
        return self._outcome

    def finish(self):
        self.peer.sock.close()
        self.local.close()
        blockingCallFromThread(reactor, self.link.abort)
        self.outcome()


def in_thread(function):
    """Run a scenario in a thread, with the relay at work in the reactor."""

    def run(self):
        return deferToThread(function, self)

    run.__name__ = function.__name__
    return run


class RelayTests:
    """Mix into a TestCase whose setUp makes `self.relays`; `tls` says which transport."""

    tls = True

    def scene(self, **options):
        scene = Scene(self, **{"tls": self.tls, **options})
        self.scenes = [*getattr(self, "scenes", []), scene]
        return scene

    def tearDown(self):
        def finish():
            for scene in getattr(self, "scenes", []):
                scene.finish()

        done: Deferred = deferToThread(finish)
        return done.addCallback(lambda _: Deferred.fromCoroutine(self.relays.stop()))

    # Bytes

    @in_thread
    def test_both_ways(self):
        scene = self.scene()
        scene.peer.data(b"hello")
        self.assertEqual(read_exactly(scene.local, 5), b"hello")
        scene.local.sendall(b"world")
        self.assertEqual(scene.peer.payload(5), b"world")
        self.assertEqual((scene.link.bytes_in, scene.link.bytes_out), (5, 5))

    @in_thread
    def test_random_frames_in_random_pieces_come_through_unchanged(self):
        seed = random.randrange(1 << 30)
        chance = random.Random(seed)
        scene = self.scene()
        wire, sent = [], hashlib.sha256()
        for _ in range(120):
            size = chance.choice([0, 1, 125, 126, 127, 4095, 4096, 65535, 65536, 131072, chance.randrange(300_000)])
            payload = chance.randbytes(size)
            sent.update(payload)
            if chance.random() < 0.2:
                zero = bytes([0x82, 0xFF]) + struct.pack(">Q", size) + bytes(4) + payload
                wire.append(zero if size > 65535 else scene.peer.frames.send_data(payload))
            elif chance.random() < 0.3:
                cut = chance.randrange(size + 1)
                wire += [
                    scene.peer.frames.send_data(payload[:cut], fin=False),
                    scene.peer.frames.ping(b"inside"),
                    scene.peer.frames.send_data(payload[cut:], fin=True),
                ]
            else:
                wire.append(scene.peer.frames.send_data(payload))
        wire.append(scene.peer.frames.close(1000))
        data, position = b"".join(wire), 0

        def send():
            nonlocal position
            while position < len(data):
                size = chance.choice([1, 7, 1000, 20_000, 200_000])
                scene.peer.send(data[position : position + size])
                position += size

        thread = threading.Thread(target=send)
        thread.start()
        got = read_all(scene.local)
        thread.join()
        self.assertEqual(hashlib.sha256(got).hexdigest(), sent.hexdigest(), f"seed {seed}")
        scene.local.close()
        self.assertEqual(codes(scene.peer.events()), [1000])
        self.assertEqual(scene.outcome().bytes_in, len(got))
        self.assertTrue(scene.outcome().orderly)

    @in_thread
    def test_much_in_both_ways_at_once(self):
        scene = self.scene()
        payload = random.randbytes(8 * MIB)
        thread = threading.Thread(
            target=lambda: [scene.peer.data(payload[i : i + MIB // 8]) for i in range(0, len(payload), MIB // 8)]
        )
        writer = threading.Thread(target=lambda: scene.local.sendall(payload))
        reader = threading.Thread(target=lambda: got.append(read_exactly(scene.local, len(payload))))
        got = []
        for one in (thread, writer, reader):
            one.start()
        self.assertEqual(scene.peer.payload(len(payload)), payload)
        for one in (thread, writer, reader):
            one.join(PATIENCE_S)
        self.assertEqual(got, [payload])

    @in_thread
    def test_frames_to_the_peer_are_small_enough_for_proxmox(self):
        scene = self.scene()
        payload = random.randbytes(MIB)
        threading.Thread(target=lambda: scene.local.sendall(payload)).start()
        sizes, got = [], b""
        while len(got) < len(payload):
            _opcode, piece = scene.peer.frame()
            sizes.append(len(piece))
            got += piece
        self.assertEqual(got, payload)
        self.assertLessEqual(max(sizes), 131072)

    @in_thread
    def test_client_role(self):
        scene = self.scene(role=Role.CLIENT)
        scene.local.sendall(b"x" * 200_000)
        self.assertEqual(scene.peer.payload(200_000), b"x" * 200_000)
        scene.peer.data(b"unmasked" * 30_000)
        self.assertEqual(read_exactly(scene.local, 240_000), b"unmasked" * 30_000)
        scene.local.shutdown(socket.SHUT_WR)
        self.assertEqual(scene.peer.frame()[0], theirs.Opcode.CLOSE)
        scene.peer.close()
        self.assertEqual(read_all(scene.local), b"")
        self.assertTrue(scene.outcome().orderly)

    @in_thread
    def test_client_refuses_masked_frames(self):
        scene = self.scene(role=Role.CLIENT)
        scene.peer.send(scene.peer.raw(0x82, b"masked"))
        self.assertEqual(codes(scene.peer.events()), [1002])

    @in_thread
    def test_leftover_of_the_handshake_comes_first(self):
        whole = theirs.FrameProtocol(client=True, extensions=[]).send_data(b"first, " * 60_000)
        for cut in (1, 2, 7, 14, 1000, len(whole)):
            scene = self.scene(early=whole[:cut])
            scene.peer.send(whole[cut:])
            scene.peer.data(b"second")
            self.assertEqual(read_exactly(scene.local, 420_006), b"first, " * 60_000 + b"second")

    # Control frames

    @in_thread
    def test_ping_under_load(self):
        scene = self.scene()
        payload = bytes(100_000)
        for number in range(30):
            scene.peer.data(payload)
            scene.peer.send(scene.peer.frames.ping(b"%d" % number))
            read_exactly(scene.local, len(payload))
            scene.local.sendall(b"=")
            frames = sorted([scene.peer.frame(), scene.peer.frame()], key=lambda frame: frame[0])
            self.assertEqual(frames, [(theirs.Opcode.BINARY, b"="), (theirs.Opcode.PONG, b"%d" % number)])

    @in_thread
    def test_flood_of_pings_from_a_peer_that_reads_nothing(self):
        scene = self.scene(small=True)
        ping = scene.peer.frames.ping(b"p" * 125) * 2000
        for _ in range(40):
            scene.peer.send(ping)
        scene.peer.data(b"done")
        self.assertEqual(read_exactly(scene.local, 4), b"done")

    @in_thread
    def test_pong_is_ignored(self):
        scene = self.scene()
        scene.peer.send(scene.peer.frames.pong(b"unasked"))
        scene.peer.data(b"x")
        self.assertEqual(read_exactly(scene.local, 1), b"x")

    # Violations

    @in_thread
    def test_violations_get_their_code(self):
        good = Party(None).raw(0x82, b"good")
        raw = Party(None).raw
        for code, data in (
            (1002, raw(0x82, b"x", mask=None)),
            (1002, raw(0xC2, b"x")),
            (1002, raw(0x83, b"x")),
            (1002, raw(0x8B, b"x")),
            (1002, raw(0x09, b"x")),
            (1002, raw(0x89, b"x" * 126)),
            (1002, raw(0x80, b"x")),
            (1002, raw(0x02, b"x") + raw(0x82, b"y")),
            (1002, raw(0x88, b"x")),
            (1002, raw(0x88, struct.pack(">H", 1005))),
            (1007, raw(0x88, b"\x03\xe8\xff\xff")),
            (1009, raw(0x82, length=(64 << 20) + 1)),
        ):
            scene = self.scene()
            scene.peer.send(good + data)
            events = scene.peer.events()
            self.assertEqual(codes(events), [code], data[:16])
            self.assertEqual(events[-1][0], "eof")
            self.assertTrue(read_all(scene.local).startswith(b"good"))
            scene.peer.sock.close()
            self.assertFalse(scene.outcome().orderly)
            self.assertEqual(scene.closed, [False])

    @in_thread
    def test_violation_by_a_peer_that_does_not_stop_sending(self):
        scene = self.scene()
        scene.peer.send(scene.peer.raw(0x83, b"x"))
        rubbish, stop = bytes(65536), threading.Event()

        def flood():
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    scene.peer.send(rubbish)

        thread = threading.Thread(target=flood)
        thread.start()
        self.assertEqual(codes([scene.peer.frame()]), [1002])
        stop.set()
        scene.peer.sock.close()
        thread.join()
        self.assertFalse(scene.outcome().orderly)

    @in_thread
    def test_declared_length_at_the_limit(self):
        scene = self.scene(limits={"frame_bytes": 1000})
        scene.peer.send(scene.peer.raw(0x82, bytes(1000)))
        self.assertEqual(len(read_exactly(scene.local, 1000)), 1000)
        scene.peer.send(scene.peer.raw(0x82, bytes(1001)))
        self.assertEqual(codes(scene.peer.events()), [1009])

    # Ends in order

    @in_thread
    def test_every_byte_before_the_end_and_then_the_end(self):
        scene = self.scene()
        payload = random.randbytes(4 * MIB)

        def send():
            for start in range(0, len(payload), 65536):
                scene.peer.data(payload[start : start + 65536])
            scene.peer.close(1000)

        thread = threading.Thread(target=send)
        thread.start()
        self.assertEqual(read_all(scene.local), payload)
        thread.join()
        scene.local.sendall(b"the other way is still up")
        self.assertEqual(scene.peer.payload(25), b"the other way is still up")
        self.assertEqual(scene.closed, [])
        scene.local.close()
        self.assertEqual(codes(scene.peer.events()), [1000])
        self.assertEqual(scene.outcome().orderly, True)
        self.assertEqual((scene.closed, scene.open_at_close), ([True], [False]))

    @in_thread
    def test_close_frame_and_gone(self):
        """Proxmox's helper drops the connection right after its Close frame."""
        for gone in ("close", "reset"):
            scene = self.scene()
            payload = random.randbytes(3 * MIB)
            done = threading.Event()

            def send(scene=scene, payload=payload, done=done, gone=gone):
                scene.peer.data(payload)
                scene.peer.close(1000)
                if gone == "reset":
                    done.wait(PATIENCE_S)
                    scene.peer.reset()
                else:
                    scene.peer.sock.close()

            thread = threading.Thread(target=send)
            thread.start()
            got = read_exactly(scene.local, len(payload))
            done.set()
            thread.join()
            scene.local.sendall(b"a reply that nobody reads")
            self.assertEqual(got + read_all(scene.local), payload)
            scene.local.close()
            self.assertTrue(scene.outcome().orderly, gone)
            self.assertEqual(scene.closed, [True])

    @in_thread
    def test_close_behind_data_that_the_unix_side_has_not_read_yet(self):
        scene = self.scene()
        payload = random.randbytes(6 * MIB)
        thread = threading.Thread(
            target=lambda: (scene.peer.data(payload), scene.peer.close(), scene.peer.sock.close())
        )
        thread.start()
        first = read_exactly(scene.local, 1000)
        self.assertEqual(hashlib.sha256(first + read_all(scene.local)).digest(), hashlib.sha256(payload).digest())
        thread.join()
        scene.local.close()
        self.assertTrue(scene.outcome().orderly)

    @in_thread
    def test_end_of_the_unix_side(self):
        scene = self.scene()
        payload = random.randbytes(4 * MIB)
        thread = threading.Thread(target=lambda: (scene.local.sendall(payload), scene.local.shutdown(socket.SHUT_WR)))
        thread.start()
        self.assertEqual(scene.peer.payload(len(payload)), payload)
        self.assertEqual(codes([scene.peer.frame()]), [1000])
        scene.peer.data(b"more from the peer")
        self.assertEqual(read_exactly(scene.local, 18), b"more from the peer")
        scene.peer.close()
        self.assertEqual(read_all(scene.local), b"")
        self.assertEqual(scene.peer.events(), [("eof", b"")])
        self.assertTrue(scene.outcome().orderly)
        thread.join()

    @in_thread
    def test_after_our_close_the_end_of_the_connection_is_in_order(self):
        scene = self.scene()
        scene.local.shutdown(socket.SHUT_WR)
        self.assertEqual(codes([scene.peer.frame()]), [1000])
        scene.peer.sock.close()
        self.assertEqual(read_all(scene.local), b"")
        self.assertTrue(scene.outcome().orderly)

    @in_thread
    def test_close_statuses_are_answered(self):
        for sent, got in ((1000, 1000), (1001, 1001), (3000, 3000), (4999, 4999), (None, None)):
            scene = self.scene()
            scene.peer.send(scene.peer.raw(0x88, b"" if sent is None else struct.pack(">H", sent)))
            self.assertEqual(read_all(scene.local), b"")
            scene.local.close()
            events = scene.peer.events()
            self.assertEqual([code if code != 1005 else None for code in codes(events)], [got])
            scene.peer.sock.close()
            self.assertTrue(scene.outcome().orderly)

    @in_thread
    def test_a_peer_that_says_it_failed(self):
        scene = self.scene()
        scene.peer.data(b"half")
        scene.peer.close(1011)
        self.assertEqual(read_all(scene.local), b"half")
        self.assertEqual(codes(scene.peer.events()), [1011])
        self.assertFalse(scene.outcome().orderly)

    @in_thread
    def test_half_close_by_the_peer_has_a_limit(self):
        scene = self.scene(limits={"half_close_s": 0.3})
        scene.peer.close()
        self.assertEqual(read_all(scene.local), b"")
        self.assertEqual(codes(scene.peer.events()), [1000])
        self.assertTrue(scene.outcome().orderly)

    @in_thread
    def test_half_close_by_the_unix_side_has_a_limit(self):
        scene = self.scene(limits={"half_close_s": 0.3})
        scene.local.shutdown(socket.SHUT_WR)
        self.assertEqual(codes([scene.peer.frame()]), [1000])
        self.assertEqual(read_all(scene.local), b"")
        self.assertFalse(scene.outcome().orderly)

    @in_thread
    def test_end_of_qemu_ends_both_ways(self):
        scene = self.scene(ends_with_local=True)
        scene.local.sendall(b"last words")
        scene.local.shutdown(socket.SHUT_WR)
        events = scene.peer.events()
        self.assertEqual((joined(events), codes(events), events[-1][0]), (b"last words", [1000], "eof"))
        self.assertEqual(read_all(scene.local), b"")
        self.assertTrue(scene.outcome().orderly)

    # Aborts

    @in_thread
    def test_connection_ends_without_a_close_frame(self):
        for how in ("fin", "reset"):
            gate = threading.Event()
            scene = self.scene(hold=lambda gate=gate: deferToThread(gate.wait, PATIENCE_S))
            scene.peer.data(b"arrived")
            if how == "reset":
                self.assertEqual(read_exactly(scene.local, 7), b"arrived")
                scene.peer.reset()
                arrived = b""
            else:
                scene.peer.sock.close()
                arrived = b"arrived"
            self.assertEqual(read_exactly(scene.local, len(arrived)), arrived)
            # The route is told first, and only when it is done with that does the UNIX side see the end.
            scene.local.settimeout(0.1)
            self.assertRaises(TimeoutError, scene.local.recv, 1)
            self.assertEqual((scene.closed, scene.open_at_close), ([False], [True]))
            gate.set()
            scene.local.settimeout(PATIENCE_S)
            self.assertEqual(scene.local.recv(1), b"")
            self.assertFalse(scene.outcome().orderly)

    @in_thread
    def test_fin_in_the_middle_of_a_frame(self):
        scene = self.scene()
        scene.peer.send(scene.peer.raw(0x82, b"half", length=1000))
        scene.peer.sock.close()
        self.assertEqual(read_all(scene.local), b"half")
        self.assertFalse(scene.outcome().orderly)

    @in_thread
    def test_unix_side_closed_under_unread_bytes(self):
        scene = self.scene()
        scene.local.sendall(b"what it said before")
        self.assertEqual(scene.peer.payload(19), b"what it said before")
        scene.peer.data(b"x")
        read_exactly(scene.local, 1)
        scene.peer.data(b"nobody reads this")
        # Wait until it lies in the socket, then close under it.
        scene.local.recv(1, socket.MSG_PEEK)
        scene.local.close()
        events = scene.peer.events()
        self.assertEqual(codes(events), [])
        self.assertFalse(scene.outcome().orderly)
        self.assertEqual(scene.closed, [False])

    @in_thread
    def test_unix_side_gone_while_we_write(self):
        scene = self.scene()
        stop = threading.Event()

        def send():
            with contextlib.suppress(OSError):
                for _ in range(200):
                    scene.peer.data(bytes(MIB // 8))

        thread = threading.Thread(target=send)
        thread.start()
        read_exactly(scene.local, 1000)
        scene.local.close()
        stop.set()
        self.assertFalse(scene.outcome().orderly)
        thread.join()

    @in_thread
    def test_abort_from_the_reactor(self):
        scene = self.scene()
        scene.peer.data(b"x")
        read_exactly(scene.local, 1)
        blockingCallFromThread(reactor, scene.link.abort)
        self.assertEqual(read_all(scene.local), b"")
        self.assertFalse(scene.outcome().orderly)
        self.assertEqual(scene.closed, [False])
        self.assertIn(scene.peer.events()[-1][0], ("reset", "eof"))

    @in_thread
    def test_abort_before_the_start(self):
        local, far = socket.socketpair()
        far.settimeout(PATIENCE_S)
        link = Link(self.relays, local, Terms())
        link.abort()
        ours, near = tcp_pair()
        ours.setblocking(False)
        blockingCallFromThread(reactor, link.start, Peer(ours))
        self.assertEqual(read_all(far), b"")
        near.close()
        far.close()

    @in_thread
    def test_rubbish_instead_of_tls(self):
        if not self.tls:
            return
        scene = self.scene()
        scene.peer.data(b"good")
        self.assertEqual(read_exactly(scene.local, 4), b"good")
        plain = socket.socket(fileno=os.dup(scene.peer.sock.fileno()))
        plain.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        self.assertEqual(read_all(scene.local), b"")
        plain.close()
        self.assertFalse(scene.outcome().orderly)

    # Slow readers

    def fill(self, sock, data):
        """Send `data` again and again until nothing has been taken for a second; returns how much was."""
        plain = getattr(sock, "sock", sock)
        plain.settimeout(1)
        sent = 0
        try:
            while sent < 64 * MIB:
                sealed = sock.do(sock.tls.write, data)[1] if plain is not sock else data
                while sealed:
                    taken = plain.send(sealed)
                    sent, sealed = sent + taken, sealed[taken:]
        except TimeoutError:
            return sent
        finally:
            plain.settimeout(PATIENCE_S)
        raise AssertionError("it takes everything")

    @in_thread
    def test_unix_side_that_does_not_read(self):
        scene = self.scene(small=True)
        frame = scene.peer.raw(0x82, bytes(65536), mask=bytes(4))
        taken = self.fill(scene.peer.sock, frame)
        # The rest lies in our memory, and a little in TCP's buffers, which are small here.
        self.assertLess(taken - waiting_bytes(scene.local), 2 * MIB)
        self.assertEqual(scene.closed, [])
        before = scene.link.bytes_in
        read_exactly(scene.local, before)

    @in_thread
    def test_peer_that_does_not_read(self):
        scene = self.scene(small=True)
        scene.local.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.assertLess(self.fill(scene.local, bytes(65536)), 2 * MIB)
        got = scene.peer.payload(scene.link.bytes_out)
        self.assertFalse(any(got))

    @in_thread
    def test_stall_of_the_unix_side(self):
        scene = self.scene(small=True, limits={"stall_s": 0.5})
        with contextlib.suppress(OSError):
            self.fill(scene.peer.sock, scene.peer.raw(0x82, bytes(65536), mask=bytes(4)))
        self.assertIn("UNIX side takes no bytes", scene.outcome().reason)
        self.assertEqual(scene.closed, [False])

    @in_thread
    def test_stall_of_the_peer(self):
        scene = self.scene(small=True, limits={"stall_s": 0.5})
        with contextlib.suppress(OSError):
            self.fill(scene.local, bytes(65536))
        self.assertIn("peer takes no bytes", scene.outcome().reason)

    @in_thread
    def test_silence_is_no_stall(self):
        scene = self.scene(limits={"stall_s": 0.2, "half_close_s": 0.2, "linger_s": 0.2})
        scene.peer.data(b"x")
        read_exactly(scene.local, 1)
        scene.local.settimeout(0.8)
        self.assertRaises(TimeoutError, scene.local.recv, 1)
        scene.local.settimeout(PATIENCE_S)
        scene.peer.data(b"y")
        self.assertEqual(read_exactly(scene.local, 1), b"y")

    @in_thread
    def test_a_slow_reader_is_no_stall(self):
        scene = self.scene(small=True, limits={"stall_s": 0.6})
        thread = threading.Thread(target=lambda: scene.peer.data(bytes(8 * MIB)))
        thread.start()
        got = 0
        for _ in range(8):
            got += len(read_exactly(scene.local, MIB))
            time.sleep(0.2)
        thread.join()
        self.assertEqual((got, scene.closed), (8 * MIB, []))

    # Limits

    @in_thread
    def test_rate(self):
        scene = self.scene(limits={"rate_bytes_s": 4 * MIB})
        start = time.monotonic()
        thread = threading.Thread(target=lambda: [scene.peer.data(bytes(65536)) for _ in range(64)])
        thread.start()
        read_exactly(scene.local, 4 * MIB)
        took_s = time.monotonic() - start
        thread.join()
        self.assertGreater(took_s, 0.7)
        self.assertLess(took_s, 3)

    @in_thread
    def test_many_streams(self):
        scenes = [self.scene() for _ in range(12)]
        payload = random.randbytes(MIB)
        threads = [threading.Thread(target=lambda s=scene: (s.peer.data(payload), s.peer.close())) for scene in scenes]
        for thread in threads:
            thread.start()
        for scene in scenes:
            self.assertEqual(read_all(scene.local), payload)
            scene.local.close()
        for scene, thread in zip(scenes, threads, strict=True):
            thread.join()
            self.assertTrue(scene.outcome().orderly)
