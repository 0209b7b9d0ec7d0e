"""Real QEMU processes: started, waiting for a migration, checked beforehand."""

import os
import shutil
import signal
from pathlib import Path

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest

from mtunnel_tx.backends.blocknodes import restore
from mtunnel_tx.backends.firmware import find_firmware
from mtunnel_tx.backends.qmpactions import export_nodes
from mtunnel_tx.errors import BackendFailed, TimedOut, TunnelError, WrongState
from mtunnel_tx.ports.machines import Incoming
from mtunnel_tx.pve.moved import mark_moved
from tests.backends.qemucase import QemuCase, alive, guest, listen, ticker
from tests.processes import run_program


class Starting(QemuCase):
    async def test_a_vm_starts_ticks_and_stops(self):
        host = self.host()
        conf = guest(host.volumes.make("a.raw", ticker()), "name: web-1")
        self.assertFalse(host.machines.running(100))
        await host.machines.local_start(100, conf, self.report)
        serial = await host.serial(100)
        self.assertTrue(host.machines.running(100))
        state = await host.machines.state(100)
        self.assertEqual((state.status, state.whole), ("running", False))
        await self.until(lambda: len(serial.beats) >= 3, "three ticks")
        self.assertEqual({flag for _, flag in serial.beats}, {"."})
        pid = host.pid(100)
        await host.machines.stop(100)
        self.assertFalse(host.machines.running(100))
        self.assertFalse(alive(pid))
        self.assertEqual(host.files(100), [])
        await serial.ended
        self.assertEqual((await host.machines.state(100)).status, "off")
        await host.machines.stop(100)

    async def test_a_vm_is_started_once(self):
        host = self.host()
        conf = guest(host.volumes.make("a.raw", ticker()))
        await host.machines.local_start(100, conf, self.report)
        pid = host.pid(100)
        error = await self.fails(WrongState, host.machines.local_start(100, conf, self.report))
        self.assertEqual(error.text, "VM 100 already running")
        self.assertEqual(host.pid(100), pid)
        self.assertTrue(alive(pid))

    async def test_a_vm_that_was_moved_away_is_not_started(self):
        host = self.host()
        conf = mark_moved(guest(host.volumes.make("a.raw", ticker())), host="there", vmid=200, at_s=0)
        error = await self.fails(WrongState, host.machines.local_start(100, conf, self.report))
        self.assertIn("VM 100 was moved to there as VM 200 on 1970-01-01", error.text)
        self.assertEqual(host.files(100), [])

    async def test_two_starts_at_once_make_one_vm(self):
        host = self.host()
        conf = guest(host.volumes.make("a.raw", ticker()))
        starts = [Deferred.fromCoroutine(host.machines.local_start(100, conf, self.report)) for _ in range(2)]
        results = await DeferredList(starts, consumeErrors=True)
        self.assertEqual(sorted(done for done, _ in results), [False, True])
        self.assertTrue(host.machines.running(100))

    async def test_a_guest_that_is_to_be_frozen_waits(self):
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw", ticker()), "freeze: 1"), self.report)
        self.assertEqual((await host.machines.state(100)).status, "prelaunch")
        await host.machines.resume(100)
        self.assertEqual((await host.machines.state(100)).status, "running")
        await host.machines.resume(100)

    async def test_a_guest_that_was_shut_down_starts_anew(self):
        """It stays so where QEMU was told to; a migration may bring such a one."""
        host = self.host()
        conf = guest(host.volumes.make("a.raw", ticker()), "args: -action reboot=shutdown,shutdown=pause")
        await host.machines.local_start(100, conf, self.report)
        serial = await host.serial(100)
        await self.until(lambda: len(serial.beats) >= 2, "two ticks")
        await host.ask(100, "system_reset")
        while (await host.machines.state(100)).status != "shutdown":
            pass
        await host.ask(100, "set-action", reboot="reset")
        serial.received.clear()
        await host.machines.resume(100)
        self.assertEqual((await host.machines.state(100)).status, "running")
        await self.until(lambda: len(serial.beats) >= 2, "ticks from the start")
        self.assertEqual(serial.beats[0][0], 1)

    async def test_firmware_of_today(self):
        host = self.host()
        try:
            find_firmware("4m", secure=False)
        except TunnelError as error:
            raise SkipTest("no OVMF is installed: FIRMWARE OF TODAY IS NOT TESTED") from error
        host.volumes.make("efi.raw", Path("/usr/share/OVMF/OVMF_VARS_4M.fd").read_bytes(), 540672)
        efidisk = "efidisk0: local:100/efi.raw,efitype=4m"
        conf = guest(host.volumes.make("a.raw", ticker()), "bios: ovmf", efidisk, "machine: q35", memory=128)
        await host.machines.local_start(100, conf, self.report)
        self.assertEqual((await host.machines.state(100)).status, "running")
        nodes = {node["node-name"] for node in await host.ask(100, "query-named-block-nodes")}
        self.assertLessEqual({"pflash0", "drive-efidisk0", "drive-scsi0"}, nodes)

    async def test_ovmf_without_its_disk(self):
        """It gets variables for this run."""
        try:
            find_firmware("2m", secure=False)
        except TunnelError as error:
            raise SkipTest("no OVMF of 2 MiB is installed: UEFI WITHOUT AN EFI DISK IS NOT TESTED") from error
        host = self.host()
        conf = guest(host.volumes.make("a.raw", ticker()), "bios: ovmf", memory=128)
        await host.machines.local_start(100, conf, self.report)
        self.assertEqual((await host.machines.state(100)).status, "running")
        self.assertIn("100.efivars", host.files(100))
        await host.machines.stop(100)
        self.assertEqual(host.files(100), [])

    async def test_a_volume_that_is_not_there(self):
        host = self.host()
        conf = guest(host.volumes.make("a.raw"), "scsi1: local:100/b.raw")
        error = await self.fails(BackendFailed, host.machines.local_start(100, conf, self.report))
        self.assertIn("b.raw': No such file or directory", error.text)
        self.assertEqual(host.files(100), [])

    async def test_qemu_says_why_it_does_not_start(self):
        host = self.host()
        conf = guest(host.volumes.make("a.raw"), "args: -device nosuchthing")
        error = await self.fails(BackendFailed, host.machines.local_start(100, conf, self.report))
        self.assertEqual(error.text, "QEMU ended: -device nosuchthing: 'nosuchthing' is not a valid device model name")
        self.assertEqual(host.files(100), [])

    async def test_an_image_that_lies_about_its_format(self):
        """A raw image whose first bytes are a qcow2 header with a backing file stays raw."""
        host = self.host()
        header = b"QFI\xfb" + (3).to_bytes(4, "big") + (104).to_bytes(8, "big") + (11).to_bytes(4, "big")
        await host.machines.local_start(100, guest(host.volumes.make("a.raw", header + b"/etc/passwd")), self.report)
        nodes = await host.ask(100, "query-named-block-nodes")
        self.assertEqual({node["drv"] for node in nodes}, {"raw", "file"})

    async def test_more_memory_than_there_is(self):
        host = self.host()
        conf = guest(host.volumes.make("a.raw"), memory=4 << 20)
        error = await self.fails(BackendFailed, host.machines.local_start(100, conf, self.report))
        self.assertIn("not enough available memory", error.text)

    async def test_resume_of_nothing(self):
        machines = self.host().machines
        for work in (machines.resume(100), machines.stop_nbd(100)):
            self.assertEqual((await self.fails(WrongState, work)).text, "VM 100 not running")

    async def test_stop_nbd_without_a_server_is_no_error(self):
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw")), self.report)
        await host.machines.stop_nbd(100)

    async def test_a_guest_that_powers_off_leaves_nothing_running(self):
        host = self.host()
        await host.machines.local_start(100, guest(host.volumes.make("a.raw")), self.report)
        async with host.machines.attached(100) as running:
            await running.quit()
        state = await host.machines.state(100)
        self.assertEqual((state.status, state.dirty_end), ("off", ""))


