"""Live migrations between two hosts' hypervisors, over UNIX sockets, with real QEMUs and a guest that ticks."""

import contextlib
import os
import signal

from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater

from mtunnel_tx.backends import blocknodes
from mtunnel_tx.backends.process import listen_unix
from mtunnel_tx.backends.qmp import connect_monitor
from mtunnel_tx.errors import BackendFailed, WrongState
from mtunnel_tx.ports.machines import Incoming
from mtunnel_tx.pve.guestconf import parse_guest_config
from tests.backends.qemucase import DISK_BYTES, QemuCase, guest, listen, ticker
from tests.guest.ticker import read_beats, read_ring
from tests.processes import started_process

RING = 64
MAC = "A2:C0:43:77:08:A0"


class Migrating(QemuCase):
    """`there` is where VM 100 runs, `here` waits for it as VM 200."""

    async def begin(self, *lines, ballast_mib=8, burst=2, **start):
        self.there, self.here = self.host("there"), self.host("here")
        disk = ticker(ballast_mib, burst, ring=RING)
        conf = guest(self.there.volumes.make("a.raw", disk), "freeze: 1", *lines)
        await self.there.machines.local_start(100, conf, self.report)
        self.sent = await self.there.serial(100)
        await self.there.machines.resume(100)
        await self.until(lambda: len(self.sent.beats) >= 2, "two ticks")
        await self.receive(guest(self.here.volumes.make("b.raw"), *lines), **start)

    async def receive(self, conf, **start):
        run = self.here.runtime_dir
        self.incoming = Incoming(
            migrate_socket=run / "200.migrate",
            nbd_socket=run / "200_nbd.migrate",
            exports={"scsi0": "local:100/b.raw"},
            from_node="there",
            **start,
        )
        await self.here.machines.start(200, conf, self.incoming, self.report)
        self.got = await self.here.serial(200)

    async def mirror(self, running):
        await running.start_mirror("scsi0", self.incoming.nbd_socket, "drive-scsi0", reconnect_s=1)
        await running.until_ready()

    async def send(self, running):
        await running.start_migration(self.incoming.migrate_socket)
        progress = await running.until_switchover()
        self.assertGreater(progress.transferred_bytes, 1 << 20)
        self.assertFalse((await self.here.machines.state(200)).whole)
        await running.complete_mirrors()
        await running.switch_over()
        self.assertEqual(await running.migration(), "completed")
        self.assertIn(await running.status(), ("finish-migrate", "postmigrate"))

    def assert_no_gap(self):
        """All ticks of both sides, in order, every one well."""
        beats = read_beats(bytes(self.sent.received + self.got.received))  # a line may begin there and end here
        self.assertEqual([number for number, _ in beats], list(range(1, len(beats) + 1)))
        self.assertEqual({flag for _, flag in beats}, {"."})

    def assert_disk_kept(self):
        """The newest sectors of the target's disk hold the newest counters."""
        numbers = read_ring(self.here.volumes.read("b.raw"), ring=RING)
        last = numbers[-1]
        self.assertGreaterEqual(last, self.got.beats[-1][0])
        self.assertEqual(numbers, list(range(max(1, last - RING + 1), last + 1)))


