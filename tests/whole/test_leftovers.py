"""Files of a VM that is not there any more do not stand in the way of one that comes."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from tests.processes import run_program
from tests.whole.node import Node

NAMES = ("vm-100-cloudinit.qcow2", "vm-100-disk-0.raw")


class LeftoverTests(SynchronousTestCase):
    def test_a_vm_with_a_cloudinit_drive(self) -> None:
        here, there = Node("here"), Node("there").start()
        for node in (here, there):
            self.addCleanup(node.close)
            folder = node.storage / "images" / "100"
            folder.mkdir(parents=True)
            run_program(["qemu-img", "create", "-q", "-f", "qcow2", str(folder / NAMES[0]), "4M"], check=True)
            (folder / NAMES[1]).write_bytes(os.urandom(1 << 20))
        drives = f"ide2: local:100/{NAMES[0]},media=cdrom\nscsi0: local:100/{NAMES[1]}\n"
        here.guest_file(100).write_text(f"memory: 16\nname: left\n{drives}")
        left = (there.storage / "images" / "100" / NAMES[1]).read_bytes()
        done = here.run("mtunnel_tx.cli", "migrate", "100", there.endpoint, "--target-storage", "local")
        told = "storage 'local' has volumes of VM 100, which no VM has: local:100/vm-100-cloudinit.qcow2"
        self.assertIn(told, done.stdout)
        config = there.guest(100) or ""
        self.assertIn("ide2: local:100/vm-100-cloudinit.qcow2,media=cdrom", config)
        self.assertIn("scsi0: local:100/vm-100-disk-1.raw", config)
        folders = [node.storage / "images" / "100" for node in (here, there)]
        self.assertEqual(*[(folder / NAMES[0]).read_bytes() for folder in folders])
        self.assertEqual((folders[0] / NAMES[1]).read_bytes(), (folders[1] / "vm-100-disk-1.raw").read_bytes())
        # A disk may hold what somebody wants.
        self.assertEqual((folders[1] / NAMES[1]).read_bytes(), left)
