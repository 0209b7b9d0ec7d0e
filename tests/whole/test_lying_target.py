"""A target that is hostile to its source: `mtunnel migrate` ends in time, with one line, and takes no memory for it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import re
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.leaks import memory_bytes
from tests.patience import patience_s
from tests.processes import started_process
from tests.whole.node import Node
from tests.whole.peer import tls_context
from tests.whole.test_outages import make_disk

MOST_MEMORY_BYTES = 300 << 20
PAUSE_S = 0.004
"""16 MiB a second: where only time ends it, what is kept is seen, and tests beside it have a processor too."""
OFFER = "1; id=AAAAAAAAAAAAAAAAAAAAAA; key=KEY; window={window}; park={park}"
Attack = Callable[[ssl.SSLSocket, bytes], object]


class LyingTarget(threading.Thread):
    """Passes everything on to a node, but for requests with `word` in their first line: they get the attack."""

    def __init__(self, node: Node, word: bytes, attack: Attack) -> None:
        super().__init__(daemon=True)
        self._node, self._word, self._attack = node, word, attack
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(node.state / "tls" / "certificate.pem", node.state / "tls" / "key.pem")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.attacked = 0
        self.start()

    def run(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(sock, server_side=True) as near,
            tls_context().wrap_socket(self._node.connect()) as far,
        ):
            self._pass_on(near, far)

    def _pass_on(self, near: ssl.SSLSocket, far: ssl.SSLSocket) -> None:
        """Both ways in one thread: OpenSSL's connections are not made for two."""
        while True:
            for sock in [sock for sock in (near, far) if sock.pending()] or select.select([near, far], [], [])[0]:
                data = receive_now(sock)
                if data == b"":
                    (far if sock is near else near).unwrap()
                    return
                if sock is near and data and self._word in data.partition(b"\r\n")[0]:
                    self.attacked += 1
                    far.close()
                    self._attack(near, data)
                    return
                (far if sock is near else near).sendall(data or b"")


def receive_now(sock: ssl.SSLSocket) -> bytes | None:
    """Returns: None: what came was for TLS itself."""
    sock.setblocking(False)
    try:
        return sock.recv(65536)
    except ssl.SSLWantReadError:
        return None
    finally:
        sock.setblocking(True)


def says(*pieces: bytes, for_ever: bytes = b"") -> Attack:
    """Says this, and then the last of it until nobody hears it."""

    def attack(sock: ssl.SSLSocket, _request: bytes) -> None:
        for piece in itertools.chain(pieces, itertools.repeat(for_ever) if for_ever else ()):
            sock.sendall(piece)
            time.sleep(PAUSE_S)
        while not for_ever and sock.recv(65536):
            pass

    return attack


def frame(first: int, payload: bytes) -> bytes:
    return bytes([first, 127]) + len(payload).to_bytes(8, "big") + payload


def upgrades(*pieces: bytes, offer: str = "", for_ever: bytes = b"", ends: bool = False) -> Attack:
    """Becomes a websocket, and then says this."""

    def attack(sock: ssl.SSLSocket, request: bytes) -> None:
        key = re.search(rb"(?i)sec-websocket-key: *(\S+)", request)
        assert key is not None, request
        made = hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        head = "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: binary\r\n"
        head += f"Sec-WebSocket-Accept: {base64.b64encode(made).decode()}\r\n"
        head += f"Mtunnel-Resume: {offer}\r\n" if offer else ""
        sock.sendall(head.encode() + b"\r\n")
        if not ends:
            says(*pieces, for_ever=for_ever)(sock, b"")

    return attack


OPEN, WEBSOCKET = b"/mtunnel HTTP", b"mtunnelwebsocket"
JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class LyingTargetTests(SynchronousTestCase):
    vmid = 200

    def setUp(self) -> None:
        self.here, self.there = Node("here"), Node("there").start()
        for node in (self.here, self.there):
            self.addCleanup(node.close)
        make_disk(self.here, 1 << 20)

    def migrate(self, word: bytes, attack: Attack, quiet_s: float = 60.0) -> str:
        """Move a VM there. Returns: what was said last."""
        self.vmid += 1
        target = LyingTarget(self.there, word, attack)
        endpoint = self.there.endpoint.replace(f"port={self.there.port}", f"port={target.port}")
        argv = [sys.executable, "-m", "mtunnel_tx.cli", "migrate", "100", endpoint, "--target-storage", "local"]
        argv += ["--target-vmid", str(self.vmid)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running = started_process(self.addCleanup, argv, env=self.here.environ, **pipes)
        largest, over = [0], threading.Event()

        def watch() -> None:
            while not over.wait(0.05):
                with contextlib.suppress(OSError, IndexError, ValueError):
                    largest[0] = max(largest[0], memory_bytes(running.pid))

        threading.Thread(target=watch, daemon=True).start()
        try:
            out, err = running.communicate(timeout=patience_s(quiet_s))
        finally:
            over.set()
        said = f"{out}{err}"
        self.assertGreater(target.attacked, 0, said)
        self.assertEqual(running.returncode, 1, said)
        self.assertNotIn("Traceback", said)
        self.assertLess(max(map(len, said.splitlines())), 1000, said[:3000])
        self.assertLess(largest[0], MOST_MEMORY_BYTES, said)
        self.assertNotIn("lock", self.here.guest(100) or "lock")
        return said

    def test_one_header_without_end(self) -> None:
        self.migrate(OPEN, says(b"HTTP/1.1 200 OK\r\nX: ", for_ever=b"a" * 65536))

    def test_a_length_of_many_digits(self) -> None:
        self.migrate(OPEN, says(JSON + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", for_ever=b" " * 65536))

    def test_brackets_in_brackets(self) -> None:
        body = b'{"data":' + b"[" * 200_000
        self.migrate(OPEN, says(JSON + b"Content-Length: %d\r\n\r\n" % len(body) + body))

    def test_answers_that_go_on(self) -> None:
        self.migrate(OPEN, says(for_ever=b"HTTP/1.1 100 Continue\r\n\r\n" * 20))

    def test_a_line_without_end(self) -> None:
        self.migrate(WEBSOCKET, upgrades(for_ever=frame(0x82, b"x" * 65536)))

    def test_replies_without_end(self) -> None:
        self.migrate(WEBSOCKET, upgrades(for_ever=frame(0x82, b'{"success":true}\n' * 4000)))

    def test_a_frame_of_2_to_the_62_bytes(self) -> None:
        self.migrate(WEBSOCKET, upgrades(b"\x82\x7f" + (1 << 62).to_bytes(8, "big"), for_ever=b"x" * 65536))

    def test_pings_without_end(self) -> None:
        """Each is answered, and no command is."""
        self.migrate(WEBSOCKET, upgrades(for_ever=b"\x89\x04ping" * 200), 120)

    def test_positions_that_were_never_sent(self) -> None:
        offer = OFFER.format(window=1 << 24, park=600)
        for record in (b"a 99999999999999999999", b"e 7", b"x " + b"\x1b[2J" * 20):
            head = bytes([0x81, len(record)])
            self.migrate(WEBSOCKET, upgrades(head + record, offer=offer))

    def test_a_record_within_a_message(self) -> None:
        offer = OFFER.format(window=1 << 24, park=600)
        self.migrate(WEBSOCKET, upgrades(b"\x02\x01{", b"\x81\x03a 0", offer=offer))

    def test_an_offer_that_is_none(self) -> None:
        for window, park in ((1 << 60, 600), (1 << 24, "1e300"), ("9" * 5000, 600)):
            self.migrate(WEBSOCKET, upgrades(offer=OFFER.format(window=window, park=park), ends=True))