class Whole(Migrating):
    async def test_a_running_vm_moves_with_its_disk(self):
        await self.begin("machine: pc-i440fx-7.2", machine="pc-i440fx-7.2+pve0")
        machines = self.here.machines
        self.assertEqual(len(read_ring(self.here.volumes.read("b.raw"), ring=RING)), 0)
        async with self.there.machines.attached(100) as running:
            self.assertEqual(await running.machine_type(), "pc-i440fx-7.2")
            self.assertIn("kvm64", running.cpu())
            await self.mirror(running)
            early = Deferred.fromCoroutine(machines.wait_whole(200))
            self.assertFalse((await machines.state(200)).whole)
            await self.send(running)
        await early
        state = await machines.state(200)
        self.assertEqual((state.status, state.whole), ("paused", True))
        await machines.stop_nbd(200)
        self.assertEqual(self.got.beats, [])
        reopened = []
        self.patch(blocknodes, "_reopen", lambda _, node: succeed(reopened.append(node["node-name"])))
        await machines.resume(200)
        self.assertEqual(reopened, ["drive-scsi0"])
        self.assertEqual((await machines.state(200)).status, "running")
        await self.until(lambda: len(self.got.beats) >= 5, "ticks here")
        await self.there.machines.stop(100)
        await machines.resume(200)
        await machines.stop(200)
        self.assert_no_gap()
        self.assert_disk_kept()

    async def test_the_source_ends_at_once_though_its_mirrors_have_lost_the_target(self):
        """QEMU flushes them at its end, and would wait until the connection comes back."""
        await self.begin()
        signals = []
        async with self.there.machines.attached(100) as running:
            await running.start_mirror("scsi0", self.incoming.nbd_socket, "drive-scsi0", reconnect_s=3600)
            await running.until_ready()
            await self.send(running)
            await self.here.machines.stop_nbd(200)
            ending = self.there.machines._machines[100].exit
            self.patch(ending, "kill", signals.append)
            await self.there.machines.stop(100)
        self.assertEqual(signals, [])
        await self.here.machines.stop(200)

    async def test_resume_waits_for_the_rest_of_the_state(self):
        """A `cont` before the end of the stream does nothing, though QEMU says it did."""
        await self.begin(ballast_mib=2, burst=0)
        async with self.there.machines.attached(100) as running:
            await self.mirror(running)
            await running.start_migration(self.incoming.migrate_socket, limit_bytes_s=4 << 20)
            resumed = Deferred.fromCoroutine(self.here.machines.resume(200))
            self.assertFalse(resumed.called)
            await running.until_switchover()
            await running.complete_mirrors()
            await running.switch_over()
        await resumed
        self.assertEqual((await self.here.machines.state(200)).status, "running")
        await self.until(lambda: len(self.got.beats) >= 2, "ticks here")
        await self.here.machines.stop(200)
        self.assert_no_gap()

    async def test_a_new_daemon_finishes_what_an_old_one_began(self):
        await self.begin()
        async with self.there.machines.attached(100) as running:
            await self.mirror(running)
            await self.send(running)
        self.here.machines.close()
        later = self.host("here").machines
        state = await later.state(200)
        self.assertEqual((state.status, state.whole), ("paused", True))
        await later.wait_whole(200)
        await later.resume(200)
        await self.until(lambda: len(self.got.beats) >= 2, "ticks here")
        await later.stop(200)
        self.assert_no_gap()

    async def test_a_paused_vm_arrives_paused(self):
        await self.begin()
        await self.there.ask(100, "stop")
        async with self.there.machines.attached(100) as running:
            await self.mirror(running)
            await self.send(running)
        state = await self.here.machines.state(200)
        self.assertEqual((state.status, state.whole), ("paused", True))

    async def test_q35_with_everything_moves(self):
        extra = ("machine: q35", "agent: 1", "rng0: source=/dev/urandom", "net0: virtio=BC:24:11:00:00:01,queues=2")
        await self.begin(*extra, "net7: e1000=BC:24:11:00:00:02", "sata0: none,media=cdrom", "cores: 2", "numa: 1")
        async with self.there.machines.attached(100) as running:
            await self.mirror(running)
            await self.send(running)
        await self.here.machines.resume(200)
        await self.until(lambda: len(self.got.beats) >= 2, "ticks here")
        await self.here.machines.stop(200)
        self.assert_no_gap()


