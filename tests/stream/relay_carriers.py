"""A flow whose carrier is taken away or lost, and that goes on with another one; on a quiet flow no byte is lost."""

import socket
import time

from twisted.internet import reactor
from twisted.internet.threads import blockingCallFromThread

from mtunnel_tx.stream import ends
from mtunnel_tx.stream.ends import FlowEvent
from tests.patience import patience_s, wait_for
from tests.stream.scene import MIB, Scenes, codes, in_thread, read_all, read_exactly, waiting_bytes


class Carriers(Scenes):
    """See the module."""

    def detach(self, scene):
        """Take the carrier away, and wait until that is done."""
        blockingCallFromThread(reactor, self.relay.detach, scene.flow, "taken away")
        self.assertEqual(scene.parked.get(timeout=patience_s()), "taken away")

    def exchange(self, scene, payload):
        """The same bytes both ways; afterwards nothing is under way."""
        scene.peer.data(payload)
        self.assertTrue(read_exactly(scene.local, len(payload)) == payload)
        scene.local.sendall(payload)
        self.assertTrue(scene.peer.payload(len(payload)) == payload)

    @in_thread
    def test_a_flow_goes_on_with_another_carrier(self):
        scene = self.scene()
        for size in (1, 200_000, MIB):
            self.exchange(scene, bytes(size))
            self.detach(scene)
            former = scene.reconnect()
            self.assertIn(former.events()[-1][0], ("reset", "eof"))
            former.sock.close()
        self.exchange(scene, b"still there")
        scene.peer.close()
        self.assertEqual(read_all(scene.local), b"")
        scene.local.close()
        self.assertEqual(codes(scene.peer.events()), [1000])
        outcome = scene.outcome()
        total = 1 + 200_000 + MIB + len(b"still there")
        self.assertEqual((outcome.orderly, outcome.bytes_in, outcome.bytes_out), (True, total, total))
        self.assertEqual(scene.closed, [True])

    @in_thread
    def test_a_parked_flow_neither_reads_nor_ends(self):
        """Whatever its UNIX side does, and for longer than any limit of a flow that has a carrier."""
        limit_s = patience_s(0.2)
        scene = self.scene(limits=dict.fromkeys(("stall_s", "half_close_s", "linger_s"), limit_s))
        self.exchange(scene, b"x")
        self.detach(scene)
        scene.local.sendall(b"said meanwhile")
        scene.local.shutdown(socket.SHUT_WR)
        time.sleep(3 * limit_s)
        self.assertEqual((waiting_bytes(scene.flow.local), scene.closed), (14, []))
        self.assertFalse(scene.flow.done.called or scene.flow.released.called)
        scene.reconnect()
        self.assertEqual(scene.peer.payload(14), b"said meanwhile")
        self.assertEqual(codes([scene.peer.frame()]), [1000])
        scene.peer.close()
        self.assertTrue(scene.outcome().orderly)

    @in_thread
    def test_a_new_carrier_takes_the_place_of_one_that_works(self):
        scene = self.scene()
        self.exchange(scene, b"one")
        former = scene.reconnect()
        self.exchange(scene, b"two")
        self.assertIn(former.events()[-1][0], ("reset", "eof"))
        self.assertEqual(scene.closed, [])

    @in_thread
    def test_abort_of_a_parked_flow(self):
        scene = self.scene()
        self.exchange(scene, b"x")
        self.detach(scene)
        blockingCallFromThread(reactor, scene.flow.abort)
        self.assertEqual(read_all(scene.local), b"")
        self.assertEqual((scene.outcome().reason, scene.closed), ("cancelled", [False]))

    @in_thread
    def test_stop_with_a_parked_flow(self):
        scene = self.scene()
        self.detach(scene)
        blockingCallFromThread(reactor, self.relay.stop)
        self.assertFalse(scene.outcome().orderly)

    @in_thread
    def test_a_carrier_that_comes_too_late(self):
        scene = self.scene()
        blockingCallFromThread(reactor, scene.flow.abort)
        scene.outcome()
        scene.reconnect()
        self.assertIn(scene.peer.events()[-1][0], ("reset", "eof"))
        wait_for("its socket is closed", lambda: scene.flow.released.called)

    @in_thread
    def test_a_lost_carrier_ends_its_flow(self):
        scene = self.scene()
        self.exchange(scene, b"x")
        scene.peer.reset()
        self.assertEqual(read_all(scene.local), b"")
        self.assertFalse(scene.outcome().orderly)
        self.assertTrue(scene.parked.empty())

    @in_thread
    def test_one_rule_decides_whether_a_lost_carrier_parks_its_flow(self):
        parks = {**ends.TABLE, FlowEvent.CARRIER_LOST: ends.TABLE[FlowEvent.CARRIER_DETACHED]}
        self.patch(ends, "TABLE", parks)
        scene = self.scene()
        for how in ("reset", "end of file"):
            self.exchange(scene, b"x")
            scene.peer.reset() if how == "reset" else scene.peer.sock.close()
            self.assertTrue(scene.parked.get(timeout=patience_s()))
            scene.reconnect()
        self.exchange(scene, b"y")
        scene.local.shutdown(socket.SHUT_WR)
        self.assertEqual(codes([scene.peer.frame()]), [1000])
        scene.peer.close()
        self.assertTrue(scene.outcome().orderly)
