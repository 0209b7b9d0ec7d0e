"""Resumable flows: what a peer hears and may say, with carriers that are lost at the worst moments."""

import contextlib
import hashlib
import queue
import random
import socket
import threading

from twisted.internet import reactor
from twisted.internet.threads import blockingCallFromThread
from wsproto.frame_protocol import Opcode

from mtunnel_tx.stream.flow import Flow, FlowTerms
from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.wire.frames import Role
from tests.patience import patience_s, wait_for
from tests.stream.scene import MIB, Scenes, codes, in_thread, read_all, read_exactly, tcp_pair, waiting_bytes

WINDOW = MIB


class Resumption(Scenes):
    """See the module."""

    def resumable(self, **options):
        return self.scene(window_bytes=WINDOW, **options)

    def say(self, scene, *records):
        for text in records:
            scene.peer.send(scene.peer.frames.send_data(text, fin=True))

    def hear(self, scene):
        """The next record. Returns: its text."""
        opcode, payload = scene.peer.frame()
        self.assertIs(opcode, Opcode.TEXT, payload)
        return payload if isinstance(payload, str) else bytes(payload).decode()

    def lose(self, scene, how="reset"):
        scene.peer.reset() if how == "reset" else scene.peer.sock.close()
        self.assertTrue(scene.parked.get(timeout=patience_s()))

    def finish_well(self, scene, inward, outward):
        """Both ends, from positions of the peer's own view."""
        self.say(scene, f"e {inward}")
        self.assertEqual(read_all(scene.local), b"")
        self.assertEqual(self.hear(scene), "d")
        scene.local.close()
        self.assertEqual(self.hear(scene), f"e {outward}")
        self.say(scene, f"a {outward}", "d")
        self.assertEqual(codes([scene.peer.frame()]), [1000])
        scene.peer.close()
        self.assertTrue(scene.outcome().orderly)
        self.assertEqual(scene.closed, [True])

    @in_thread
    def test_a_flow_that_is_never_cut(self):
        scene = self.resumable()
        scene.peer.data(b"hello")
        self.assertEqual(read_exactly(scene.local, 5), b"hello")
        self.assertEqual(self.hear(scene), "a 5")
        scene.local.sendall(b"you")
        self.assertEqual(scene.peer.payload(3), b"you")
        self.finish_well(scene, 5, 3)

    @in_thread
    def test_what_was_not_acknowledged_comes_again(self):
        scene = self.resumable()
        scene.peer.data(b"one")
        self.assertEqual(self.hear(scene), "a 3")
        scene.local.sendall(b"abcdef")
        self.assertEqual(scene.peer.payload(6), b"abcdef")
        for how in ("reset", "end of file"):
            self.lose(scene, how)
            scene.reconnect()
            self.assertEqual(self.hear(scene), "a 3")
            self.say(scene, "a 2", "p 3")
            self.assertEqual(self.hear(scene), "p 2")
            self.assertEqual(scene.peer.payload(4), b"cdef")
        scene.peer.data(b"two")
        self.assertEqual(read_exactly(scene.local, 6), b"onetwo")
        self.assertEqual(self.hear(scene), "a 6")
        self.finish_well(scene, 6, 6)

    @in_thread
    def test_an_end_is_passed_on_once_and_answered_again(self):
        scene = self.resumable()
        self.say(scene, "e 0")
        self.assertEqual(read_all(scene.local), b"")
        self.assertEqual(self.hear(scene), "d")
        scene.local.shutdown(socket.SHUT_WR)
        self.assertEqual(self.hear(scene), "e 0")
        self.lose(scene)
        scene.reconnect()
        self.assertEqual(self.hear(scene), "a 0")
        self.say(scene, "a 0", "p 0", "e 0")
        self.assertEqual({self.hear(scene) for _ in range(3)}, {"p 0", "e 0", "d"})
        self.say(scene, "d")
        self.assertEqual(codes([scene.peer.frame()]), [1000])
        scene.peer.close()
        self.assertTrue(scene.outcome().orderly)

    @in_thread
    def test_an_end_comes_again_with_the_bytes_before_it_that_were_not_taken(self):
        """The end was heard already, as it stood in the same block as they."""
        scene, payload = self.resumable(limits={"dead_peer_s": 2}), random.Random(5).randbytes(250_000)
        scene.flow.local.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        scene.peer.data(payload)
        self.say(scene, f"e {len(payload)}")
        wait_for("the first bytes", lambda: waiting_bytes(scene.local) > 0)
        self.lose(scene)
        scene.reconnect()
        taken = int(self.hear(scene).removeprefix("a "))
        self.assertLess(taken, len(payload))
        self.say(scene, "a 0", f"p {taken}")
        self.assertEqual(self.hear(scene), "p 0")
        scene.peer.data(payload[taken:])
        self.say(scene, f"e {len(payload)}")
        self.assertEqual(read_all(scene.local), payload)
        while (heard := self.hear(scene)) != "d":
            self.assertTrue(heard.startswith("a "), heard)

    @in_thread
    def test_the_window_stops_the_reading(self):
        scene = self.resumable()
        threading.Thread(target=scene.local.sendall, args=(bytes(8 * MIB),), daemon=True).start()
        first = len(scene.peer.payload(WINDOW))
        wait_for("bytes wait", lambda: waiting_bytes(scene.flow.local) > 0)
        self.assertLessEqual(scene.flow.kept_bytes, WINDOW + 131072)
        received = first
        while received < 8 * MIB:
            self.say(scene, f"a {received}")
            _, payload = scene.peer.frame()
            received += len(payload)
        self.assertEqual(received, 8 * MIB)

    @in_thread
    def test_the_peer_is_told_of_an_abort(self):
        scene = self.resumable()
        scene.peer.data(b"x")
        self.assertEqual(self.hear(scene), "a 1")
        blockingCallFromThread(reactor, scene.flow.abort)
        self.assertEqual(self.hear(scene), "x cancelled")
        self.assertEqual(scene.peer.frame()[0], Opcode.CLOSE)
        scene.peer.close()
        self.assertEqual((scene.outcome().reason, scene.closed), ("cancelled", [False]))

    @in_thread
    def test_an_abort_of_the_peer_parks_nothing(self):
        scene = self.resumable()
        self.say(scene, "x no more room")
        scene.peer.close(1011)
        scene.peer.sock.close()
        self.assertEqual((scene.outcome().reason, scene.closed), ("peer gave up: no more room", [False]))
        self.assertTrue(scene.parked.empty())

    @in_thread
    def test_what_does_not_fit_ends_the_flow(self):
        for record in ("p 7", "e 7", "a 7", "d", "q 1"):
            scene = self.resumable()
            self.say(scene, record)
            self.assertTrue(self.hear(scene).startswith("x "))
            self.assertEqual(bytes(scene.peer.frame()[1][0].to_bytes(2, "big")), b"\x03\xea", record)
            scene.peer.close()
            self.assertFalse(scene.outcome().orderly)
            self.assertTrue(scene.parked.empty())

    @in_thread
    def test_a_close_frame_before_the_end_is_a_failure(self):
        scene = self.resumable()
        scene.peer.close(1000)
        self.assertEqual((scene.outcome().reason, scene.closed), ("peer closed before the end", [False]))

    @in_thread
    def test_a_proxy_that_goes_away_parks_the_flow(self):
        scene = self.resumable()
        for code in (1001, 1012):
            scene.peer.close(code)
            self.assertIn(str(code), scene.parked.get(timeout=patience_s()))
            scene.reconnect()
            self.assertEqual(self.hear(scene), "a 0")
            self.say(scene, "a 0")
            self.assertEqual(self.hear(scene), "p 0")

    @in_thread
    def test_abort_while_parked_after_an_end(self):
        scene = self.resumable()
        self.say(scene, "e 0")
        self.assertEqual(self.hear(scene), "d")
        self.lose(scene)
        blockingCallFromThread(reactor, scene.flow.abort)
        self.assertEqual((scene.outcome().orderly, scene.closed), (False, [False]))

    @in_thread
    def test_the_end_of_a_local_side_that_ends_both_ways(self):
        """As QEMU does: what the peer still sends is of no use, and Close says so."""
        scene = self.resumable(ends_with_local=True)
        scene.local.sendall(b"bye")
        scene.local.close()
        self.assertEqual(scene.peer.payload(3), b"bye")
        self.assertEqual(self.hear(scene), "e 3")
        scene.peer.data(b"too late")
        self.lose(scene)
        scene.reconnect()
        self.assertEqual(self.hear(scene), "a 0")
        self.say(scene, "a 3", "p 0")
        self.assertEqual([self.hear(scene), self.hear(scene)], ["p 3", "e 3"])
        scene.peer.data(b"too late")
        self.say(scene, "d")
        self.assertEqual(codes([scene.peer.frame()]), [1000])
        scene.peer.close()
        self.assertTrue(scene.outcome().orderly)

    @in_thread
    def test_a_parked_flow_goes_on_elsewhere(self):
        """As from one worker to another one."""
        scene, told = self.resumable(), queue.Queue()
        scene.peer.data(b"one")
        self.assertEqual(self.hear(scene), "a 3")
        scene.local.sendall(b"abcdef")
        self.assertEqual(scene.peer.payload(6), b"abcdef")
        self.lose(scene)
        blockingCallFromThread(reactor, self.relay.take_away, scene.flow, told.put)
        value = told.get(timeout=patience_s())
        self.assertEqual((value.taken, value.sent, value.kept), (3, 6, b"abcdef"))
        former, scene.flow = scene.flow, Flow(self.relay, scene.flow.local.dup(), scene.flow.terms)
        scene.flow.value = value
        scene.flow.done.addCallback(scene._end)
        former.local.close()
        scene.reconnect()
        self.assertEqual(self.hear(scene), "a 3")
        self.assertIsNone(scene.flow.value, "its bytes are kept twice")
        self.say(scene, "a 2", "p 3")
        self.assertEqual(self.hear(scene), "p 2")
        self.assertEqual(scene.peer.payload(4), b"cdef")
        scene.peer.data(b"two")
        self.assertEqual(read_exactly(scene.local, 6), b"onetwo")
        self.assertEqual(self.hear(scene), "a 6")
        self.finish_well(scene, 6, 6)

    @in_thread
    def test_whatever_a_peer_says(self):
        """Nothing of it is an unexpected failure, and each flow still ends when it is told to."""
        chance = random.Random(3)
        records = ["a 0", "a 3", "a 9", "p 0", "p 4", "e 0", "e 4", "d", "x", "x why", "a", "z 1", ""]
        for _ in range(25):
            scene = self.resumable(ends_with_local=chance.random() < 0.5, ends_with_peer=chance.random() < 0.3)
            with contextlib.suppress(OSError):
                for _ in range(chance.randrange(1, 8)):
                    self.do_something(scene, chance.choice(records), chance)
            scene.finish()
            self.scenes.remove(scene)

    def do_something(self, scene, record, chance):
        match chance.randrange(6):
            case 0:
                scene.peer.data(b"four"[: chance.randrange(1, 5)])
            case 1:
                scene.local.sendall(b"local")
            case 2:
                scene.local.shutdown(socket.SHUT_WR)
            case 3 if not scene.flow.done.called:
                scene.reconnect().sock.close()
            case _:
                self.say(scene, record)


