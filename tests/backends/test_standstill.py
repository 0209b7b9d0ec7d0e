"""A guest's standstill is measured by the time in which the program could do something about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.standstill import Standstill
from mtunnel_tx.errors import TimedOut


class SilentMonitor:
    """QEMU says what the test has it say."""

    def listen(self, heed: Callable[..., object]) -> Callable[[], None]:
        self.say = heed
        return lambda: None


class StandstillTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.monitor = Clock(), SilentMonitor()
        self.standstill = Standstill(self.clock, self.monitor, 10.0)  # type: ignore[arg-type]
        self.work: Deferred[str] = Deferred()
        self.limited = Deferred.fromCoroutine(self.standstill.limited(self.wait(), "too late"))

    async def wait(self) -> str:
        return await self.work

    def pass_time(self, steps_s: Sequence[float]) -> None:
        for step_s in steps_s:
            self.clock.advance(step_s)

    def assert_ends(self) -> None:
        self.assertIn("too late within 10 s", str(self.failureResultOf(self.limited, TimedOut).value))

    def test_it_is_limited(self) -> None:
        self.pass_time([0.5] * 19)
        self.assertNoResult(self.limited)
        self.pass_time([0.5])
        self.assert_ends()

    def test_from_the_stop_on(self) -> None:
        self.pass_time([0.5] * 10)
        self.monitor.say("STOP", {})
        self.pass_time([0.5] * 19)
        self.assertNoResult(self.limited)
        self.pass_time([0.5])
        self.assert_ends()

    def test_a_program_that_was_stopped_has_time_when_it_wakes(self) -> None:
        """What QEMU has said meanwhile is read only after the timers."""
        self.pass_time([0.5, 60.0])
        self.assertNoResult(self.limited)
        self.work.callback("level")
        self.assertEqual(self.successResultOf(self.limited), "level")

    def test_what_it_did_not_run_counts_as_little_only(self) -> None:
        self.pass_time([0.5, 60.0, *[0.5] * 14])
        self.assertNoResult(self.limited)
        self.pass_time([0.5])
        self.assert_ends()

    def test_a_busy_machine_has_an_end_too(self) -> None:
        self.pass_time([5.0] * 4)
        self.assertNoResult(self.limited)
        self.pass_time([5.0])
        self.assert_ends()

    def test_a_guest_that_has_run_until_just_now(self) -> None:
        """The time of its standstill never begins in the future."""
        self.pass_time([0.5])
        self.clock.rightNow += 60.0
        self.standstill.see_it_run()
        self.pass_time([0.0, *[0.5] * 19])
        self.assertNoResult(self.limited)
        self.pass_time([0.5])
        self.assert_ends()

    def tearDown(self) -> None:
        self.limited.addErrback(lambda _: None)
        self.limited.cancel()
        self.assertEqual(self.clock.getDelayedCalls(), [])
