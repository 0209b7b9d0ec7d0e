"""The native module against what it replaces: the same bytes, the same ends, whatever the split."""

import contextlib
import itertools
import socket
import struct
import sys
import threading
from types import ModuleType
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mtunnel_tx.stream.engine import StreamEnded, StreamFailed
from mtunnel_tx.stream.native import SWITCH, NativeSide, find_native
from mtunnel_tx.stream.sides import BLOCK_BYTES, Blocks
from mtunnel_tx.wire.frames import (
    HEADER_ROOM_BYTES,
    SENT_PAYLOAD_BYTES,
    Decoder,
    Event,
    FrameError,
    Opcode,
    Role,
    close_frame,
    frame_header,
    unmask_bytes,
)
from tests.stream.scene import shake_hands, tcp_pair

NATIVE = find_native()
SPAN = struct.Struct("II")
LIMIT = 1 << 26
FRAME_BYTES = HEADER_ROOM_BYTES + SENT_PAYLOAD_BYTES
PAYLOAD = bytes(i * 11 & 0xFF for i in range(150_000))
GATHER = 4096


def raw(first, payload, mask):
    bit = 0x80 if mask else 0
    size = len(payload)
    if size < 126:
        head = bytes([first, bit | size])
    elif size < 65536:
        head = bytes([first, bit | 126]) + struct.pack(">H", size)
    else:
        head = bytes([first, bit | 127]) + struct.pack(">Q", size)
    return head + (mask or b"") + unmask_bytes(payload, mask)


class NativeCase(SynchronousTestCase):
    def setUp(self):
        if NATIVE.module is None:
            raise SkipTest(f"the native module is not there: {NATIVE.reason}")


def pure(pieces, role):
    """Everything that the pure decoder finds: payload joined, other events in order with what came before them."""
    decoder, payload, found = Decoder(role, LIMIT), b"", []
    for piece in pieces:
        position = 0
        while position < len(piece):
            position = decoder.step(piece, position, len(piece))
            if decoder.event is Event.PAYLOAD:
                payload += unmask_bytes(piece[decoder.begin : position], decoder.mask)
            elif decoder.event is not Event.NOTHING:
                found.append((decoder.event, decoder.control, len(payload)))
    return payload, found


def native(pieces, role):
    """The same with the native module in front of the pure decoder."""
    decoder, payload, found = Decoder(role, LIMIT), b"", []
    for piece in pieces:
        block, position, spans, count = bytearray(piece), 0, bytearray(SPAN.size * 128), 0
        gathered = []
        while position < len(block):
            if decoder.is_usual:
                position, left, key, _, count = NATIVE.module.decode(
                    block, position, len(block), decoder.left_bytes, decoder.key, role is Role.SERVER, True, LIMIT,
                    GATHER, spans, count,
                )  # fmt: skip
                decoder.go_on(left, key)
                if position == len(block):
                    break
            # What the decoder is asked for comes behind all that the module has found.
            gathered, count = take(block, spans, count, gathered), 0
            begin = position
            position = decoder.step(block, begin, len(block))
            if decoder.event is Event.PAYLOAD:
                gathered.append(unmask_bytes(bytes(block[decoder.begin : position]), decoder.mask))
            elif decoder.event is not Event.NOTHING:
                found.append((decoder.event, decoder.control, len(payload) + sum(map(len, gathered))))
        payload += b"".join(take(block, spans, count, gathered))
    return payload, found


def take(block, spans, count, gathered):
    return gathered + [bytes(block[b:e]) for b, e in itertools.islice(SPAN.iter_unpack(spans), count)]


def outcome(decode, pieces, role):
    try:
        return decode(pieces, role)
    except FrameError as error:
        return error.code


def split(data, cuts):
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


FRAMES = st.lists(
    st.tuples(
        st.sampled_from([0x82, 0x82, 0x82, 0x81, 0x89, 0x8A, 0x02, 0x00, 0x80, 0x88]),
        st.one_of(st.integers(0, 300), st.sampled_from([4095, 4096, 65535, 65536, 131072])),
        st.sampled_from([b"\0\0\0\0", b"\x11\x22\x33\x44", b"\xff\0\1\x80"]),
    ),
    max_size=12,
)


