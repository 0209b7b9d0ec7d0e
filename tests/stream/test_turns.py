"""How much one flow moves before another gets its turn."""

import socket
import time
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.stream import carrier
from mtunnel_tx.stream.carrier import ThreadTools
from mtunnel_tx.stream.engine import best_engine
from mtunnel_tx.stream.flow import FlowTerms
from mtunnel_tx.stream.mask import best_unmask
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.stream.running import RunningFlow
from mtunnel_tx.stream.sides import RECEIVE_BYTES, Blocks, PlainSide
from mtunnel_tx.wire.frames import Opcode, Role, frame_header

FRAME = frame_header(Role.CLIENT, Opcode.BINARY, 3) + b"abc"
TURN_BYTES = 1 << 20


class EndlessSide(PlainSide):
    """A peer that is always faster; each read would bring a full block."""

    reads = 0

    def read(self, block):
        self.reads += 1
        block[: len(FRAME)] = FRAME
        return len(FRAME)


class TurnTests(SynchronousTestCase):
    def test_a_faster_peer_has_a_mib_a_turn(self):
        near, local, peer, _ = socks = [*socket.socketpair(), *socket.socketpair()]
        for sock in socks:
            self.addCleanup(sock.close)
            sock.setblocking(False)
        tools = ThreadTools(blocks=Blocks(), unmask=best_unmask(), engine=best_engine(), now=time.monotonic)
        side, flow = EndlessSide(peer, b""), RunningFlow(near, FlowTerms(), tools)
        self.addCleanup(flow.destroy, "the test is over")
        with patch.object(carrier, "_make_side", lambda peer, tools: side):
            flow.attach(PeerConnection(peer))
        flow.service()
        self.assertEqual(side.reads, TURN_BYTES // RECEIVE_BYTES)
        self.assertEqual(local.recv(100), b"abc" * side.reads)
        self.assertEqual(flow.next_call_s(), 0.0)
