"""Ends that are not in order: what has arrived is delivered, then both sides are closed."""

import contextlib
import socket
import threading

from twisted.internet import reactor
from twisted.internet.threads import blockingCallFromThread, deferToThread

from mtunnel_tx.stream.flow import Flow, FlowTerms
from mtunnel_tx.stream.peer import PeerConnection
from tests.patience import patience_s, wait_for
from tests.stream.scene import MIB, Scenes, codes, in_thread, read_all, read_exactly, tcp_pair


class Aborts(Scenes):
    """See the module."""

    @in_thread
    def test_connection_ends_without_a_close_frame(self):
        for how in ("fin", "reset"):
            gate = threading.Event()
            scene = self.scene(hold=lambda gate=gate: deferToThread(gate.wait, patience_s()))
            scene.peer.data(b"arrived")
            if how == "reset":
                self.assertEqual(read_exactly(scene.local, 7), b"arrived")
                scene.peer.reset()
                arrived = b""
            else:
                scene.peer.sock.close()
                arrived = b"arrived"
            self.assertEqual(read_exactly(scene.local, len(arrived)), arrived)
            # The route is told first, and only when it is done with that does the UNIX side see the end.
            try:
                wait_for("the route is told", lambda scene=scene: scene.open_at_close)
                self.assertEqual((scene.closed, scene.open_at_close), ([False], [True]))
                scene.local.settimeout(0.1)
                self.assertRaises(TimeoutError, scene.local.recv, 1)
            finally:
                gate.set()
            scene.local.settimeout(patience_s())
            self.assertEqual(scene.local.recv(1), b"")
            self.assertFalse(scene.outcome().orderly)

    @in_thread
    def test_fin_in_the_middle_of_a_frame(self):
        scene = self.scene()
        scene.peer.send(scene.peer.raw(0x82, b"half", length=1000))
        scene.peer.sock.close()
        self.assertEqual(read_all(scene.local), b"half")
        self.assertFalse(scene.outcome().orderly)

    @in_thread
    def test_unix_side_closed_under_unread_bytes(self):
        scene = self.scene()
        scene.local.sendall(b"what it said before")
        self.assertEqual(scene.peer.payload(19), b"what it said before")
        scene.peer.data(b"x")
        read_exactly(scene.local, 1)
        scene.peer.data(b"nobody reads this")
        # Wait until it lies in the socket, then close under it.
        scene.local.recv(1, socket.MSG_PEEK)
        scene.local.close()
        events = scene.peer.events()
        self.assertEqual(codes(events), [])
        self.assertFalse(scene.outcome().orderly)
        self.assertEqual(scene.closed, [False])

    @in_thread
    def test_unix_side_gone_while_we_write(self):
        scene = self.scene()
        stop = threading.Event()

        def send():
            with contextlib.suppress(OSError):
                for _ in range(200):
                    scene.peer.data(bytes(MIB // 8))

        thread = threading.Thread(target=send)
        thread.start()
        read_exactly(scene.local, 1000)
        scene.local.close()
        stop.set()
        self.assertFalse(scene.outcome().orderly)
        thread.join()

    @in_thread
    def test_abort_from_the_reactor(self):
        scene = self.scene()
        scene.peer.data(b"x")
        read_exactly(scene.local, 1)
        blockingCallFromThread(reactor, scene.flow.abort)
        self.assertEqual(read_all(scene.local), b"")
        self.assertFalse(scene.outcome().orderly)
        self.assertEqual(scene.closed, [False])
        self.assertIn(scene.peer.events()[-1][0], ("reset", "eof"))

    @in_thread
    def test_abort_before_the_start(self):
        local, far = socket.socketpair()
        far.settimeout(patience_s())
        flow = Flow(self.relay, local, FlowTerms())
        flow.abort()
        ours, near = tcp_pair()
        ours.setblocking(False)
        blockingCallFromThread(reactor, flow.attach, PeerConnection(ours))
        self.assertEqual(read_all(far), b"")
        near.close()
        far.close()
