"""A resumable flow whose connection, or worker, is gone before the flow runs there: it is as it was before."""

import errno
import gc
import json
import os
import socket
from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.stream.flow import Flow, FlowOutcome, FlowTerms
from mtunnel_tx.stream.parkedvalue import ParkedValue, ParkedWay
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.stream.reactorrelay import ReactorRelay
from mtunnel_tx.workers import carried
from mtunnel_tx.workers.carried import WORKER_ENDED
from mtunnel_tx.workers.parking import PARKED, RUNNING, write_value
from mtunnel_tx.workers.relay import WorkerRelay
from tests.patience import patience_s
from tests.workers.test_workers import Reactor

WAY = ParkedWay(sender="OPEN", done=False)
VALUE = ParkedValue(
    inward=WAY, outward=WAY, taken=0, is_end_passed=False, sent=3, acked=0, ended_at=None, is_end_delivered=False,
    kept=b"abc",
)  # fmt: skip


class SlowStore:
    """Keeps nothing for now."""

    def __init__(self):
        self.puts = []

    def put(self, *_):
        self.puts.append(Deferred())
        return self.puts[-1]

    def drop(self, _name):
        """There is nothing."""


class UnusedGrantTests(SynchronousTestCase):
    def setUp(self):
        self.reactor = Reactor()
        self.relay = WorkerRelay(self.reactor, ReactorRelay(self.reactor), lambda _pid: None, lambda *_: 0)
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
        channel.settimeout(patience_s())
        # As a worker does: it has sent everything, and gets back what HTTP has not used, up to the end.
        plaintext.shutdown(socket.SHUT_WR)
        self.send_back()
        data, files, _, _ = socket.recv_fds(channel, 1 << 16, 2)
        for number in files:
            socket.close(number)
        return channel, json.loads(data), files

    def send_back(self):
        """As the real reactor does where a socket is ended by the other side."""
        for _ in range(3):
            for one in [*self.reactor.readers, *self.reactor.writers]:
                end = one.doRead() if one in self.reactor.readers else one.doWrite()
                if end is not None and one in self.reactor.readers:
                    one.readConnectionLost(Failure(end))
                elif end is not None:
                    one.connectionLost(Failure(end))

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

    def test_a_flow_that_is_given_back_twice(self):
        """What comes the second time could be anything: its channel ends."""
        self.flow.terms = replace(self.flow.terms, owner=dict)
        self.relay.store = SlowStore()
        channel, _, _ = self.take(self.grant())
        numbers, file = write_value(VALUE)
        message = json.dumps({"in": 0, "out": 0, "over": PARKED, "reason": "lost", "value": numbers}).encode()
        with file:
            for _ in range(2):
                socket.send_fds(channel, [message], [file.fileno()])
        for _ in range(3):
            self.reactor.spin()
        self.assertEqual((self.parked, self.closed, self.flow.kept_bytes), (["lost"], [], 3))
        self.assertEqual(channel.recv(1 << 16), b"")

    def give_back(self):
        """Returns: the worker's end of the flow's channel, and what tells whether the flow is kept."""
        self.flow.terms, store = replace(self.flow.terms, owner=dict), SlowStore()
        self.relay.store = store
        channel, _, _ = self.take(self.grant())
        numbers, file = write_value(VALUE)
        message = json.dumps({"in": 0, "out": 0, "over": PARKED, "reason": "lost", "value": numbers}).encode()
        with file:
            socket.send_fds(channel, [message], [file.fileno()])
        self.reactor.spin()
        channel.setblocking(False)
        self.assertRaises(BlockingIOError, channel.recv, 100)
        return channel, store.puts[-1]

    def test_a_worker_forgets_what_is_kept(self):
        channel, kept = self.give_back()
        kept.callback(True)
        self.assertEqual(json.loads(channel.recv(100)), {"kept": True})

    def test_a_worker_keeps_what_nobody_has(self):
        """This daemon has let go of the store before it heard: the next one asks the worker."""
        channel, kept = self.give_back()
        kept.callback(False)
        self.assertRaises(BlockingIOError, channel.recv, 100)

    def test_what_comes_after_leaving_is_for_the_next_daemon(self):
        channel, _, _ = self.take(self.grant())
        leaving = Deferred.fromCoroutine(self.relay.leave())
        channel.send(json.dumps({"in": 0, "out": 0, "over": RUNNING}).encode())
        channel.close()
        for _ in range(3):
            self.reactor.spin()
        self.successResultOf(leaving)
        self.assertEqual((self.parked, self.closed), ([], []))

    def test_there_is_no_descriptor_to_tell_the_worker(self):
        """The flow is as it was before, and waits for another connection."""
        plaintext = self.grant()
        _, numbers, _, _ = socket.recv_fds(plaintext, 1, 2)
        for number in numbers:
            self.addCleanup(os.close, number)
        self.patch(carried, "write_terms", self.no_descriptor)
        plaintext.shutdown(socket.SHUT_WR)
        self.send_back()
        self.assertEqual((len(self.parked), self.closed), (1, []))

    def no_descriptor(self, _terms):
        raise OSError(errno.EMFILE, "too many open files")

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
