"""A resumable flow whose connection, or worker, is gone before the flow runs there: it is as it was before."""

import gc
import json
import socket

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.stream.flow import Flow, FlowOutcome, FlowTerms
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.stream.reactorrelay import ReactorRelay
from mtunnel_tx.workers.parking import RUNNING
from mtunnel_tx.workers.relay import WORKER_ENDED, WorkerRelay
from tests.workers.test_workers import Reactor


class UnusedGrantTests(SynchronousTestCase):
    def setUp(self):
        self.reactor = Reactor()
        self.relay = WorkerRelay(self.reactor, ReactorRelay(self.reactor), lambda _inode: None, lambda *_: None)
        local, self.near = socket.socketpair()
        self.parked, self.closed, self.plaintexts = [], [], []
        self.addCleanup(self.near.close)

        async def closed(orderly):
            self.closed.append(orderly)

        self.flow = Flow(self.relay, local, FlowTerms(window_bytes=1 << 20, parked=self.parked.append, closed=closed))

    def tearDown(self):
        """Nothing stays open for the test that counts what is open."""
        for sock in self.plaintexts:
            sock.close()
        self.flow.abort()
        for _ in range(3):
            self.reactor.spin()
        gc.collect()

    def grant(self):
        """Attach a connection. Returns: the worker's end of its plaintext socket."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.flow.attach(PeerConnection(ours))
        self.plaintexts.append(theirs)
        return theirs

    def take(self, plaintext):
        """As a worker. Returns: the flow's channel, the terms, and the files that came with them."""
        _, numbers, _, _ = socket.recv_fds(plaintext, 1, 2)
        local, channel = (socket.socket(fileno=number) for number in numbers)
        local.close()
        self.addCleanup(channel.close)
        self.reactor.spin()
        data, files, _, _ = socket.recv_fds(channel, 1 << 16, 2)
        for number in files:
            socket.close(number)
        return channel, json.loads(data), files

    def test_a_grant_that_nobody_reads(self):
        self.grant().close()
        self.reactor.spin()
        self.assertEqual((len(self.parked), self.closed), (1, []))
        channel, terms, files = self.take(self.grant())
        self.assertEqual((terms["value"]["taken"], terms["value"]["sent"], len(files)), (0, 0, 1))
        channel.close()
        self.reactor.spin()
        self.assertEqual((len(self.parked), self.closed), (2, []))
        self.flow.abort()
        self.assertEqual(self.closed, [False])

    def test_a_worker_that_dies_with_the_flow(self):
        channel, _, _ = self.take(self.grant())
        channel.send(json.dumps({"in": 0, "out": 0, "over": RUNNING}).encode())
        channel.close()
        self.reactor.spin()
        self.reactor.spin()
        self.assertEqual((self.parked, self.closed, self.flow.reason), ([], [False], WORKER_ENDED))

    def test_a_connection_that_waits_for_a_flow_that_ends(self):
        """It was to go on with the flow when its worker gives it back."""
        self.take(self.grant())
        waiting = self.grant()
        self.flow.done.callback(FlowOutcome(orderly=False, bytes_in=0, bytes_out=0, reason="cancelled"))
        waiting.settimeout(1)
        with self.assertRaises((ConnectionResetError, BrokenPipeError)):
            if waiting.recv(1) == b"":
                raise ConnectionResetError
        late = self.grant()
        late.settimeout(1)
        with self.assertRaises((ConnectionResetError, BrokenPipeError)):
            if late.recv(1) == b"":
                raise ConnectionResetError
