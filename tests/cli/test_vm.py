"""`mtunnel vm`: a VM started, seen and stopped from the command line, each time by another process."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys

from twisted.trial.unittest import SkipTest

from mtunnel_tx.backends.host import PROGRAM
from mtunnel_tx.backends.process import read_record
from tests.cli.test_main import Case
from tests.guest.ticker import ticker

CONF = """\
name: ticker
memory: 32
scsihw: virtio-scsi-pci
scsi0: disks:100/vm-100-disk-0.raw
serial0: socket
vga: serial0
"""


class Vm(Case):
    def setUp(self):
        super().setUp()
        if shutil.which(PROGRAM) is None:
            raise SkipTest(f"{PROGRAM} is not installed: 'mtunnel vm' IS NOT TESTED")
        self.guests = self.folder / "state" / "pve" / "nodes" / "here" / "qemu-server"
        self.guests.mkdir(parents=True)
        images = self.folder / "images" / "images" / "100"
        images.mkdir(parents=True)
        (images / "vm-100-disk-0.raw").write_bytes(ticker().ljust(4 << 20, b"\0"))
        storages = f"dir: disks\n\tpath {self.folder}/images\n\tcontent images\n"
        (self.folder / "state" / "pve" / "storage.cfg").write_text(storages)
        (self.guests / "100.conf").write_text(CONF)
        self.addCleanup(self.kill)

    def kill(self):
        record = read_record(self.folder / "run" / "100.pid")
        if record is not None and record.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGKILL)

    def vm(self, *words):
        command = [sys.executable, "-m", "mtunnel_tx.cli", "--config", str(self.config), "vm", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    def test_a_life(self):
        self.assertEqual(self.vm("list"), (0, "VMID  STATUS   NAME\n100   stopped  ticker\n", ""))
        status, _, err = self.vm("start", "100")
        self.assertEqual(status, 0, err)
        self.assertEqual(self.vm("status", "100"), (0, "status: running\n", ""))
        self.assertIn("100   running  ticker\n", self.vm("list")[1])
        self.assertEqual(self.vm("stop", "100"), (0, "", ""))
        self.assertEqual(self.vm("status", "100"), (0, "status: stopped\n", ""))
        self.assertEqual(list((self.folder / "run").glob("100.*")), [])

    def test_why_it_does_not_start(self):
        (self.guests / "100.conf").write_text(CONF + "hostpci0: mapping=gpu\n")
        self.assertEqual(self.vm("start", "100"), (1, "", "mtunnel vm: hostpci0: this host cannot run that\n"))

    def test_a_locked_one_is_left_alone(self):
        (self.guests / "100.conf").write_text(CONF + "lock: migrate\n")
        for action in ("start", "stop"):
            self.assertEqual(self.vm(action, "100"), (1, "", "mtunnel vm: VM 100 is locked (migrate)\n"))

    def test_one_that_a_migration_left(self):
        self.assertEqual(self.vm("start", "100")[0], 0)
        self.stop_guest()
        (self.guests / "100.conf").write_text(CONF + "lock: migrate\n")
        self.assertEqual(self.vm("resume", "100"), (1, "", "mtunnel vm: VM 100 is locked (migrate)\n"))
        self.assertEqual(self.vm("status", "100")[1], "status: paused\n")
        for action in ("unlock", "unlock", "resume", "resume"):
            self.assertEqual(self.vm(action, "100"), (0, "", ""))
        self.assertEqual(sorted((self.guests / "100.conf").read_text().split("\n")), sorted(CONF.split("\n")))
        self.assertEqual(self.vm("status", "100")[1], "status: running\n")
        self.assertEqual(self.vm("stop", "100"), (0, "", ""))
        self.assertEqual(self.vm("resume", "100"), (1, "", "mtunnel vm: VM 100 not running\n"))

    def stop_guest(self):
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.folder / "run" / "100.qmp"))
            lines = monitor.makefile("rb")
            for command in (b"qmp_capabilities", b"stop"):
                monitor.sendall(b'{"execute":"%s"}\n' % command)
            while b'"STOP"' not in lines.readline():
                pass

    def test_a_held_one_is_not_unlocked(self):
        """Its lock says whose it is; only `mtunnel settle` knows what else there is to do."""
        (self.guests / "100.conf").write_text(CONF + "lock: migrate\n")
        journal = self.folder / "state" / "journal"
        journal.mkdir()
        (journal / "100.jsonl").write_text("{}\n")
        status, _, err = self.vm("unlock", "100")
        self.assertEqual(
            (status, err), (1, "mtunnel vm: VM 100 came from another host: mtunnel status, mtunnel settle\n")
        )

    def test_one_that_is_not_there(self):
        status, out, err = self.vm("status", "101")
        self.assertEqual((status, out), (1, ""))
        self.assertIn("101.conf' does not exist", err)

    def test_a_proxmox_node_has_its_own(self):
        self.write('profile = "proxmox"\n')
        expected = "mtunnel: VMs belong to Proxmox here; run instead:\nqm start 100\n"
        self.assertEqual(self.vm("start", "100"), (1, "", expected))