class DecodeTests(NativeCase):
    @given(frames=FRAMES, cuts=st.lists(st.integers(0, 1 << 19), max_size=8), server=st.booleans())
    @settings(deadline=None, max_examples=150)
    def test_as_the_pure_decoder(self, frames, cuts, server):
        role = Role.SERVER if server else Role.CLIENT
        data = b"".join(
            raw(first, bytes(i & 0xFF for i in range(size if first < 0x88 else size % 126)), mask if server else None)
            for first, size, mask in frames
            if first != 0x88 or size
        )
        pieces = split(data, cuts)
        self.assertEqual(outcome(native, pieces, role), outcome(pure, pieces, role))

    @given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=4), server=st.booleans())
    @settings(deadline=None, max_examples=300)
    def test_rubbish_as_the_pure_decoder(self, data, cuts, server):
        role = Role.SERVER if server else Role.CLIENT
        pieces = split(data, cuts)
        self.assertEqual(outcome(native, pieces, role), outcome(pure, pieces, role))

    def test_no_room_for_a_span_stops_before_the_payload(self):
        data = bytearray(raw(0x82, b"a" * 5000, b"\1\2\3\4") * 3)
        spans = bytearray(SPAN.size * 2)
        position, left, _, payload, count = NATIVE.module.decode(
            data, 0, len(data), 0, bytes(4), True, True, LIMIT, GATHER, spans, 0
        )
        self.assertEqual((payload, count, left), (10000, 2, 5000))
        position, left, _, payload, count = NATIVE.module.decode(
            data, position, len(data), left, b"\1\2\3\4", True, True, LIMIT, GATHER, spans, 0
        )
        self.assertEqual((position, left, payload), (len(data), 0, 5000))
        self.assertEqual(data[-5000:], b"a" * 5000)

    def test_bad_arguments_are_errors(self):
        decode = NATIVE.module.decode
        good = [bytearray(10), 0, 10, 0, bytes(4), True, True, LIMIT, GATHER, bytearray(80), 0]
        for index, value in [(0, b"const"), (1, 11), (1, -1), (2, 11), (3, -1), (4, b"abc"), (10, 11), (9, b"const")]:
            with self.subTest(index=index):
                args = [*good[:index], value, *good[index + 1 :]]
                self.assertRaises((ValueError, OverflowError, BufferError, TypeError), decode, *args)
        self.assertRaises(TypeError, decode)


class PushTests(NativeCase):
    def test_spans_go_out_in_order_as_far_as_the_socket_takes_them(self):
        near, far = socket.socketpair()
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        block = bytearray(i & 0xFF for i in range(100_000))
        edges = [(0, 10), (20, 60_000), (60_000, 60_001), (70_000, 100_000)]
        spans = bytearray(b"".join(SPAN.pack(*edge) for edge in edges))
        wanted, got, first = b"".join(block[b:e] for b, e in edges), b"", 0
        while first < len(edges):
            first, sent, number = NATIVE.module.push(near.fileno(), block, spans, first, len(edges))
            self.assertTrue(sent or number)
            got += far.recv(1 << 20)
        while len(got) < len(wanted):
            got += far.recv(1 << 20)
        self.assertEqual(got, wanted)

    def test_a_socket_that_is_gone(self):
        near, far = socket.socketpair()
        far.close()
        spans = bytearray(SPAN.pack(0, 3))
        first, sent, number = NATIVE.module.push(near.fileno(), b"abc", spans, 0, 1)
        self.assertEqual((first, sent, number), (0, 0, 32))
        near.close()

    def test_a_span_outside_of_the_block(self):
        self.assertRaises(ValueError, NATIVE.module.push, 0, b"abc", bytearray(SPAN.pack(0, 4)), 0, 1)