class OwnFlows(Scenes):
    """Two flows of ours, one at each end of connections that are cut at random."""

    def pair(self, role):
        near, far = socket.socketpair()
        near.settimeout(patience_s())
        ended = threading.Event()
        flow = Flow(self.relay, far, FlowTerms(role=role, window_bytes=WINDOW, limits=FlowLimits(linger_s=5)))
        flow.done.addBoth(lambda outcome: (setattr(flow, "outcome", outcome), ended.set()))
        return flow, near, ended

    def join(self, *flows):
        ends = tcp_pair()
        for sock, flow in zip(ends, flows, strict=True):
            sock.setblocking(False)
            blockingCallFromThread(reactor, flow.attach, PeerConnection(sock))
        return ends

    def wait_for_bytes(self, flow, size, receiver):
        before = flow.bytes_in
        wait_for("some bytes", lambda: flow.bytes_in >= before + size or not receiver.is_alive())

    @in_thread
    def test_every_byte_arrives_once_whatever_is_cut(self):
        chance, size = random.Random(7), 24 * MIB
        ends = [self.pair(role) for role in (Role.SERVER, Role.CLIENT)]
        payloads = [chance.randbytes(size) for _ in ends]
        sums = [None, None]

        def send(number):
            near = ends[number][1]
            for start in range(0, size, 1 << 18):
                near.sendall(payloads[number][start : start + (1 << 18)])
            near.shutdown(socket.SHUT_WR)

        def receive(number):
            digest = hashlib.sha256()
            while piece := ends[number][1].recv(1 << 18):
                digest.update(piece)
            sums[number] = digest.hexdigest()

        threads = [threading.Thread(target=act, args=(n,)) for act in (send, receive) for n in (0, 1)]
        socks = self.join(*(end[0] for end in ends))
        for thread in threads:
            thread.start()
        cuts = 0
        while threads[2].is_alive() or threads[3].is_alive():
            self.wait_for_bytes(ends[0][0], chance.choice([1, 100_000, MIB]), threads[2])
            if cuts < 12 and threads[2].is_alive() and threads[3].is_alive():
                cuts += 1
                for sock in socks[: chance.choice([1, 2])]:
                    with contextlib.suppress(OSError):
                        sock.shutdown(chance.choice([socket.SHUT_RD, socket.SHUT_RDWR]))
                socks = self.join(*(end[0] for end in ends))
        for thread in threads:
            thread.join()
        self.assertGreater(cuts, 0)
        self.assertEqual(sums, [hashlib.sha256(payload).hexdigest() for payload in reversed(payloads)])
        for flow, near, ended in ends:
            near.close()
            self.assertTrue(ended.wait(patience_s()))
            self.assertTrue(flow.outcome.orderly, flow.outcome)