class Failing(Migrating):
    async def test_the_target_is_killed_and_the_source_runs_on(self):
        await self.begin()
        async with self.there.machines.attached(100) as running:
            await self.mirror(running)
            await running.start_migration(self.incoming.migrate_socket, limit_bytes_s=1 << 20)
            waiting = Deferred.fromCoroutine(self.here.machines.wait_whole(200))
            os.kill(self.here.pid(200), signal.SIGKILL)
            self.assertIn("QEMU ended", (await self.fails(BackendFailed, waiting)).text)
            await self.fails(BackendFailed, running.until_switchover())
            await running.end_mirrors()
            self.assertEqual(await running.mirrors(), [])
        ticks = len(self.sent.beats)
        await self.until(lambda: len(self.sent.beats) > ticks + 3, "ticks there")
        self.assertEqual((await self.here.machines.state(200)).status, "off")
        self.assert_no_gap()

    async def test_a_cancelled_migration(self):
        await self.begin()
        async with self.there.machines.attached(100) as running:
            await self.mirror(running)
            await running.start_migration(self.incoming.migrate_socket, limit_bytes_s=1 << 20)
            await running.cancel_migration()
            await running.end_mirrors()
            self.assertEqual(await running.status(), "running")
        nodes = {node["node-name"] for node in await self.there.ask(100, "query-named-block-nodes")}
        self.assertNotIn("mirror-scsi0", nodes)
        ticks = len(self.sent.beats)
        await self.until(lambda: len(self.sent.beats) > ticks + 3, "ticks there")

    async def test_the_last_moment_to_go_back(self):
        """All but the rest is there; here it runs on, and what was paused is paused, not `postmigrate`."""
        for paused in (False, True):
            await self.begin()
            if paused:
                await self.there.ask(100, "stop")
            async with self.there.machines.attached(100) as running:
                await self.mirror(running)
                await running.start_migration(self.incoming.migrate_socket)
                await running.until_switchover()
                self.assertEqual(await running.status(), "finish-migrate")
            async with self.there.machines.attached(100) as running:  # as a program that comes later
                self.assertEqual((await running.progress()).status, "pre-switchover")
                await running.cancel_migration()
                await running.adopt_mirrors()
                await running.end_mirrors()
                if paused:
                    await running.pause()
                self.assertEqual(await running.status(), "paused" if paused else "running")
            nodes = {node["node-name"] for node in await self.there.ask(100, "query-named-block-nodes")}
            self.assertNotIn("mirror-scsi0", nodes)
            for host, vmid in ((self.there, 100), (self.here, 200)):
                await host.machines.stop(vmid)

    async def test_a_paused_vm_that_comes_back_is_paused(self):
        await self.begin()
        await self.there.ask(100, "stop")
        async with self.there.machines.attached(100) as running:
            await self.mirror(running)
            await self.send(running)
            await self.here.machines.stop(200)
            ticks = len(self.sent.beats)
            await running.pause()
            self.assertEqual(await running.status(), "paused")
        # A tick that was due when it was paused may show.
        self.assertLessEqual(len(self.sent.beats), ticks + 1)
        await self.there.machines.resume(100)
        await self.until(lambda: len(self.sent.beats) > ticks + 3, "ticks there")

    async def test_an_export_that_is_not_there(self):
        await self.begin()
        async with self.there.machines.attached(100) as running:
            error = await self.fails(
                BackendFailed, running.start_mirror("scsi0", self.incoming.nbd_socket, "drive-nosuch")
            )
            self.assertEqual(error.text, "QEMU refuses 'blockdev-add': Requested export not available")
            self.assertEqual(await running.mirrors(), [])
            await self.mirror(running)
            (mirror,) = await running.mirrors()
            self.assertTrue(mirror.ready)
            self.assertGreaterEqual(mirror.total_bytes, DISK_BYTES)

    async def test_another_machine_is_no_target(self):
        await self.begin(machine="pc-i440fx-6.2")
        async with self.there.machines.attached(100) as running:
            await self.mirror(running)
            await running.start_migration(self.incoming.migrate_socket)
            waiting = Deferred.fromCoroutine(self.here.machines.wait_whole(200))
            with contextlib.suppress(BackendFailed):  # it may have sent everything before the other one refuses it
                await running.until_switchover()
                await running.switch_over()
            error = await self.fails(BackendFailed, waiting)
            self.assertIn("load of migration failed", error.text)
        error = await self.fails(WrongState, self.here.machines.resume(200))
        self.assertEqual(error.text, "VM 200 not running")


