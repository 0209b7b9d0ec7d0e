"""Ends in order: every byte, then the end, then the other way."""

import hashlib
import random
import socket
import struct
import threading

from tests.patience import patience_s
from tests.stream.scene import MIB, Scenes, codes, in_thread, joined, read_all, read_exactly


class Ends(Scenes):
    """See the module."""

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
                    done.wait(patience_s())
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
