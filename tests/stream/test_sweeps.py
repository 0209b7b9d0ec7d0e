"""A resumable flow whose connection was reset: what came before is read, where the UNIX socket takes it."""

from __future__ import annotations

import socket
import struct

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.stream.flow import Flow, FlowTerms
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.stream.reactorrelay import ReactorRelay
from tests.patience import wait_for
from tests.workers.test_workers import Reactor

FRAME = b"\x82\x85" + bytes(4) + b"hello"
NOW = struct.pack("ii", 1, 0)


class SweepTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.peer = socket.create_connection(listener.getsockname())
            self.sock, _ = listener.accept()
        self.sock.setblocking(False)
        local, self.local = socket.socketpair()
        self.addCleanup(self.local.close)
        self.parked: list[str] = []
        terms = FlowTerms(window_bytes=1 << 20, parked=self.parked.append)
        self.flow = Flow(ReactorRelay(self.reactor), local, terms)
        self.flow.attach(PeerConnection(self.sock))

    def test_keepalives_notice_a_loss_in_time(self) -> None:
        """Where nothing is on its way that would not be acknowledged."""
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle_s, interval_s, count = (self.sock.getsockopt(socket.IPPROTO_TCP, name) for name in names)
        self.assertTrue(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        self.assertLess(idle_s + interval_s * count, self.flow.terms.limits.notice_s)
        self.flow.abort()

    def test_bytes_that_came_before_a_reset(self) -> None:
        self.peer.sendall(FRAME)
        wait_for("the bytes", lambda: self.sock.recv(100, socket.MSG_PEEK) == FRAME)
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOW)
        self.peer.close()
        self.reactor.advance(self.flow.terms.limits.dead_peer_s / 4 + 0.1)
        for _ in range(3):
            self.reactor.spin()
        self.local.setblocking(False)
        self.assertEqual(self.local.recv(9), b"hello")
        self.assertEqual((len(self.parked), self.flow.bytes_in), (1, 5))
        self.flow.abort()
