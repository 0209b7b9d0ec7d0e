"""The last moment of a move, on a monitor that answers as it is told: what counts as sent, and what counts as a no."""

from types import SimpleNamespace

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.migration import LIMIT_S, RunningMachine
from mtunnel_tx.backends.qmp import MonitorLost, QmpCommandFailed
from mtunnel_tx.backends.qmpactions import wake
from mtunnel_tx.errors import TimedOut, WrongState


class FakeMonitor:
    """`states`: what query-migrate says before the connection is cut, and after it."""

    def __init__(self, *states, error=None):
        self.states = states
        self.error = error
        self.is_cut = False

    def listen(self, _heed):
        return lambda: None

    async def call(self, command, _arguments=None, **_options):
        if command == "cont" and self.error is not None:
            raise self.error
        self.is_cut = self.is_cut or command == "yank"
        return {"status": self.states[self.is_cut]} if command == "query-migrate" else {}


class CutTests(SynchronousTestCase):
    def end(self, *states):
        """Returns: the error, or None."""
        clock = Clock()
        machine = RunningMachine(clock, FakeMonitor(*states), SimpleNamespace(pid=0))
        sent = Deferred.fromCoroutine(machine.switch_over(limit_s=3))
        ended = []
        sent.addBoth(ended.append)
        clock.pump([1] * (3 + int(LIMIT_S) + 2))
        self.assertEqual(len(ended), 1)
        return ended[0] and ended[0].value

    def test_the_last_byte_has_gone_out_all_the_same(self):
        self.assertIsNone(self.end("device", "completed"))

    def test_by_post_copy_the_rest_has_no_connection_any_more(self):
        """It must not be told to run there."""
        for after in ("postcopy-active", "postcopy-paused"):
            self.assertIsInstance(self.end("device", after), TimedOut)

    def test_what_was_not_sent(self):
        self.assertIsInstance(self.end("device", "failed"), TimedOut)


class WakeTests(SynchronousTestCase):
    def fails(self, error):
        return self.failureResultOf(Deferred.fromCoroutine(wake(FakeMonitor("", "", error=error), "paused"))).value

    def test_only_what_qemu_refuses_does_not_run(self):
        refused = self.fails(QmpCommandFailed("cont", "GenericError", "no"))
        self.assertIsInstance(refused, WrongState)
        self.assertEqual(refused.text, "QEMU refuses 'cont': no")
        for error in (MonitorLost("lost"), TimedOut("late")):
            self.assertIs(self.fails(error), error)
