"""From ciphertext to the UNIX socket in one native call: what it moves, and where it leaves the rest to Python."""

import contextlib
import errno
import socket
import threading
import time
from array import array
from fcntl import ioctl
from termios import FIONREAD

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mtunnel_tx.stream.engine import StreamEnded
from mtunnel_tx.stream.native import NativeSide, find_native
from mtunnel_tx.stream.payload import MOST_SPANS
from mtunnel_tx.stream.sides import RECORD_ROOM_BYTES, Blocks
from mtunnel_tx.wire.frames import Decoder, Opcode, Role, frame_header, ping_frame, unmask_bytes
from tests.patience import patience_s, wait_for
from tests.stream.scene import shake_hands, tcp_pair

NATIVE = find_native()
MASK = b"\x01\x80\x7f\xfe"
MIB = 1 << 20
BLOCK_BYTES = 3 * RECORD_ROOM_BYTES
"""Small: two of them lie in the buffer of a connection, whatever the system allows."""
PAYLOAD = bytes(i * 13 & 0xFF for i in range(100_000))


def masked(payload):
    """A client's frame with a mask that is not zero."""
    header = frame_header(Role.CLIENT, Opcode.BINARY, len(payload))
    return header[:-4] + MASK + unmask_bytes(payload, MASK)


class PassingOn(SynchronousTestCase):
    def setUp(self):
        if NATIVE.module is None:
            raise SkipTest(f"the native module is not there: {NATIVE.reason}")
        near, far = tcp_pair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
        self.near = near
        self.local, self.taker = socket.socketpair()
        for sock in (near, far, self.local, self.taker):
            self.addCleanup(sock.close)
        self.local.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
        connection, self.peer = shake_hands(near, far)
        for sock in (near, self.local):
            sock.setblocking(False)
        self.side = NativeSide(NATIVE.module, near, b"", Blocks(), connection)
        self.decoder = Decoder(Role.SERVER, 1 << 26)
        self.block = memoryview(bytearray(BLOCK_BYTES))
        self.spans = bytearray(8 * MOST_SPANS)
        self.found = self.sent = 0

    def send(self, data):
        """What is not read by the end of the test is lost with its connection."""

        def send():
            with contextlib.suppress(OSError):
                self.peer.sendall(data)

        thread = threading.Thread(target=send)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(self.cut)

    def cut(self):
        with contextlib.suppress(OSError):
            self.peer.sock.shutdown(socket.SHUT_RDWR)

    def send_two_blocks(self, data):
        """Returns when two blocks are there, and more is on its way."""
        self.send(data)
        wait_for("two blocks", lambda: self.waiting_bytes() >= 2 * BLOCK_BYTES)

    def waiting_bytes(self):
        count = array("i", [0])
        ioctl(self.near, FIONREAD, count)
        return count[0]

    def pass_on(self, most_bytes):
        passed = self.side.pass_on(self.local, self.block, self.decoder, self.spans, most_bytes)
        self.decoder.go_on(passed.left_bytes, passed.key)
        self.found += passed.found_bytes
        self.sent += passed.sent_bytes
        return passed

    def until(self, found_bytes, most_bytes=MIB):
        """Returns: what the call said that found the last of so many."""
        end_s = time.monotonic() + patience_s()
        while self.found < found_bytes:
            passed = self.pass_on(most_bytes)
            self.assertLess(time.monotonic(), end_s)
        return passed

    def read(self, size_bytes):
        data = b""
        while len(data) < size_bytes:
            data += self.taker.recv(MIB)
        return data

    def test_payload_of_many_frames(self):
        self.send(masked(PAYLOAD) * 10)
        passed = self.until(10 * len(PAYLOAD))
        self.assertEqual((passed.left_bytes, passed.first, passed.span_count, passed.local_number), (0, 0, 0, 0))
        self.assertEqual(passed.position, passed.end)
        self.assertEqual(self.sent, self.found)
        self.assertEqual(self.read(self.sent), PAYLOAD * 10)

    def test_it_stops_in_front_of_a_ping(self):
        ping = ping_frame(Role.CLIENT)
        self.send(masked(b"before") + ping + masked(b"behind"))
        passed = self.until(6)
        self.assertEqual(bytes(self.block[passed.position : passed.end][: len(ping)]), ping)
        self.assertEqual(self.read(6), b"before")

    def test_a_turn_is_of_several_blocks(self):
        self.send_two_blocks(masked(PAYLOAD) * 20)
        self.assertGreater(self.until(1).found_bytes, BLOCK_BYTES)

    def test_a_turn_is_bounded(self):
        self.send_two_blocks(masked(PAYLOAD) * 20)
        self.assertLess(self.until(1, most_bytes=BLOCK_BYTES // 2).found_bytes, BLOCK_BYTES)

    def test_one_block_where_a_rate_is_limited(self):
        self.send_two_blocks(masked(PAYLOAD) * 20)
        self.assertLess(self.until(1, most_bytes=0).found_bytes, BLOCK_BYTES)

    def test_blocks_with_little_payload_are_a_turn_each(self):
        frame = masked(b"xy")  # a record ends with one
        self.send_two_blocks(frame * (MIB // len(frame)))
        self.assertLessEqual(self.until(1).found_bytes, 2 * BLOCK_BYTES // len(frame))

    def test_a_unix_socket_that_takes_some_keeps_the_rest_waiting(self):
        self.local.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.send(masked(PAYLOAD))
        while self.sent == self.found:
            passed = self.until(self.found + 1)
        self.assertLess(passed.first, passed.span_count)
        self.assertEqual(passed.local_number, 0)
        self.assertEqual(self.read(self.sent), PAYLOAD[: self.sent])

    def test_a_full_unix_socket_has_not_failed(self):
        with contextlib.suppress(BlockingIOError):
            while True:
                self.local.send(bytes(4096))
        self.send(masked(PAYLOAD))
        passed = self.until(1)
        self.assertEqual((passed.sent_bytes, passed.first, passed.span_count, passed.local_number), (0, 0, 1, 0))

    def test_a_unix_socket_that_is_gone(self):
        self.taker.close()
        self.send(masked(PAYLOAD))
        self.assertEqual(self.until(1).local_number, errno.EPIPE)

    def test_an_end_comes_behind_the_bytes(self):
        self.send(masked(b"last"))
        self.until(4)
        self.peer.sock.close()
        self.assertTrue(self.side.passes_on)
        self.assertRaises(StreamEnded, self.until, 5)
        self.assertFalse(self.side.passes_on)
        self.assertEqual(self.read(4), b"last")

    def test_bad_arguments_are_errors(self):
        good = [0, bytearray(9), bytearray(99), 9, 0, bytes(4), True, True, 9, 9, bytearray(8), 9]
        for index, value in [(1, b"const"), (2, b"const"), (3, 100), (3, -1), (4, -1), (5, bytes(3)), (10, b"const")]:
            with self.subTest(index=index):
                args = [*good[:index], value, *good[index + 1 :]]
                call = [self.side._ssl, self.side._out, self.side._number, *args]
                self.assertRaises((ValueError, OverflowError, BufferError), NATIVE.module.pass_on, *call)
