"""What the tests of `mtunnel vm` share: a host below a folder, a guest that boots, and the command as a process."""

import contextlib
import json
import os
import shutil
import signal
import sys

from twisted.trial.unittest import SkipTest

from mtunnel_tx.backends.host import PROGRAM
from mtunnel_tx.backends.process import read_record
from tests.cli.test_main import Case
from tests.guest.ticker import ticker
from tests.processes import run_program

CONF = """\
name: ticker
memory: 32
scsihw: virtio-scsi-pci
scsi0: disks:100/vm-100-disk-0.raw
serial0: socket
vga: serial0
"""


class VmCase(Case):
    def setUp(self):
        super().setUp()
        if shutil.which(PROGRAM) is None:
            raise SkipTest(f"{PROGRAM} is not installed: 'mtunnel vm' IS NOT TESTED")
        self.run_dir = self.folder / "run"
        self.pve = self.folder / "state" / "pve"
        self.guests = self.pve / "nodes" / "here" / "qemu-server"
        self.guests.mkdir(parents=True)
        self.images = self.folder / "images" / "images"
        self.images.mkdir(parents=True)
        storages = f"dir: disks\n\tpath {self.folder}/images\n\tcontent images,iso\n"
        (self.pve / "storage.cfg").write_text(storages)
        self.addCleanup(self.kill)

    def add_ticker(self, vmid=100, conf=CONF):
        """A guest that boots in 0.2 s, and prints lines on its serial port."""
        folder = self.images / str(vmid)
        folder.mkdir()
        (folder / f"vm-{vmid}-disk-0.raw").write_bytes(ticker().ljust(4 << 20, b"\0"))
        (self.guests / f"{vmid}.conf").write_text(conf.replace("100", str(vmid)))

    def kill(self):
        """Whatever a test did, no QEMU stays."""
        for file in self.run_dir.glob("*.pid"):
            record = read_record(file)
            if record is not None and record.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(record.pid, signal.SIGKILL)

    def vm(self, *words, **more):
        """Run `mtunnel vm WORDS`. Returns: status, output, errors."""
        done = run_program(self.command(*words), capture_output=True, text=True, check=False, **more)
        return done.returncode, done.stdout, done.stderr

    def command(self, *words):
        return [sys.executable, "-m", "mtunnel_tx.cli", "--config", str(self.config), "vm", *map(str, words)]

    def said(self, *words):
        """What an action answers with --json; it must succeed."""
        status, out, err = self.vm(*words, "--json")
        self.assertEqual((status, err), (0, ""), out)
        answer = json.loads(out)
        self.assertIs(answer.pop("success"), True)
        return answer

    def refused(self, *words):
        """Why an action fails; with --json and without it is the same line."""
        status, out, err = self.vm(*words)
        self.assertEqual((status, out), (1, ""))
        self.assertTrue(err.startswith("mtunnel vm: ") and err.endswith("\n") and err.count("\n") == 1, err)
        return err.removeprefix("mtunnel vm: ").removesuffix("\n")

    def pid(self, vmid=100):
        return read_record(self.run_dir / f"{vmid}.pid").pid

    def left(self, vmid=100):
        """What there is of a VM in the runtime directory."""
        return sorted(file.name for file in self.run_dir.glob(f"{vmid}.*"))
