"""The network is lost while a guest is on its way: it makes no guest stand still for longer than was said."""

import time

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from mtunnel_tx.errors import BackendFailed, TimedOut
from tests.backends.qemucase import DISK_BYTES, QemuCase, guest
from tests.backends.stalling import StallingPath
from tests.backends.test_migration import Migrating
from tests.patience import patience_s

LIMIT_S = 1.0


class SwitchoverTest(Migrating):
    """Both connections go through paths that can stall."""

    async def start(self, **more):
        await self.begin(**more)
        self.nbd = await self.path("nbd", self.incoming.nbd_socket)
        self.memory = await self.path("memory", self.incoming.migrate_socket)

    async def path(self, name, target):
        path = await StallingPath.open(self.folder / name, target)
        self.addCleanup(path.close)
        return path

    async def mirror(self, running):
        await running.start_mirror("scsi0", self.folder / "nbd", "drive-scsi0", reconnect_s=2)
        await running.until_ready()

    async def beats(self, more=4):
        ticks = len(self.sent.beats)
        await self.until(lambda: len(self.sent.beats) >= ticks + more, "ticks there")

    async def assert_runs_on(self, running):
        """As after a failure: the sockets are closed, everything is ended, and the guest runs."""
        await self.nbd.close()
        if await running.migration() not in ("failed", "cancelled"):
            await running.cancel_migration()
        await running.end_mirrors()
        self.assertEqual(await running.status(), "running")
        await self.beats()
        self.assertEqual({flag for _, flag in self.sent.beats}, {"."})

    async def test_no_write_of_the_guest_waits_for_the_network(self):
        await self.start()
        async with self.there.machines.attached(100) as running:
            await self.mirror(running)
            self.nbd.stall()
            await self.beats(40)  # each writes to the disk
            self.nbd.flow()
            await running.start_migration(self.folder / "memory")
            await running.until_switchover()
            await running.complete_mirrors()
            await running.switch_over()
        await self.here.machines.wait_whole(200)
        await self.here.machines.resume(200)
        await self.until(lambda: len(self.got.beats) >= 3, "ticks here")
        await self.here.machines.stop(200)
        self.assert_no_gap()
        self.assert_disk_kept()

    async def test_lost_before_the_switch_over(self):
        """QEMU waits for the mirror as soon as the guest stands still, and answers once its socket is closed."""
        await self.start()
        async with self.there.machines.attached(100) as running:
            await self.mirror(running)
            self.nbd.stall()
            await self.beats(10)
            began_s = time.monotonic()
            await running.start_migration(self.folder / "memory")
            error = await self.fails(TimedOut, running.until_switchover(limit_s=LIMIT_S))
            self.assertEqual(error.text, "its disks were not level within 1 s")
            await self.assert_runs_on(running)
            self.assertLess(time.monotonic() - began_s, patience_s(10))

    async def test_lost_in_the_switch_over(self):
        await self.start()
        async with self.there.machines.attached(100) as running:
            await self.mirror(running)
            await running.start_migration(self.folder / "memory")
            await running.until_switchover(limit_s=LIMIT_S)
            self.nbd.stall()
            error = await self.fails(TimedOut, running.complete_mirrors())
            self.assertEqual(error.text, "its disks were not level within 1 s")
            await self.assert_runs_on(running)

    async def test_a_paused_guest_has_all_the_time(self):
        await self.start()
        await self.there.ask(100, "stop")
        async with self.there.machines.attached(100) as running:
            await self.mirror(running)
            await running.start_migration(self.folder / "memory")
            await running.until_switchover(limit_s=LIMIT_S)
            self.nbd.stall()
            completed = Deferred.fromCoroutine(running.complete_mirrors())
            await deferLater(reactor, 2 * LIMIT_S)
            self.assertFalse(completed.called)
            self.nbd.flow()
            await completed
            await running.switch_over()
        self.assertEqual((await self.here.machines.state(200)).status, "paused")

    async def test_the_rest_cannot_be_sent(self):
        await self.start()
        async with self.there.machines.attached(100) as running:
            await self.mirror(running)
            await running.start_migration(self.folder / "memory", limit_bytes_s=1 << 20, downtime_ms=60_000)
            await running.until_switchover()
            await running.complete_mirrors()
            self.memory.stall()
            error = await self.fails(TimedOut, running.switch_over(limit_s=LIMIT_S))
            self.assertEqual(error.text, "the rest of its memory was not sent within 1 s")
            self.assertEqual(await running.migration(), "failed")
            await self.assert_runs_on(running)
        self.memory.flow()
        await self.fails(BackendFailed, self.here.machines.wait_whole(200))


class SlowedTest(QemuCase):
    async def test_a_guest_that_is_ahead_of_its_copy(self):
        """Whatever kind of disk it is, and whichever program took it off."""
        host = self.host()
        volumes = [host.volumes.make(name) for name in ("a.raw", "v.raw", "t.raw")]
        conf = guest(volumes[0], f"virtio1: {volumes[1]},mbps_wr=7", f"sata2: {volumes[2]}")
        await host.machines.local_start(100, conf, self.report)
        for drive in ("scsi0", "virtio1", "sata2"):
            name, size = f"mirror-{drive}", DISK_BYTES
            await host.ask(100, "blockdev-add", driver="null-co", size=size, **{"node-name": name})
            job = {"job-id": name, "device": f"drive-{drive}", "target": name, "sync": "full", "auto-dismiss": False}
            await host.ask(100, "blockdev-mirror", **job)
        async with host.machines.attached(100) as running:
            await running.adopt_mirrors()
            for drive in ("scsi0", "virtio1", "sata2"):
                await running.slow_down(drive, 3 << 20)
        self.assertEqual(await self.limits(host), [3 << 20] * 3)
        async with host.machines.attached(100) as running:
            await running.adopt_mirrors()
            await running.end_mirrors()
        self.assertEqual(await self.limits(host), [0] * 3)
        limits = await host.ask(100, "qom-get", path="/objects/throttle-drive-virtio1", property="limits")
        self.assertEqual(limits["bps-write"], 7 << 20)

    async def limits(self, host):
        return [entry["inserted"]["bps_wr"] for entry in await host.ask(100, "query-block") if "inserted" in entry]
