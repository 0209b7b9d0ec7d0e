import os
import socket

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.source.pipe import LEAST_PIECE_BYTES, PIECE_BYTES, PipeToSocket, RateLimit


class BucketTest(SynchronousTestCase):
    def test_no_limit(self):
        bucket = RateLimit(Clock(), 0)
        self.assertEqual(bucket.piece_bytes, PIECE_BYTES)
        self.successResultOf(Deferred.fromCoroutine(bucket.pay(1 << 40)))

    def test_pieces_are_a_tenth_of_a_second(self):
        self.assertEqual(RateLimit(Clock(), 1_000_000).piece_bytes, 100_000)
        self.assertEqual(RateLimit(Clock(), 1).piece_bytes, LEAST_PIECE_BYTES)
        self.assertEqual(RateLimit(Clock(), 1 << 40).piece_bytes, PIECE_BYTES)

    def test_bytes_are_paid_for_in_time(self):
        clock = Clock()
        bucket = RateLimit(clock, 1000)
        for _ in range(4):
            paid = Deferred.fromCoroutine(bucket.pay(500))
            clock.advance(0.49)
            self.assertNoResult(paid)
            clock.advance(0.02)
            self.successResultOf(paid)

    def test_idle_time_is_no_credit(self):
        clock = Clock()
        bucket = RateLimit(clock, 1000)
        clock.advance(100)
        paid = Deferred.fromCoroutine(bucket.pay(1000))
        clock.advance(0.9)
        self.assertNoResult(paid)


class FlowTest(TestCase):
    def setUp(self):
        self.source, self.sink = os.pipe()
        os.set_blocking(self.source, False)
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.moved = []
        self.addCleanup(os.close, self.source)
        self.addCleanup(self.near.close)
        self.addCleanup(self.far.close)

    def run_flow(self, limit_bytes_s=0):
        bucket = RateLimit(reactor, limit_bytes_s)
        return Deferred.fromCoroutine(PipeToSocket(reactor, self.source, self.near, bucket, self.moved.append).run())

    def write(self, data):
        with os.fdopen(self.sink, "wb") as sink:
            sink.write(data)

    def read(self):
        data = bytearray()
        while piece := self.far.recv(1 << 20):
            data += piece
        return bytes(data)

    async def test_every_byte_arrives_and_the_socket_stays_open(self):
        data = os.urandom(5_000_001)
        written, read = deferToThread(self.write, data), deferToThread(self.read)
        self.assertEqual(await self.run_flow(), len(data))
        await written
        self.assertEqual(sum(self.moved), len(data))
        self.assertFalse(read.called)
        self.near.shutdown(socket.SHUT_WR)
        self.assertEqual(await read, data)
        self.assertFalse(reactor.getReaders() and any(r.fileno() == self.source for r in reactor.getReaders()))

    async def test_a_limit_holds(self):
        written, read = deferToThread(self.write, b"x" * 100_000), deferToThread(self.read)
        began = reactor.seconds()
        await self.run_flow(200_000)
        self.assertGreater(reactor.seconds() - began, 0.45)
        self.near.close()
        await written
        self.assertEqual(len(await read), 100_000)

    async def test_nobody_takes_the_bytes(self):
        self.far.close()
        written = deferToThread(self.write, b"x" * 1000)
        with self.assertRaises(BackendFailed) as caught:
            await self.run_flow()
        self.assertIn("broke off: Broken pipe", caught.exception.text)
        await written

    async def test_cancelling_leaves_nothing_behind(self):
        flow = self.run_flow()
        flow.cancel()
        with self.assertRaises(CancelledError):
            await flow
        self.assertEqual([r for r in reactor.getReaders() if r.fileno() == self.source], [])
        os.close(self.sink)
