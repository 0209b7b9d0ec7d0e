"""Readers that are slow, or read nothing: memory is bounded, and only a stall ends a stream."""

import contextlib
import socket
import threading
import time

from tests.patience import patience_s
from tests.stream.scene import MIB, Scenes, in_thread, read_exactly, waiting_bytes


class Slowness(Scenes):
    """See the module."""

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
            plain.settimeout(patience_s())
        raise AssertionError("it takes everything")

    @in_thread
    def test_unix_side_that_does_not_read(self):
        scene = self.scene(small=True)
        frame = scene.peer.raw(0x82, bytes(65536), mask=bytes(4))
        taken = self.fill(scene.peer.sock, frame)
        # The rest lies in our memory, and a little in TCP's buffers, which are small here.
        self.assertLess(taken - waiting_bytes(scene.local), 2 * MIB)
        self.assertEqual(scene.closed, [])
        before = scene.flow.bytes_in
        read_exactly(scene.local, before)

    @in_thread
    def test_peer_that_does_not_read(self):
        scene = self.scene(small=True)
        scene.local.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.assertLess(self.fill(scene.local, bytes(65536)), 2 * MIB)
        got = scene.peer.payload(scene.flow.bytes_out)
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
        scene.local.settimeout(patience_s())
        scene.peer.data(b"y")
        self.assertEqual(read_exactly(scene.local, 1), b"y")

    @in_thread
    def test_a_slow_reader_is_no_stall(self):
        scene = self.scene(small=True, limits={"stall_s": patience_s(0.6)})
        pause_s = patience_s(0.2)
        thread = threading.Thread(target=lambda: scene.peer.data(bytes(8 * MIB)))
        thread.start()
        got = 0
        for _ in range(8):
            got += len(read_exactly(scene.local, MIB))
            time.sleep(pause_s)
        thread.join()
        self.assertEqual((got, scene.closed), (8 * MIB, []))
