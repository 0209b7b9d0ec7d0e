"""How long QEMU may wait for the target's export, as the guest stands still meanwhile."""

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.source.qemu.mirroring import ANSWERS_S, start_mirror

PATH = Path("/out0")


class FakeMachine:
    """Waits for the export, until it is answered or its connection is cut."""

    def __init__(self):
        self.waits = []
        self.job = None

    async def start_mirror(self, drive, path, export, *, limit_bytes_s, connected):
        self.waits.append(Deferred())
        await self.waits[-1]
        connected()
        self.job = Deferred()
        await self.job

    def fail(self, text="Failed to read initial magic"):
        self.waits[-1].errback(BackendFailed(text))


class FakeForwards:
    def __init__(self, machine, clock):
        self.machine, self.clock = machine, clock
        self.reached = Deferred()
        self.prepared = 0
        self.has_come = True

    async def prepare(self, path):
        self.prepared += 1
        await self.reached

    def cut_fresh(self, path):
        assert path == PATH
        if self.has_come:
            self.clock.callLater(0, self.machine.fail)
        return self.has_come


class AnswerTests(SynchronousTestCase):
    def setUp(self):
        self.clock, self.machine = Clock(), FakeMachine()
        self.forwards = FakeForwards(self.machine, self.clock)
        started = start_mirror(self.machine, self.forwards, self.clock, "scsi0", PATH, "drive-scsi0", limit_bytes_s=0)
        self.started = Deferred.fromCoroutine(started)

    def test_it_does_not_begin_before_the_target_is_reached(self):
        self.assertEqual(self.machine.waits, [])
        self.forwards.reached.callback(None)
        self.machine.waits[-1].callback(None)
        self.machine.job.callback(None)
        self.successResultOf(self.started)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_is_not_answered_is_cut_and_tried_again(self):
        self.forwards.reached.callback(None)
        self.forwards.reached = Deferred()
        self.clock.advance(ANSWERS_S[0])
        self.assertEqual((self.forwards.prepared, len(self.machine.waits)), (2, 1))
        self.clock.advance(1000)  # the target is out of reach, and the guest runs
        self.forwards.reached.callback(None)
        self.machine.waits[-1].callback(None)
        self.machine.job.callback(None)
        self.successResultOf(self.started)

    def test_once_it_is_answered_nothing_is_cut(self):
        self.forwards.reached.callback(None)
        self.machine.waits[-1].callback(None)
        self.clock.advance(1000)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.machine.job.callback(None)
        self.successResultOf(self.started)

    def test_one_that_comes_late_is_cut_when_it_has_come(self):
        self.forwards.reached.callback(None)
        self.forwards.has_come = False
        self.clock.advance(ANSWERS_S[0])
        self.assertEqual(self.forwards.prepared, 1)
        self.forwards.has_come = True
        self.clock.advance(ANSWERS_S[0])
        self.assertEqual(self.forwards.prepared, 2)

    def test_a_refusal_is_one(self):
        self.forwards.reached.callback(None)
        self.machine.fail("no export of that name")
        self.assertIn("no export of that name", self.failureResultOf(self.started, BackendFailed).value.text)
        self.assertEqual((self.forwards.prepared, self.clock.getDelayedCalls()), (1, []))

    def test_not_for_ever(self):
        self.forwards.reached.callback(None)
        for answer_s in ANSWERS_S:
            self.clock.advance(answer_s)
        text = self.failureResultOf(self.started, BackendFailed).value.text
        self.assertEqual(text, "the target's export of scsi0 did not answer within 16 s")
