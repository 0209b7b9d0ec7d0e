"""What the daemon does on a Proxmox node: arguments of `qm`, its pid files, its block nodes, starts that go on."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mtunnel_tx.backends.proxmox import ProxmoxMachines, find_nodes, find_qemu, start_arguments
from mtunnel_tx.backends.qmp import connect_monitor
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.ports.machines import Incoming
from tests.backends.qemucase import QemuCase
from tests.patience import patience_s
from tests.processes import started_process

INCOMING = {"migrate_socket": Path("/run/qemu-server/100.migrate"), "nbd_socket": None, "exports": {}, "from_node": "a"}


class Arguments(SynchronousTestCase):
    def test_only_what_was_sent(self):
        bare = ["start", "100", "--skiplock", "1", "--stateuri", "unix", "--migratedfrom", "here"]
        self.assertEqual(start_arguments(100, "here", Incoming(**INCOMING)), bare)

    def test_all(self):
        incoming = Incoming(**INCOMING, machine="q35", cpu="host,+aes", nets_host_mtu="net0=1500", spice_ticket="ab")
        more = ["--machine", "q35", "--force-cpu", "host,+aes", "--nets-host-mtu", "net0=1500"]
        self.assertEqual(start_arguments(100, "here", incoming)[8:], more)


class PidFiles(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.file = self.folder / "100.pid"

    def run_program(self, *words):
        code = "import sys; print(flush=True); sys.stdin.read()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = started_process(self.addCleanup, [sys.executable, "-c", code, *words], **pipes)
        process.stdout.readline()  # until then it may be no program yet
        self.file.write_text(f"{process.pid}\n")
        return process

    def test_its_own(self):
        process = self.run_program("-pidfile", "/var/run/qemu-server/100.pid")
        pid, pidfd = find_qemu(self.file)
        os.close(pidfd)
        self.assertEqual(pid, process.pid)
        machines = ProxmoxMachines(reactor, command=["qm"], environ={}, guests=None, folder=self.folder)
        self.assertEqual(machines.process(100).pid, process.pid)
        self.addCleanup(machines.close)
        open_before = len([*Path("/proc/self/fd").iterdir()])
        self.assertEqual([machines.running(vmid) for vmid in (100, 101)], [True, False])
        self.assertEqual(len([*Path("/proc/self/fd").iterdir()]), open_before)

    def test_a_number_that_is_anothers_by_now(self):
        for words in ((), ("-pidfile", "/run/qemu-server/101.pid"), ("100.pid",)):
            self.run_program(*words)
            self.assertIsNone(find_qemu(self.file), words)

    def test_one_that_has_ended(self):
        process = self.run_program("-pidfile", "100.pid")
        process.kill()
        process.wait(patience_s())
        self.assertIsNone(find_qemu(self.file))

    def test_no_number(self):
        self.assertIsNone(find_qemu(self.file))
        self.file.write_text("")
        self.assertIsNone(find_qemu(self.file))


def takes_connections(path):
    """Whether somebody listens there: the file alone is there a little earlier."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


class BlockNodes(QemuCase):
    """Newer Proxmox names the nodes, older ones named QEMU's drives."""

    async def test_both_ways(self):
        disks = [self.folder / f"{name}.raw" for name in ("old", "new")]
        for disk in disks:
            disk.write_bytes(bytes(1 << 20))
        path = self.folder / "100.qmp"
        words = ["-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-qmp", f"unix:{path},server=on,wait=off"]
        words += ["-drive", f"file={disks[0]},if=none,id=drive-scsi0,format=raw", "-device", "virtio-scsi-pci"]
        words += ["-device", "scsi-hd,drive=drive-scsi0", "-device", "scsi-hd,drive=drive-scsi1"]
        words += ["-blockdev", f"driver=raw,node-name=drive-scsi1,file.driver=file,file.filename={disks[1]}"]
        started_process(self.addCleanup, ["qemu-system-x86_64", *words])
        await self.until(lambda: takes_connections(path), "the monitor")
        monitor = await connect_monitor(reactor, path)
        self.addCleanup(monitor.close)
        nodes = await find_nodes(monitor, {"scsi0": "", "scsi1": ""})
        self.assertEqual(nodes["scsi1"], "drive-scsi1")
        self.assertRegex(nodes["scsi0"], "^#block")
        error = await self.fails(BackendFailed, find_nodes(monitor, {"scsi2": ""}))
        self.assertEqual(error.text, "the VM has no drive 'scsi2' to export")


class Orphans(TestCase):
    """`qm start` of an earlier daemon goes on."""

    async def test_it_is_awaited(self):
        folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, folder)
        code = "import sys; print(flush=True); sys.stdin.read()"
        words = [sys.executable, "-c", code, "start", "100", "--stateuri", "unix"]
        environ = {**os.environ, "MTUNNEL_QM": str(folder)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = started_process(self.addCleanup, words, env=environ, **pipes)
        process.stdout.readline()  # it has its environment now
        machines = ProxmoxMachines(reactor, command=["qm"], environ={}, guests=None, folder=folder)
        preparing = ensureDeferred(machines.prepare())
        waited = Deferred()
        reactor.callLater(0.5, waited.callback, None)
        await waited
        self.assertFalse(preparing.called)
        process.stdin.close()
        process.wait(patience_s())
        await preparing
