"""The peer's side of a stream: an end is told after everything before it, and it is told."""

import os
import socket

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.stream.engine import StreamEnded
from mtunnel_tx.stream.sides import BLOCK_BYTES, RECEIVE_BYTES, Blocks, TlsSide
from mtunnel_tx.tls.context import new_context
from tests.leaks import memory_bytes


class PlainEngine:
    """TLS that changes nothing."""

    over = False

    def __init__(self):
        self.bytes = b""

    def put(self, data):
        self.bytes += bytes(data)

    def read(self, view, start):
        size = min(len(view) - start, len(self.bytes))
        view[start : start + size] = self.bytes[:size]
        self.bytes = self.bytes[size:]
        return start + size


class EndTests(SynchronousTestCase):
    def check(self, sent_bytes):
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        ours.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * RECEIVE_BYTES)
        theirs.setblocking(False)
        self.assertEqual(theirs.send(bytes(sent_bytes)) if sent_bytes else 0, sent_bytes)
        theirs.close()
        side = TlsSide(ours, b"", Blocks(), PlainEngine())
        block = memoryview(bytearray(BLOCK_BYTES))
        read = 0
        with self.assertRaises(StreamEnded):
            while True:
                size = side.read(block)
                self.assertGreater(size, 0, "neither bytes nor an end")
                read += size
        self.assertEqual(read, sent_bytes)

    def test_behind_any_number_of_bytes(self):
        for sent_bytes in (0, 1, RECEIVE_BYTES - 1, RECEIVE_BYTES, RECEIVE_BYTES + 1, BLOCK_BYTES, BLOCK_BYTES + 1):
            self.check(sent_bytes)


class IdleMemory(SynchronousTestCase):
    """What a flow takes while nothing flows."""

    def test_a_block_costs_what_is_written_to_it(self):
        blocks, before = Blocks(), memory_bytes(os.getpid())
        lent = [blocks.lend() for _ in range(200)]
        for block in lent:
            block[:100] = bytes(100)
        self.assertLess(memory_bytes(os.getpid()) - before, 200 * BLOCK_BYTES // 10)
        for block in lent:
            blocks.give_back(block)

    def test_openssl_keeps_no_buffers(self):
        self.assertTrue(new_context().set_mode(0) & SSL.MODE_RELEASE_BUFFERS)
