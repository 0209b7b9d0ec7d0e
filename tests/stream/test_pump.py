"""The pump: the same as the relay on the reactor, in threads; with TLS, both ways to OpenSSL; with and without it."""

import queue
import sys
import threading
from types import ModuleType
from unittest.mock import patch

from twisted.internet import reactor
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from mtunnel_tx.stream.engine import NativeEngine, PublicEngine, best_engine
from mtunnel_tx.stream.gathering import SHORT_REST_S
from mtunnel_tx.stream.mask import find_native, unmask_slowly
from mtunnel_tx.stream.native import Native
from mtunnel_tx.stream.pump import Pump
from tests.patience import patience_s
from tests.stream.relaying import RelayTests
from tests.stream.scene import Scenes, in_thread, read_exactly


def ask(thread, question):
    """Ask a pump thread in its own thread, when it has finished its pass."""
    answer = queue.Queue()
    thread._order(lambda: answer.put(question(thread)))
    return answer.get(timeout=patience_s())


class PumpTests(RelayTests):
    def tearDown(self):
        def check(_):
            left = [thread.name for thread in threading.enumerate() if thread.name.startswith("pump-")]
            self.assertEqual(left, [])

        return super().tearDown().addCallback(check)


class TlsPump(PumpTests, TestCase):
    def setUp(self):
        self.relay = Pump(reactor, threads=1)

    @in_thread
    def test_idle_flows_hold_no_blocks(self):
        scenes = [self.scene() for _ in range(4)]
        for scene in scenes:
            scene.peer.data(bytes(300_000))
            self.assertEqual(scene.local.recv(1), b"\0")
        for scene in scenes:
            read = 1
            while read < 300_000:
                read += len(scene.local.recv(1 << 18))
            scene.local.sendall(b"x")
            scene.peer.payload(1)
        for thread in self.relay._threads:
            self.assertEqual(ask(thread, lambda thread: thread.tools.blocks.lent), 0)

    @in_thread
    def test_a_flow_that_only_goes_on_looks_at_no_other_socket(self):
        self.scene()

        def looks(thread, due_s):
            (job,) = thread._jobs.values()
            job.peer_event = job.local_event = False
            job.due_s = thread._due_s = due_s
            self.assertIn(id(job), thread._take_due())
            return job.peer_event, job.local_event

        (thread,) = self.relay._threads
        self.assertEqual(ask(thread, lambda thread: looks(thread, 0.0)), (False, False))
        self.assertEqual(ask(thread, lambda thread: looks(thread, 0.1)), (True, True))

    @in_thread
    def test_commands_do_not_wait_for_payload(self):
        busy, urgent = self.scene(), self.scene(urgent=True)
        gate = threading.Event()
        self.relay._threads[0]._order(lambda: gate.wait(2 * patience_s()))
        busy.peer.data(b"payload")
        urgent.peer.data(b"command")
        self.assertEqual(read_exactly(urgent.local, 7), b"command")
        urgent.local.sendall(b"reply")
        self.assertEqual(urgent.peer.payload(5), b"reply")
        gate.set()
        self.assertEqual(read_exactly(busy.local, 7), b"payload")

    @in_thread
    def test_a_bug_ends_one_flow_not_the_others(self):
        bad, good = self.scene(), self.scene()
        bad.flow.traffic.interest = lambda: 1 // 0
        bad.peer.data(b"x")
        self.assertFalse(bad.outcome().orderly)
        self.assertEqual(bad.outcome().reason, "internal error")
        good.peer.data(b"x")
        self.assertEqual(good.local.recv(1), b"x")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class GatheringPump(Scenes, TestCase):
    """Its threads do not sleep, but say when they would."""

    def setUp(self):
        self.rests = queue.Queue()
        self.relay = Pump(reactor, threads=1, rest=self.rests.put)

    @in_thread
    def test_pieces_may_gather_requests_may_not_wait(self):
        scene = self.scene()
        scene.peer.data(b"request")
        self.assertEqual(read_exactly(scene.local, 7), b"request")
        scene.local.sendall(b"reply")
        self.assertEqual(scene.peer.payload(5), b"reply")
        self.assertTrue(ask(self.relay._threads[0], lambda _thread: self.rests.empty()))
        scene.peer.data(bytes(16_000))
        read_exactly(scene.local, 16_000)
        self.assertEqual(self.rests.get(timeout=patience_s()), SHORT_REST_S)


class PlainPump(PumpTests, TestCase):
    tls = False

    def setUp(self):
        self.relay = Pump(reactor, threads=3, unmask=unmask_slowly)


class NativePlainPump(PumpTests, TestCase):
    """The native module where there is no TLS."""

    tls = False

    def setUp(self):
        self.relay = Pump(reactor, threads=3)


class PurePump(PumpTests, TestCase):
    """What runs where the native module cannot be used."""

    def setUp(self):
        self.relay = Pump(reactor, threads=3, native=Native(None, "the test wants none"))


class PublicPump(PumpTests, TestCase):
    """pyOpenSSL's documented methods only."""

    def setUp(self):
        self.relay = Pump(reactor, threads=1, unmask=unmask_slowly, engine=PublicEngine)


class Choice(SynchronousTestCase):
    def setUp(self):
        if sys.prefix == sys.base_prefix and find_native() is None:
            raise SkipTest("this system's autobahn has no masker in native code")

    def test_this_environment_has_the_fast_ways(self):
        self.assertIs(best_engine(), NativeEngine)
        self.assertIsNotNone(find_native())

    def test_native_masker_is_the_plain_definition(self):
        unmask = find_native()
        for size in (0, 1, 3, 15, 16, 17, 31, 100, 4097):
            for start in range(5):
                data = bytearray(range(256)) * 20
                expected = bytearray(data)
                unmask_slowly(memoryview(expected)[start : start + size], b"\x11\x22\x33\x44")
                unmask(memoryview(data)[start : start + size], b"\x11\x22\x33\x44")
                self.assertEqual(data, expected)


class MaskWarning(SynchronousTestCase):
    """Autobahn's masker is not there, as in Debian's package of it."""

    def setUp(self):
        gone = patch.dict(sys.modules, {"_nvx_xormasker": None})  # a copy of the table would not be asked
        gone.start()
        self.addCleanup(gone.stop)
        self.warnings = []
        globalLogPublisher.addObserver(self.heed)
        self.addCleanup(globalLogPublisher.removeObserver, self.heed)

    def heed(self, event):
        text = formatEvent(event)
        if event["log_level"] is LogLevel.warn and "masker" in text:  # other tests' objects may say something, too
            self.warnings.append(text)

    def test_none_where_the_native_module_undoes_masks(self):
        Pump(reactor, native=Native(ModuleType("batch")))
        self.assertEqual(self.warnings, [])

    def test_said_where_python_does(self):
        Pump(reactor, native=Native(None, "the test wants none"))
        self.assertEqual(self.warnings, ["autobahn's native masker is missing: masked streams will be slow"])