class OnABridge(QemuCase):
    def setUp(self):
        super().setUp()
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise SkipTest("not root, or no 'ip': BRIDGES AND TAP DEVICES ARE NOT TESTED")
        # Names of devices are the host's: whatever else is tested here at the same time has others.
        self.vmid = 1_000_000 + os.getpid()
        self.bridge = f"mtq{os.getpid()}"
        self.ip("link", "add", self.bridge, "mtu", "1400", "type", "bridge")
        self.addCleanup(self.ip, "link", "del", self.bridge)

    def ip(self, *words):
        run_program(["ip", *words], capture_output=True)

    def plugged(self):
        return sorted(port.name for port in Path("/sys/class/net", self.bridge, "brif").iterdir())

    async def test_cards_are_plugged_in_and_vanish(self):
        host = self.host()
        nics = [
            f"net0: virtio=BC:24:11:00:00:01,bridge={self.bridge},firewall=1,mtu=1",
            f"net1: virtio=BC:24:11:00:00:02,bridge={self.bridge},queues=3,link_down=1",
            f"net2: e1000=BC:24:11:00:00:03,bridge={self.bridge}",
        ]
        await host.machines.local_start(self.vmid, guest(host.volumes.make("a.raw"), *nics), self.report)
        self.assertEqual(self.plugged(), [f"tap{self.vmid}i{index}" for index in range(3)])
        self.assertIn("net0: no firewall on this host", self.reports)
        for name in self.plugged():
            self.assertTrue(Path("/sys/class/net", name, "address").read_text().startswith("fe:"))
            self.assertEqual(Path("/sys/class/net", name, "mtu").read_text(), "1400\n")
        async with host.machines.attached(self.vmid) as running:
            self.assertEqual(await running.host_mtus(), {"net0": 1400, "net1": 1400})
        await host.machines.stop(self.vmid)
        self.assertEqual(self.plugged(), [])

    async def test_a_bridge_that_is_not_there(self):
        host = self.host()
        for bridge in ("nosuch", "lo"):
            nics = (f"net0: virtio,bridge={self.bridge}", f"net1: virtio,bridge={bridge}")
            work = host.machines.local_start(self.vmid, guest(host.volumes.make("a.raw"), *nics), self.report)
            error = await self.fails(BackendFailed, work)
            self.assertEqual(error.text, f"there is no bridge '{bridge}' on this host")
            self.assertEqual((host.files(self.vmid), self.plugged()), ([], []))