PROXMOX_WORDS = """
-nodefaults -display none -serial none -monitor none -S -m 32 -smp 1,sockets=1,cores=1,maxcpus=1
-cpu kvm64,+lahf_lm,+sep
-device pci-bridge,id=pci.1,chassis_nr=1,bus=pci.0,addr=0x1e
-device pci-bridge,id=pci.2,chassis_nr=2,bus=pci.0,addr=0x1f
-device vmgenid,guid=c773c261-d800-4348-9f5d-167fadd53cf8
-device piix3-usb-uhci,id=uhci,bus=pci.0,addr=0x1.0x2
-device usb-tablet,id=tablet,bus=uhci.0,port=1
-chardev socket,id=serial0,path={folder}/serial0,server=on,wait=off -device isa-serial,chardev=serial0
-device VGA,id=vga,bus=pci.0,addr=0x2
-chardev socket,path={folder}/qga,server=on,wait=off,id=qga0
-device virtio-serial,id=qga0,bus=pci.0,addr=0x8
-device virtserialport,chardev=qga0,name=org.qemu.guest_agent.0
-object rng-random,filename=/dev/urandom,id=rng0
-device virtio-rng-pci,rng=rng0,max-bytes=1024,period=1000,bus=pci.1,addr=0x1d
-device virtio-balloon-pci,id=balloon0,bus=pci.0,addr=0x3,free-page-reporting=on
-drive if=none,id=drive-ide2,media=cdrom
-device ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2,bootindex=101
-device virtio-scsi-pci,id=scsihw0,bus=pci.0,addr=0x5
-drive file={disk},if=none,id=drive-scsi0,format=raw,cache=writeback,detect-zeroes=on
-device scsi-hd,bus=scsihw0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0,bootindex=100
-drive file={other},if=none,id=drive-virtio1,format=raw
-device virtio-blk-pci,drive=drive-virtio1,id=virtio1,bus=pci.0,addr=0xb
-drive file={third},if=none,id=drive-sata0,format=raw
-device ahci,id=ahci0,multifunction=on,bus=pci.0,addr=0x7 -device ide-hd,bus=ahci0.0,drive=drive-sata0,id=sata0
-netdev user,id=net0
-device virtio-net-pci,mac={mac},netdev=net0,bus=pci.0,addr=0x12,id=net0,rx_queue_size=1024,tx_queue_size=256
-machine type=pc-i440fx-7.2,accel=tcg
-chardev socket,id=qmp,fd={fd},server=on,wait=off -mon chardev=qmp,mode=control
"""
"""How Proxmox VE starts the VM of the test below, in its own form of each option."""


class FromProxmox(Migrating):
    async def test_a_machine_as_proxmox_builds_it_is_taken(self):
        """The device tree has the same names, addresses and state sections."""
        there = self.host("there")
        folder = there.runtime_dir
        names = ("a.raw", "c.raw", "d.raw")
        for name, content in zip(names, (ticker(ring=RING), b"", b""), strict=True):
            there.volumes.make(name, content)
        disks = dict(zip(("disk", "other", "third"), (folder.parent / "images" / name for name in names), strict=True))
        with listen_unix(folder / "100.qmp") as listener:
            words = PROXMOX_WORDS.format(folder=folder, fd=listener.fileno(), mac=MAC, **disks).split()
            started_process(self.addCleanup, ["qemu-system-x86_64", *words], pass_fds=[listener.fileno()])
        self.here = self.host("here")
        volumes = self.here.volumes
        conf = parse_guest_config(
            f"scsi0: {volumes.make('b.raw')}\nvirtio1: {volumes.make('c.raw')}\nsata0: {volumes.make('d.raw')}\n"
            "scsihw: virtio-scsi-pci\nmemory: 32\nserial0: socket\nagent: 1\nrng0: source=/dev/urandom\n"
            f"ide2: none,media=cdrom\nboot: order=scsi0;ide2\nnet0: virtio={MAC}\n"
            "vmgenid: c773c261-d800-4348-9f5d-167fadd53cf8\nmachine: pc-i440fx-7.2+pve0\n"
        )
        monitor = await connect_monitor(reactor, folder / "100.qmp")
        self.addCleanup(monitor.close)
        self.sent = await listen(folder / "serial0")
        await monitor.call("cont")
        await self.until(lambda: len(self.sent.beats) >= 2, "two ticks")
        await self.receive(conf)
        server = {"type": "unix", "path": str(self.incoming.nbd_socket)}
        target = {"driver": "nbd", "node-name": "m0", "server": server, "export": "drive-scsi0"}
        await monitor.call("blockdev-add", target)
        job = {"job-id": "m0", "device": "drive-scsi0", "target": "m0", "sync": "full", "copy-mode": "write-blocking"}
        await monitor.call("blockdev-mirror", job)
        await self.ask_until(monitor, "query-block-jobs", lambda jobs: jobs[0]["ready"])
        await monitor.call("migrate", {"uri": f"unix:{self.incoming.migrate_socket}"})
        await self.here.machines.wait_whole(200)
        await self.ask_until(monitor, "query-migrate", lambda answer: answer["status"] == "completed")
        await monitor.call("block-job-cancel", {"device": "m0"})
        await self.ask_until(monitor, "query-block-jobs", lambda jobs: not jobs)
        await self.here.machines.stop_nbd(200)
        await self.here.machines.resume(200)
        await self.until(lambda: len(self.got.beats) >= 3, "ticks here")
        await self.here.machines.stop(200)
        self.assert_no_gap()
        self.assert_disk_kept()

    async def ask_until(self, monitor, command, holds):
        while not holds(await monitor.call(command)):
            await deferLater(reactor, 0.02)
