"""What TLS has of its own in the middle of a stream: new keys, close_notify, alerts. Nothing happens without TLS."""

import contextlib
import os
import random
import select
import socket
import threading

from mtunnel_tx.stream import native, sides
from tests.patience import patience_s
from tests.stream.openssl import NOT_REQUESTED, REQUESTED, TLS12, TLS13, Lost, Tls
from tests.stream.scene import MIB, Scenes, codes, in_thread, read_all, read_exactly, waiting_bytes


class KeyedSocket:
    """A TLS peer that does what Python's own cannot; for one thread."""

    version = TLS13

    def __init__(self, sock):
        self.sock = sock

    def handshake(self):
        self.tls = Tls(self.sock, self.version)

    def take_tickets(self):
        if self.version == TLS13:
            assert self.wait() and self.tls.receive(1) is None

    def wait(self, wait_s=None):
        return bool(select.select([self.sock], [], [], patience_s() if wait_s is None else wait_s)[0])

    def sendall(self, data):
        data = bytes(data)
        while data:
            data = data[self.tls.send(data) :]
            if data:
                select.select([], [self.sock], [], patience_s())

    def recv(self, size):
        while (data := self.tls.receive(size)) is None:
            if not self.wait():
                raise TimeoutError
        return data

    def close(self):
        self.tls.close()

    def __getattr__(self, name):
        return getattr(self.sock, name)


class OldSocket(KeyedSocket):
    """The same with TLS 1.2, where there is renegotiation."""

    version = TLS12


class TlsThemes(Scenes):
    """See the module."""

    @in_thread
    def test_new_keys_in_the_middle_of_both_ways(self):
        for requested in (NOT_REQUESTED, REQUESTED) if self.tls else ():
            scene = self.scene(client=KeyedSocket)
            payload = random.randbytes(MIB)
            for start in range(0, MIB, 30_000):
                scene.peer.data(payload[start : start + 30_000])
                scene.peer.sock.tls.update_keys(requested)
            self.assertEqual(read_exactly(scene.local, MIB), payload)
            thread = threading.Thread(target=scene.local.sendall, args=[payload])
            thread.start()
            self.assertEqual(scene.peer.payload(MIB), payload)
            thread.join()

    @in_thread
    def test_a_demand_for_new_keys_is_met_before_the_next_byte(self):
        if not self.tls:
            return
        scene = self.scene(client=KeyedSocket)
        tls = scene.peer.sock.tls
        sizes = []
        for demand in (None, NOT_REQUESTED, REQUESTED):
            if demand is not None:
                tls.update_keys(demand)
            scene.peer.data(b"x")
            self.assertEqual(read_exactly(scene.local, 1), b"x")
            scene.local.sendall(b"a reply")
            scene.peer.sock.wait()
            sizes.append(waiting_bytes(scene.peer.sock))
            self.assertEqual(scene.peer.payload(7), b"a reply")
        without, unasked, asked = sizes
        self.assertEqual(unasked, without)
        self.assertGreater(asked, without)

    @in_thread
    def test_a_peer_that_demands_new_keys_and_reads_none(self):
        """Each demand is answered, and the answers would take memory for as long as it goes on."""
        for module in (sides, native):
            self.patch(module, "MOST_UNSENT_BYTES", 4096)
        for window_bytes in (None, MIB) if self.tls else ():
            scene = self.scene(client=KeyedSocket, window_bytes=window_bytes)
            scene.peer.data(b"x")
            self.assertEqual(read_exactly(scene.local, 1), b"x")
            scene.flow.traffic.carrier.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            with contextlib.suppress(Lost):  # the end of a connection of which nothing is read may not be seen
                scene.peer.sock.tls.flood(4 * MIB, patience_s(0.5))
            reason = scene.outcome().reason if window_bytes is None else scene.parked.get(timeout=patience_s())
            self.assertIn(sides.UNREAD, reason)

    @in_thread
    def test_close_notify_without_a_close_frame(self):
        if not self.tls:
            return
        scene = self.scene(client=KeyedSocket)
        scene.peer.data(b"arrived")
        scene.peer.sock.tls.say_end()
        self.assertEqual(read_all(scene.local), b"arrived")
        self.assertFalse(scene.outcome().orderly)
        self.assertIn("close_notify", scene.outcome().reason)
        self.assertEqual(scene.closed, [False])

    @in_thread
    def test_close_notify_behind_a_close_frame(self):
        if not self.tls:
            return
        scene = self.scene(client=KeyedSocket)
        scene.peer.data(b"all")
        scene.peer.close()
        scene.peer.sock.tls.say_end()
        self.assertEqual(read_all(scene.local), b"all")
        scene.local.sendall(b"the other way")
        self.assertEqual(scene.peer.payload(13), b"the other way")
        scene.local.close()
        self.assertEqual(codes([scene.peer.frame()]), [1000])
        self.assertTrue(scene.outcome().orderly)

    @in_thread
    def test_our_own_end_is_told_by_close_notify(self):
        if not self.tls:
            return
        scene = self.scene()
        scene.local.shutdown(socket.SHUT_WR)
        self.assertEqual(codes([scene.peer.frame()]), [1000])
        scene.peer.close()
        # Anything else than a close_notify raises SSLEOFError.
        self.assertEqual(scene.peer.sock.recv(1), b"")

    @in_thread
    def test_renegotiation_is_refused(self):
        if not self.tls:
            return
        scene = self.scene(client=OldSocket)
        scene.peer.data(b"good")
        self.assertEqual(read_exactly(scene.local, 4), b"good")
        scene.peer.sock.tls.renegotiate()
        with self.assertRaises(Lost):
            scene.peer.sock.recv(1)
        scene.peer.sock.close()
        self.assertEqual(read_all(scene.local), b"")
        self.assertFalse(scene.outcome().orderly)

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
