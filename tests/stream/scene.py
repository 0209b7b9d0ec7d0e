"""One stream between real sockets, with real TLS, and blocking parties at both ends that know nothing of our code.

A scenario is a plain function that runs in a thread (`in_thread`) and blocks as it likes: it plays both the websocket's
peer and the UNIX side.
"""

import contextlib
import fcntl
import queue
import socket
import ssl
import struct
import tempfile
import termios
import threading
from pathlib import Path

from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread, deferToThread
from wsproto import frame_protocol as theirs

from mtunnel_tx.stream.flow import Flow, FlowTerms
from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.tls.certificate import make_certificate
from mtunnel_tx.tls.protocol import new_context
from mtunnel_tx.wire.frames import Role, unmask_bytes
from tests.patience import patience_s

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
        sock.settimeout(patience_s())
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


def shake_hands(ours, far, client=TlsSocket):
    """TLS on a socket pair: our connection on memory BIOs, and the peer's, of the class `client`."""
    connection = SSL.Connection(SERVER_CONTEXT, None)
    connection.set_accept_state()
    peer = client(far)
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


def connect(*, tls, early=b"", small=False, client=TlsSocket):
    """A TCP connection. Returns: our end, as HTTP leaves it, and the blocking peer's."""
    ours, near = tcp_pair()
    if small:
        for sock in (ours, near):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    connection = None
    if tls:
        connection, near = shake_hands(ours, near, client)
    ours.setblocking(False)
    return PeerConnection(ours, connection, early), near


class Scene:
    """One running flow: `peer` (a Party), `local` (the UNIX side's other end), `closed` (what the route was told)."""

    def __init__(self, case, *, tls, role=Role.SERVER, early=b"", small=False, hold=None, client=TlsSocket, **terms):
        peer, near = connect(tls=tls, early=early, small=small, client=client)
        local, self.local = socket.socketpair(socket.AF_UNIX)
        self.local.settimeout(patience_s())
        self.peer = Party(near, client=role is Role.SERVER)
        self.tls = tls
        self.parked = queue.Queue()
        self.closed = []
        self.open_at_close = []
        self.limits = FlowLimits(**{"half_close_s": 5, "stall_s": 30, "linger_s": 5, **terms.pop("limits", {})})

        async def closed(orderly):
            self.closed.append(orderly)
            self.open_at_close.append(local.fileno() >= 0)
            if hold is not None:
                await hold()

        told = {"closed": closed, "parked": self.parked.put}
        self.flow = Flow(case.relay, local, FlowTerms(role=role, limits=self.limits, **told, **terms))
        self._ended = threading.Event()
        self.flow.done.addCallback(self._end)
        blockingCallFromThread(reactor, self.flow.attach, peer)

    def reconnect(self):
        """Let another connection carry the flow. Returns: the former peer."""
        former = self.peer
        peer, near = connect(tls=self.tls)
        self.peer = Party(near, client=former.client)
        blockingCallFromThread(reactor, self.flow.attach, peer)
        return former

    def _end(self, outcome):
        self._outcome = outcome
        self._ended.set()
        return outcome

    def outcome(self):
        assert self._ended.wait(patience_s()), "the flow does not end"
        return self._outcome

    def finish(self):
        self.peer.sock.close()
        self.local.close()
        blockingCallFromThread(reactor, self.flow.abort)
        self.outcome()


def in_thread(function):
    """Run a scenario in a thread, with the relay at work in the reactor."""

    def run(self):
        return deferToThread(function, self)

    run.__name__ = function.__name__
    return run


class Scenes:
    """What all themes need."""

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
        return done.addCallback(lambda _: Deferred.fromCoroutine(self.relay.stop()))