class SideTests(NativeCase):
    def setUp(self):
        super().setUp()
        near, far = tcp_pair()
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        connection, self.peer = shake_hands(near, far)
        self.far = far
        near.setblocking(False)
        self.blocks = Blocks()
        self.side = NativeSide(NATIVE.module, near, b"", self.blocks, connection)
        self.block = memoryview(bytearray(BLOCK_BYTES))

    def read(self, size):
        data = b""
        while len(data) < size:
            got = self.side.read(self.block)
            data += self.block[:got]
        return data

    def in_thread(self, call, *args):
        thread = threading.Thread(target=call, args=args)
        thread.start()
        self.addCleanup(thread.join)
        return thread

    def test_bytes_come_as_they_were_sent(self):
        data = bytes(i * 7 & 0xFF for i in range(5_000_000))
        self.in_thread(self.peer.sendall, data)
        self.assertEqual(self.read(len(data)), data)

    def test_bytes_go_as_they_were_given(self):
        data = bytes(i * 5 & 0xFF for i in range(3_000_000))
        received = bytearray()

        def receive():
            while len(received) < len(data):
                received.extend(self.peer.recv(1 << 16))

        thread = self.in_thread(receive)
        for start in range(0, len(data), 131072):
            self.side.write(memoryview(data)[start : start + 131072])
            while self.side.waits:
                self.side.flush()
        thread.join()
        self.assertEqual(received, data)
        self.assertEqual(self.blocks.lent, 0)
        self.assertGreater(self.side.sent_bytes, len(data))

    def forward(self, room, most, **how):
        """Send what a UNIX socket has in frames. Returns: what `NativeSide.forward` says, and what has come."""
        local, far = socket.socketpair()
        self.addCleanup(local.close)
        local.setblocking(False)
        far.sendall(PAYLOAD)
        far.close()
        moved = self.side.forward(local, room, most, **how)
        role, pieces, payload = Role.SERVER if how["masked"] else Role.CLIENT, [], b""
        while len(payload) < sum(moved.sizes_bytes):
            pieces.append(self.peer.recv(1 << 18))
            payload, _ = pure(pieces, role)
        return moved, payload

    def test_batches_of_frames(self):
        for masked, keeps, most in itertools.product((False, True), (False, True), (1, 2, 4)):
            with self.subTest(masked=masked, keeps=keeps, most=most):
                room = memoryview(bytearray(FRAME_BYTES * 4))
                moved, payload = self.forward(room, most, masked=masked, keeps=keeps)
                sizes = [
                    min(SENT_PAYLOAD_BYTES, len(PAYLOAD) - at) for at in range(0, len(PAYLOAD), SENT_PAYLOAD_BYTES)
                ]
                self.assertEqual((list(moved.sizes_bytes), moved.failure), (sizes[:most], None))
                self.assertEqual(payload, PAYLOAD[: sum(sizes[:most])])
                if keeps:
                    starts = itertools.accumulate(
                        moved.sizes_bytes[:-1], lambda at, size: at + HEADER_ROOM_BYTES + size, initial=0
                    )
                    kept = [
                        room[at + HEADER_ROOM_BYTES :][:size]
                        for at, size in zip(starts, moved.sizes_bytes, strict=True)
                    ]
                    self.assertEqual(b"".join(kept), payload)

    def test_no_frame_without_room_for_a_whole_one(self):
        moved, _ = self.forward(memoryview(bytearray(FRAME_BYTES + 100)), 4, masked=False, keeps=True)
        self.assertEqual(list(moved.sizes_bytes), [SENT_PAYLOAD_BYTES])
        self.assertTrue(moved.more)
        moved, _ = self.forward(memoryview(bytearray(FRAME_BYTES - 1)), 4, masked=False, keeps=True)
        self.assertEqual(list(moved.sizes_bytes), [])

    def test_another_read_follows_one_of_half_a_frame_or_more(self):
        half = SENT_PAYLOAD_BYTES // 2
        for size, more in ((half, False), (half - 1, True)):
            local, far = socket.socketpair()
            local.setblocking(False)
            far.sendall(bytes(size))
            moved = self.side.forward(local, memoryview(bytearray(FRAME_BYTES)), 4, masked=False, keeps=False)
            self.assertEqual((list(moved.sizes_bytes), moved.more), ([size], more))
            local.close()
            far.close()

    def test_an_end_of_the_unix_socket_comes_behind_its_bytes(self):
        local, far = socket.socketpair()
        self.addCleanup(local.close)
        local.setblocking(False)
        room = memoryview(bytearray(FRAME_BYTES))
        moved = self.side.forward(local, room, 4, masked=False, keeps=False)
        self.assertEqual((list(moved.sizes_bytes), moved.more, moved.local_failure), ([], False, None))
        far.sendall(b"last")
        far.close()
        moved = self.side.forward(local, room, 4, masked=False, keeps=False)
        self.assertEqual((list(moved.sizes_bytes), moved.more, moved.local_failure), ([4], True, None))
        moved = self.side.forward(local, room, 4, masked=False, keeps=False)
        self.assertEqual((list(moved.sizes_bytes), moved.local_failure), ([], (StreamEnded, "end of file")))
        self.assertEqual(self.peer.recv(100), b"\x82\x04last")

    def test_headers_are_those_of_wire(self):
        for size, masked in itertools.product((1, 125, 126, 65535, 65536), (False, True)):
            local, far = socket.socketpair()
            far.sendall(bytes(size))
            local.setblocking(False)
            room = memoryview(bytearray(FRAME_BYTES))
            self.side.forward(local, room, 1, masked=masked, keeps=True)
            header = frame_header(Role.CLIENT if masked else Role.SERVER, Opcode.BINARY, size)
            self.assertEqual(room[HEADER_ROOM_BYTES - len(header) : HEADER_ROOM_BYTES], header)
            local.close()
            far.close()

    def test_bad_arguments_are_errors(self):
        side, good = self.side, [memoryview(bytearray(FRAME_BYTES)), SENT_PAYLOAD_BYTES, 4, False, False, bytearray(9)]
        for index, value in [(0, b"const"), (1, 0), (1, 1 << 33), (2, 33), (2, -1), (5, b"const")]:
            with self.subTest(index=index):
                args = [*good[:index], value, *good[index + 1 :]]
                call = [side._ssl, side._out, side._number, 0, *args]
                self.assertRaises((ValueError, OverflowError, BufferError), NATIVE.module.forward, *call)

    def test_a_full_socket_keeps_what_is_left(self):
        while not self.side.waits:
            self.side.write(bytes(131072))
        self.assertEqual(self.blocks.lent, 1)
        total = self.drain()
        self.assertFalse(self.side.waits)
        self.assertEqual(total % 131072, 0)
        self.assertEqual(self.blocks.lent, 0)

    def drain(self):
        """Let the peer read while the side flushes. Returns: bytes of plaintext."""
        total = 0
        self.far.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                total += len(self.peer.recv(1 << 16))
                self.side.flush()
        return total

    def test_an_end_comes_behind_the_bytes(self):
        self.peer.sendall(b"last words")
        _, sealed = self.peer.do(lambda: contextlib.suppress(OSError).__enter__() or self.peer.tls.unwrap())
        self.far.sendall(sealed)
        self.assertEqual(self.read(10), b"last words")
        for _ in range(2):
            error = self.assertRaises(StreamEnded, self.side.read, self.block)
            self.assertEqual(str(error), "TLS close_notify")

    def test_end_of_file_without_close_notify(self):
        self.peer.sendall(b"abc")
        self.far.close()
        self.assertEqual(self.read(3), b"abc")
        self.assertEqual(str(self.assertRaises(StreamEnded, self.side.read, self.block)), "end of file")

    def test_rubbish_is_a_tls_error(self):
        self.far.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        with self.assertRaises(StreamFailed) as caught:
            while True:
                self.side.read(self.block)
        self.assertEqual(str(caught.exception), "TLS error")

    def test_the_last_word(self):
        self.side.write(close_frame(Role.SERVER, 1000))
        self.side.say_end()
        self.side.flush()
        self.assertEqual(self.peer.recv(100), b"\x88\x02\x03\xe8")
        self.assertEqual(self.peer.recv(100), b"")


class SwitchTests(SynchronousTestCase):
    def test_it_can_be_kept_out(self):
        native = find_native({SWITCH: "0"})
        self.assertEqual((native.module, native.reason), (None, "switched off by MTUNNEL_NATIVE=0"))
        self.assertEqual(native.summary(), "pure Python (switched off by MTUNNEL_NATIVE=0)")

    def test_built_from_another_version(self):
        with patch.dict(sys.modules, {"mtunnel_tx.stream._batch": ModuleType("_batch")}):
            native = find_native({})
        self.assertEqual(native.summary(), "pure Python (built from another version: install mtunnel-tx again)")
