"""Frames that are no payload, and frames that should not be."""

import contextlib
import struct
import threading

from wsproto import frame_protocol as theirs

from tests.stream.scene import Party, Scenes, codes, in_thread, read_all, read_exactly


class Control(Scenes):
    """See the module."""

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
    def test_silence_is_broken_by_pings_that_need_no_answer(self):
        scene = self.scene(limits={"ping_s": 0.1})
        for _ in range(3):
            self.assertEqual(scene.peer.frame(), (theirs.Opcode.PING, b""))
        scene.local.sendall(b"outward")
        scene.peer.data(b"inward")
        self.assertEqual(read_exactly(scene.local, 6), b"inward")
        opcodes = {opcode for opcode, _ in iter(scene.peer.frame, (theirs.Opcode.BINARY, b"outward"))}
        self.assertLessEqual(opcodes, {theirs.Opcode.PING})

    @in_thread
    def test_no_ping_while_bytes_go_out(self):
        scene = self.scene(limits={"ping_s": 30})
        for number in range(20):
            scene.local.sendall(b"%02d" % number)
            self.assertEqual(scene.peer.frame(), (theirs.Opcode.BINARY, b"%02d" % number))

    @in_thread
    def test_a_peer_that_only_sends_is_silent_the_other_way(self):
        scene = self.scene(limits={"ping_s": 0.1})
        stop = threading.Event()

        def send():
            while not stop.wait(0.01):
                scene.peer.data(b"x" * 1000)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            self.assertEqual(scene.peer.frame()[0], theirs.Opcode.PING)
        finally:
            stop.set()
            sender.join()

    @in_thread
    def test_a_pong_may_lack_its_mask(self):
        scene = self.scene()
        scene.peer.send(scene.peer.raw(0x8A, b"", mask=None) + scene.peer.raw(0x8A, b"abc", mask=None))
        scene.peer.data(b"x")
        self.assertEqual(read_exactly(scene.local, 1), b"x")

    @in_thread
    def test_pong_is_ignored(self):
        scene = self.scene()
        scene.peer.send(scene.peer.frames.pong(b"unasked"))
        scene.peer.data(b"x")
        self.assertEqual(read_exactly(scene.local, 1), b"x")


class Violations(Scenes):
    """See the module."""

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
