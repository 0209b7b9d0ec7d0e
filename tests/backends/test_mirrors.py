"""Mirrors that an earlier program has left, on a monitor that remembers what it was told."""

from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.mirrors import MirroredMachine


class FakeMonitor:
    """QEMU's jobs and throttled disks."""

    def __init__(self, *jobs, throttled=()):
        self.jobs = dict.fromkeys(jobs, "ready")
        self.groups = {drive: f"mirror-{drive}" for drive in throttled}
        self.told = []

    def listen(self, _heed):
        return lambda: None

    async def call(self, command, arguments=None, **_options):
        arguments = arguments or {}
        self.told.append((command, arguments.get("node-name") or arguments.get("id")))
        match command:
            case "query-jobs":
                return [{"id": job, "status": status} for job, status in self.jobs.items()]
            case "query-block-jobs":
                return []
            case "query-block":
                return [{"qdev": drive, "inserted": {"group": group}} for drive, group in self.groups.items()]
            case "blockdev-mirror":
                self.jobs[arguments["job-id"]] = "ready"
            case "block-job-cancel":
                self.jobs[arguments["device"]] = "concluded"
            case "job-dismiss":
                del self.jobs[arguments["id"]]
            case "block_set_io_throttle" if not arguments["bps_wr"]:
                del self.groups[arguments["id"]]
        return {}


class EarlierTests(SynchronousTestCase):
    def run_on(self, monitor, work):
        machine = MirroredMachine(Clock(), monitor)
        self.successResultOf(Deferred.fromCoroutine(work(machine)))
        return machine

    def test_only_the_job_of_the_same_disk_is_ended(self):
        """A disk that drops out of a move would be handed over half copied."""
        monitor = FakeMonitor("mirror-scsi0", "mirror-scsi1")

        async def start(machine):
            for drive in ("scsi0", "scsi1"):
                await machine.start_mirror(drive, Path("/socket"), "export")
            self.assertEqual([mirror.drive for mirror in await machine.mirrors()], ["scsi0", "scsi1"])

        self.run_on(monitor, start)
        self.assertEqual(monitor.jobs, {"mirror-scsi0": "ready", "mirror-scsi1": "ready"})

    def test_a_limit_goes_whose_job_is_gone(self):
        """The program was killed between the two."""
        monitor = FakeMonitor(throttled=("scsi0",))

        async def settle(machine):
            await machine.adopt_mirrors()
            await machine.end_mirrors()

        self.run_on(monitor, settle)
        self.assertEqual(monitor.groups, {})

    def test_a_node_is_cut_before_it_is_removed(self):
        """QEMU would flush it, and stand still until a lost connection is given up."""
        monitor = FakeMonitor()

        async def move(machine):
            await machine.start_mirror("scsi0", Path("/socket"), "export")
            monitor.told.clear()
            await machine.end_mirrors()

        self.run_on(monitor, move)
        words = [command for command, _ in monitor.told]
        self.assertLess(words.index("yank"), words.index("blockdev-del"))
