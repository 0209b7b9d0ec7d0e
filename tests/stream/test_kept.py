"""What a resumable flow keeps for its peer, and owes it, whatever that peer says: other flows' bytes stay theirs."""

import contextlib
import socket
import time

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.stream.carrier import ThreadTools
from mtunnel_tx.stream.engine import best_engine
from mtunnel_tx.stream.flow import FlowTerms
from mtunnel_tx.stream.mask import best_unmask
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.stream.running import RunningFlow
from mtunnel_tx.stream.sides import Blocks
from mtunnel_tx.wire.frames import SENT_PAYLOAD_BYTES, Role
from mtunnel_tx.wire.records import FlowRecord, RecordKind, record_frame

WINDOW = 16 << 20
SECRET = b"bytes of another flow"
SMALL = 1 << 16
MANY_ENDS = 60_000


def read_waiting(sock):
    """What waits to be read."""
    data = b""
    try:
        while piece := sock.recv(1 << 20):
            data += piece
    except BlockingIOError:
        pass
    return data


def record(kind, position=0):
    return record_frame(Role.CLIENT, FlowRecord(kind, position))


class Kept(SynchronousTestCase):
    """Flows of one thread, which share their memory, on sockets that are served by hand."""

    def setUp(self):
        self.tools = ThreadTools(blocks=Blocks(), unmask=best_unmask(), engine=best_engine(), now=time.monotonic)

    def pair(self, buffer_bytes=1 << 21):
        socks = socket.socketpair()
        for sock in socks:
            self.addCleanup(sock.close)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        return socks

    def flow(self):
        """Returns: it, and the other end of its UNIX socket."""
        near, far = self.pair()
        flow = RunningFlow(near, FlowTerms(window_bytes=WINDOW), self.tools)
        self.addCleanup(flow.destroy, "the test is over")
        return flow, far

    def attach(self, flow, buffer_bytes=SMALL):
        """Returns: the peer's end of a new connection."""
        near, far = self.pair(buffer_bytes)
        flow.attach(PeerConnection(near))
        flow.service()
        return far

    def hear(self, flow, peer):
        """All that the peer is sent while it reads."""
        data = b""
        while piece := read_waiting(peer):
            data += piece
            flow.service()
        return data

    def fill(self, flow, local, peer, frames):
        """Send so many frames to a peer that reads everything and acknowledges nothing."""
        for _ in range(frames):
            local.send(bytes(SENT_PAYLOAD_BYTES))
            flow.service()
            self.hear(flow, peer)
        self.assertEqual(flow.kept_bytes, frames * SENT_PAYLOAD_BYTES)

    def stand_still(self, flow, local):
        """Send to a peer that reads nothing, until a part of a frame waits."""
        while not flow.interest().peer_writes:
            local.send(bytes(SENT_PAYLOAD_BYTES))
            flow.service()

    def say(self, flow, peer, data):
        peer.send(data)
        flow.service()
        flow.service()

    def use_memory(self):
        """Let another flow send what it alone may."""
        flow, local = self.flow()
        peer = self.attach(flow)
        for _ in range(12):
            local.send((SECRET * SENT_PAYLOAD_BYTES)[:SENT_PAYLOAD_BYTES])
            flow.service()
            self.hear(flow, peer)

    def check_heard(self, flow, peer):
        """Returns: what the peer is sent, none of it another flow's."""
        heard = self.hear(flow, peer)
        self.assertEqual(heard.count(SECRET), 0)
        return heard

    def test_an_acknowledgement_of_what_is_yet_to_be_sent_again(self):
        flow, local = self.flow()
        self.fill(flow, local, self.attach(flow), 12)
        flow.detach("lost")
        flow.service()
        peer = self.attach(flow)
        self.say(flow, peer, record(RecordKind.ACKNOWLEDGED, 0))
        self.say(flow, peer, record(RecordKind.ACKNOWLEDGED, flow.bytes_out))
        self.use_memory()
        self.check_heard(flow, peer)
        self.assertIn("acknowledgement of position", flow.ends.reason)

    def test_an_acknowledgement_of_what_waits_for_the_peer(self):
        flow, local = self.flow()
        peer = self.attach(flow)
        self.stand_still(flow, local)
        self.say(flow, peer, record(RecordKind.ACKNOWLEDGED, flow.bytes_out))
        self.use_memory()
        self.check_heard(flow, peer)

    def test_the_end_of_a_flow_whose_bytes_wait_for_the_peer(self):
        flow, local = self.flow()
        peer = self.attach(flow)
        self.stand_still(flow, local)
        self.say(flow, peer, record(RecordKind.ACKNOWLEDGED, flow.bytes_out + 1))
        self.use_memory()
        self.assertIn(b"x acknowledgement of position", self.check_heard(flow, peer))

    def test_an_end_that_is_said_for_ever(self):
        """Its answers do not pile up before a peer that reads none of them."""
        flow, _ = self.flow()
        peer, ends = self.attach(flow), record(RecordKind.ENDED) * 4000
        self.say(flow, peer, ends)
        said = 0
        while said < MANY_ENDS:
            with contextlib.suppress(BlockingIOError):
                said += peer.send(ends) // len(record(RecordKind.ENDED))
            flow.service()
        self.assertIsNone(flow.ends.reason)
        answer = record_frame(Role.SERVER, FlowRecord(RecordKind.DELIVERED))
        self.assertLess(self.hear(flow, peer).count(answer), MANY_ENDS // 20)
        self.say(flow, peer, record(RecordKind.ENDED))
        self.assertEqual(self.hear(flow, peer), answer)
