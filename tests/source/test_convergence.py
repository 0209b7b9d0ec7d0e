from dataclasses import replace
from types import SimpleNamespace

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import TimedOut
from mtunnel_tx.source.pace import Pace
from mtunnel_tx.source.patience import OnTimeout, Patience
from mtunnel_tx.source.qemu.convergence import MemoryWatch, MirrorWatch
from mtunnel_tx.source.qemu.copying import LiveCopy
from tests.source.test_live import LiveCase

MIB = 1 << 20


def mirror(done, total, *, ready=False, drive="scsi0"):
    return SimpleNamespace(drive=drive, done_bytes=done * MIB, total_bytes=total * MIB, ready=ready)


def memory(passes, remaining, *, throttle=0, status="active"):
    rates = {"dirty_bytes_s": 20.0 * MIB, "sent_bytes_s": 5.0 * MIB}
    sizes = {"transferred_bytes": passes * MIB, "remaining_bytes": remaining * MIB, "downtime_ms": 0}
    return SimpleNamespace(status=status, passes=passes, throttle_percent=throttle, **rates, **sizes)


class MirrorWatchTest(SynchronousTestCase):
    def said(self, *states, every_s=2):
        watch = MirrorWatch()
        return [
            watch.see(number * every_s, state if isinstance(state, list) else [state])
            for number, state in enumerate(states)
        ]

    def test_a_copy_that_catches_up_is_left_alone(self):
        self.assertEqual(self.said(mirror(0, 0), mirror(0, 16), mirror(10, 16), mirror(18, 20, ready=True)), [[]] * 4)

    def test_one_that_is_not_level_yet_but_comes_nearer(self):
        self.assertEqual(self.said(mirror(0, 16), mirror(15, 36), mirror(26, 40), every_s=6), [[]] * 3)

    def test_a_disk_that_was_sent_once_and_is_not_level(self):
        states = (mirror(0, 16), mirror(15, 20), mirror(25, 26), mirror(65, 76))
        *quiet, (advice,) = self.said(*states, every_s=5)
        self.assertEqual(quiet, [[]] * 3)
        self.assertEqual((advice.drive, advice.writes_bytes_s), ("scsi0", 6 * MIB))
        self.assertEqual(
            advice.say,
            "scsi0: the guest writes 10.0 MiB/s, 8.0 MiB/s are copied, 11.0 MiB are left; "
            "it may write 6.0 MiB/s from now on",
        )

    def test_nothing_is_left(self):
        """QEMU has not said yet that it is ready; and of a disk that is, a bit is always left."""
        for states in ([mirror(16, 16)] * 5, [mirror(17, 18, ready=True), mirror(20, 21, ready=True)]):
            self.assertEqual(self.said(mirror(0, 16), *states, every_s=9), [[]] * (len(states) + 1))

    def test_one_that_was_level_and_falls_behind(self):
        states = (mirror(0, 16), mirror(16, 16, ready=True), mirror(36, 66, ready=True))
        *_, (advice,) = self.said(*states, every_s=5)
        self.assertEqual(advice.writes_bytes_s, 3 * MIB)

    def test_step_by_step_and_not_slower_than_a_disk_can_be(self):
        """Small writes: each makes a whole block be copied."""
        states = [mirror(16 + 80 * number, 16 + 100 * number) for number in range(9)]
        steps = [advice[0].writes_bytes_s for advice in self.said(mirror(0, 16), *states, every_s=10) if advice]
        self.assertEqual(steps, [6 * MIB, 3 * MIB, 3 * MIB // 2, MIB, None])

    def test_a_limit_that_is_not_needed_any_more_goes(self):
        behind = (mirror(0, 16), mirror(15, 20), mirror(25, 26), mirror(65, 76))
        level = [mirror(76 + number, 76 + number, ready=True) for number in (0, 1, 2)]
        *_, first, (advice,) = self.said(*behind, *level[:2], every_s=5)
        self.assertEqual((first, advice.drive, advice.writes_bytes_s), ([], "scsi0", 0))
        self.assertEqual(advice.say, "scsi0: its copy is level; the guest may write as fast as it likes again")
        self.assertEqual(self.said(*behind, *level, every_s=5)[-1], [])

    def test_one_that_is_needed_is_raised_in_small_steps(self):
        behind = (mirror(0, 16), mirror(15, 20), mirror(25, 26), mirror(65, 76))
        level = [mirror(76 + number, 76 + number, ready=True) for number in (0, 28)]
        *_, (advice,) = self.said(*behind, *level, every_s=5)
        self.assertEqual(advice.writes_bytes_s, 7.5 * MIB)

    def test_it_is_said_again_after_a_while(self):
        states = [mirror(16 + number, 20 + 2 * number) for number in range(9)]
        said = [advice[0].say for advice in self.said(mirror(0, 16), *states, every_s=10) if advice]
        self.assertTrue(said[0].endswith("; it may write 1.0 MiB/s from now on"))
        self.assertEqual(len(said), 3)
        self.assertIn("are left: --timeout with --on-timeout", said[1])


class MemoryWatchTest(SynchronousTestCase):
    def advised(self, *states, downtime_ms=100, max_ms=1000, every_s=4):
        watch = MemoryWatch(downtime_ms, max_ms)
        return [watch.see(number * every_s, state) for number, state in enumerate(states)]

    def test_passes_that_become_shorter_are_left_alone(self):
        states = (memory(1, 100), memory(1, 50), memory(2, 40), memory(3, 20), memory(4, 10))
        self.assertEqual(self.advised(*states), [[]] * 5)

    def test_steps(self):
        told = self.advised(memory(1, 100), *(memory(number, 40) for number in range(2, 20)))
        told = [advice for (advice,) in filter(None, told)]
        self.assertEqual([advice.downtime_ms for advice in told], [200, 400, 800, 1000, None])
        self.assertEqual(
            told[0].say, "memory: the guest changes 20.0 MiB/s, 5.0 MiB/s are sent: it may stand still for 200 ms now"
        )
        self.assertIn("for 1000 ms at most: --max-downtime, --auto-converge", told[-1].say)

    def test_not_too_fast_and_not_too_often(self):
        advised = self.advised(memory(1, 100), *(memory(number, 40) for number in range(2, 40)), every_s=1)
        steps = [number for number, advice in enumerate(advised) if advice]
        self.assertEqual(steps, [2, 5, 8, 11])  # the next one is the last step's 30 s later

    def test_the_same_pass_counts_once(self):
        self.assertEqual(self.advised(memory(1, 9), memory(2, 4), memory(2, 3), memory(2, 2)), [[]] * 4)

    def test_a_guest_that_is_slowed_down_is_told(self):
        advised = self.advised(memory(1, 9), memory(2, 4), memory(3, 4, throttle=20))
        self.assertIn("changes 20.0 MiB/s, slowed down by 20 %", advised[-1][0].say)

    def test_what_is_done_already_is_no_advice(self):
        advised = self.advised(memory(1, 9), memory(2, 4), memory(3, 4, throttle=20), downtime_ms=1000)
        self.assertIn("at most: --max-downtime, --timeout with --on-timeout", advised[-1][0].say)

    def test_nothing_is_said_once_it_stands_still(self):
        self.assertEqual(self.advised(memory(1, 9), memory(2, 4), memory(3, 4, status="pre-switchover"))[-1], [])


class NoForwards:
    """Nothing is joined."""

    async def prepare(self, path):
        pass

    def cut_fresh(self, path):
        return False


class LimitsTest(LiveCase):
    """What QEMU is told, and what those who watch are."""

    async def test_the_downtime_is_raised(self):
        self.machines.memory_states = [memory(1, 100), memory(2, 40), memory(3, 40)]
        await self.migrate(bwlimit_kib_s=2048, patience=Patience(auto_converge=True, max_downtime_s=0.15))
        self.assertEqual(self.machines.limits, [(2 * MIB, 100, True), (2 * MIB, 150)])
        limits = "memory: speed: 2.0 MiB/s; downtime: 100 ms, 150 ms at most"
        self.assertIn(limits, self.watcher.said)
        self.assert_moved()

    async def test_the_guest_writes_slower(self):
        clock = Clock()
        self.machines.mirror_states = [[mirror(0, 16)], [mirror(10, 20)], [mirror(30, 80)]]
        self.machines.told = lambda: clock.advance(10)
        await self.copy(clock).disks({"scsi0": (self.folder, "drive-scsi0")})
        self.assertEqual(self.machines.slowed, [("scsi0", 3 * MIB // 2)])
        self.assertIn("it may write 1.5 MiB/s from now on", self.watcher.said[-1])

    def copy(self, clock):
        pace = Pace(disks={"scsi0": 0}, memory_bytes_s=0, downtime_ms=100)
        return LiveCopy(self.machines, NoForwards(), replace(self.world(), reactor=clock), pace, Patience(), None)

    async def test_a_disk_that_falls_behind_while_the_memory_is_sent(self):
        clock = Clock()
        self.machines.mirror_states = [[mirror(0, 16)]]
        level, later = mirror(16, 16, ready=True), mirror(36, 66, ready=True)
        self.machines.later_mirrors = [[level], [later]]
        self.machines.memory_states = [memory(1, 100), memory(1, 90), memory(1, 0, status="pre-switchover")]
        self.machines.told = lambda: clock.advance(10)
        copy = self.copy(clock)
        await copy.disks({"scsi0": (self.folder, "drive-scsi0")})
        await copy.memory(self.folder)
        self.assertEqual(self.machines.slowed, [("scsi0", 3 * MIB // 2)])

    async def test_limits_of_the_standstill(self):
        await self.migrate(patience=Patience(switch_s=7, max_downtime_s=2))
        self.assertEqual((self.machines.still_s, self.machines.switch_s), (7, 9))

    async def test_time_is_up(self):
        self.machines.memory_states = [memory(1, 100)]
        with self.assertRaises(TimedOut) as caught:
            await self.migrate(patience=Patience(timeout_s=1e-6))
        self.assertEqual(
            caught.exception.text,
            "it was not there within 1e-06 s: memory: the guest changes 20.0 MiB/s, 5.0 MiB/s are sent",
        )
        self.assert_back("cancel", "adopt scsi0", "adopt virtio1", said="runs on here")

    async def test_it_stands_still_until_it_is_there(self):
        self.machines.memory_states = [memory(1, 100)]
        await self.migrate(patience=Patience(timeout_s=1e-6, on_timeout=OnTimeout.PAUSE))
        self.assertEqual(self.machines.deeds, ["mirror", "pause", "memory", "level", "rest", "end"])
        self.assertIn("resume", self.told())
        self.assert_moved()