class Waiting(QemuCase):
    """A VM that waits for another host's state."""

    def incoming(self, host, **more):
        run = host.runtime_dir
        given = {"migrate_socket": run / "100.migrate", "nbd_socket": None, "exports": {}, "from_node": "other", **more}
        return Incoming(**given)

    async def test_it_waits_and_is_not_whole(self):
        host = self.host()
        volid = host.volumes.make("a.raw")
        nbd = host.runtime_dir / "100_nbd.migrate"
        incoming = self.incoming(host, nbd_socket=nbd, exports={"scsi0": volid})
        self.assertIsNone(await host.machines.start(100, guest(volid), incoming, self.report))
        state = await host.machines.state(100)
        self.assertEqual((state.status, state.whole), ("inmigrate", False))
        for socket in (incoming.migrate_socket, nbd):
            self.assertTrue(socket.is_socket())
        await host.machines.stop_nbd(100)
        await host.machines.stop_nbd(100)
        await host.machines.stop(100)
        self.assertEqual(list(host.runtime_dir.iterdir()), [])

    async def zero(self, nbd):
        """Zeros as a mirror writes them where its disk has a hole."""
        uri = f"nbd+unix:///drive-scsi0?socket={nbd}"
        argv = ["qemu-io", "-f", "raw", "-d", "unmap", "-c", "write -q -z -u 0 1M", uri]
        await deferToThread(run_program, argv, check=True, capture_output=True)

    async def test_holes_stay_holes_while_it_is_filled(self):
        """The guest may unmap nothing then; a disk that was allocated as a whole stays so."""
        for allocated, limits in ((False, ""), (False, ",mbps=1000"), (True, "")):
            host = self.host()
            volid = host.volumes.make("a.raw")
            file = host.volumes.path_of("a.raw")
            if allocated:
                os.posix_fallocate((fd := os.open(file, os.O_RDWR)), 0, file.stat().st_size)
                os.close(fd)
            before = file.stat().st_blocks
            nbd = host.runtime_dir / "100_nbd.migrate"
            incoming = self.incoming(host, nbd_socket=nbd, exports={"scsi0": volid})
            await host.machines.start(100, guest(volid + limits), incoming, self.report)
            await self.zero(nbd)
            self.assertEqual(file.stat().st_blocks, before)
            await host.machines.stop_nbd(100)
            async with host.machines._get(100).monitor() as monitor:
                await restore(monitor, host.pid(100))
                await export_nodes(monitor, nbd, {"scsi0": "drive-scsi0"})
            await self.zero(nbd)
            self.assertGreaterEqual(file.stat().st_blocks * 512, 1 << 20)
            await host.machines.stop(100)

    async def test_an_nbd_server_without_drives(self):
        host = self.host()
        nbd = host.runtime_dir / "100_nbd.migrate"
        await host.machines.start(
            100, guest(host.volumes.make("a.raw")), self.incoming(host, nbd_socket=nbd), self.report
        )
        self.assertTrue(nbd.is_socket())

    async def test_an_early_resume_is_refused(self):
        host = self.host(whole_s=0.5)
        await host.machines.start(100, guest(host.volumes.make("a.raw")), self.incoming(host), self.report)
        error = await self.fails(WrongState, host.machines.resume(100))
        self.assertEqual(error.text, "the state of VM 100 has not arrived in full")
        self.assertEqual((await host.machines.state(100)).status, "inmigrate")

    async def test_a_broken_stream_shows_qemus_reason(self):
        host = self.host()
        incoming = self.incoming(host)
        await host.machines.start(100, guest(host.volumes.make("a.raw")), incoming, self.report)
        whole = Deferred.fromCoroutine(host.machines.wait_whole(100))
        stream = await listen(incoming.migrate_socket)
        stream.transport.write(b"this is no migration stream")
        stream.transport.loseConnection()
        error = await self.fails(BackendFailed, whole)
        self.assertEqual(error.text, "QEMU ended: Not a migration stream; load of migration failed: Invalid argument")
        state = await host.machines.state(100)
        self.assertEqual(state.status, "off")
        self.assertIn("Not a migration stream", state.dirty_end)
        again = await self.fails(BackendFailed, host.machines.wait_whole(100))
        self.assertEqual(again.text, error.text)
        await host.machines.stop(100)
        self.assertEqual(list(host.runtime_dir.iterdir()), [])

    async def test_a_kill_ends_the_wait(self):
        host = self.host()
        await host.machines.start(100, guest(host.volumes.make("a.raw")), self.incoming(host), self.report)
        whole = Deferred.fromCoroutine(host.machines.wait_whole(100))
        os.kill(host.pid(100), signal.SIGKILL)
        self.assertEqual((await self.fails(BackendFailed, whole)).text, "QEMU ended: it gave no reason")

    async def test_a_qemu_that_did_not_answer_is_asked_again(self):
        host = self.host()
        await host.machines.start(100, guest(host.volumes.make("a.raw")), self.incoming(host), self.report)
        machine = host.machines._find(100)
        listen_until_whole, asked = machine._listen_until_whole, []

        async def late_at_first(end_s):
            asked.append(end_s)
            if len(asked) == 1:
                raise TimedOut("no answer")
            return await listen_until_whole(end_s)

        machine._listen_until_whole = late_at_first
        whole = Deferred.fromCoroutine(host.machines.wait_whole(100))
        self.assertEqual(len(asked), 2)
        self.assertNoResult(whole)
        os.kill(host.pid(100), signal.SIGKILL)
        self.assertEqual((await self.fails(BackendFailed, whole)).text, "QEMU ended: it gave no reason")

    async def test_only_the_drives_volume_is_exported(self):
        host = self.host()
        volid = host.volumes.make("a.raw")
        nbd = host.runtime_dir / "100_nbd.migrate"
        for exports, text in (
            ({"scsi1": volid}, "scsi1: there is no such drive to export"),
            ({"scsi0": "local:100/b.raw"}, "scsi0: volume 'local:100/b.raw' is not the drive's"),
        ):
            incoming = self.incoming(host, nbd_socket=nbd, exports=exports)
            error = await self.fails(TunnelError, host.machines.start(100, guest(volid), incoming, self.report))
            self.assertEqual(error.text, text)
            self.assertFalse(host.machines.running(100))

    async def test_the_machine_that_the_source_says(self):
        host = self.host()
        conf = guest(host.volumes.make("a.raw"), "machine: q35,enable-s3=0")
        await host.machines.start(100, conf, self.incoming(host, machine="pc-i440fx-6.2+pve0"), self.report)
        async with host.machines.attached(100) as running:
            self.assertEqual(await running.machine_type(), "pc-i440fx-6.2")

    async def test_a_machine_that_nobody_knows(self):
        host = self.host()
        for machine in ("pc-i440fx-99.1+pve0", "virt-8.1", "pc-0.12"):
            work = host.machines.start(
                100, guest(host.volumes.make("a.raw")), self.incoming(host, machine=machine), print
            )
            self.assertIn("machine: ", (await self.fails(TunnelError, work)).text)
            self.assertEqual(host.files(100), [])

    async def test_host_mtus_as_the_source_says(self):
        host = self.host()
        conf = guest(host.volumes.make("a.raw"), "net0: virtio=BC:24:11:00:00:01", "net1: e1000=BC:24:11:00:00:02")
        await host.machines.start(100, conf, self.incoming(host, nets_host_mtu="net0=1400"), self.report)
        async with host.machines.attached(100) as running:
            self.assertEqual(await running.host_mtus(), {"net0": 1400})

    async def test_arguments_are_not_taken_from_another_host(self):
        host = self.host()
        conf = guest(host.volumes.make("a.raw"), "args: -S")
        error = await self.fails(TunnelError, host.machines.start(100, conf, self.incoming(host), self.report))
        self.assertEqual(error.text, "args: arguments for QEMU are not taken from another host")
