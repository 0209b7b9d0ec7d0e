"""What a relay carries, and how fast."""

import hashlib
import random
import socket
import struct
import threading
import time

from wsproto import frame_protocol as theirs

from mtunnel_tx.wire.frames import Role
from tests.patience import patience_s, wait_for
from tests.stream.scene import MIB, Scenes, codes, in_thread, read_all, read_exactly


class Bytes(Scenes):
    """See the module."""

    @in_thread
    def test_both_ways(self):
        scene = self.scene()
        scene.peer.data(b"hello")
        self.assertEqual(read_exactly(scene.local, 5), b"hello")
        scene.local.sendall(b"world")
        self.assertEqual(scene.peer.payload(5), b"world")
        # The pump counts after it has sent.
        wait_for("the count", lambda: (scene.flow.bytes_in, scene.flow.bytes_out) == (5, 5))

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
            one.join(patience_s())
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


class Limits(Scenes):
    """See the module."""

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
        self.assertLess(took_s, patience_s(3))

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
