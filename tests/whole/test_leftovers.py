"""Nothing is refused late: files of a VM that is not there any more, and keys that the target does not take."""

from __future__ import annotations

import json
import os

from twisted.trial.unittest import SynchronousTestCase

from tests.processes import run_program
from tests.whole.node import Node

CLOUD, DISK = "vm-100-cloudinit.qcow2", "vm-100-disk-0.raw"
LEFT = "mtunnel migrate: target: storage 'local' has 'local:100/vm-100-disk-0.raw' of VM 100, which no VM has"


class LeftoverTests(SynchronousTestCase):
    def test_a_vm_with_a_cloudinit_drive(self) -> None:
        here, there = Node("here"), Node("there").start()
        for node in (here, there):
            self.addCleanup(node.close)
            folder = node.storage / "images" / "100"
            folder.mkdir(parents=True)
            run_program(["qemu-img", "create", "-q", "-f", "qcow2", str(folder / CLOUD), "4M"], check=True)
            (folder / DISK).write_bytes(os.urandom(1 << 20))
        drives = f"ide2: local:100/{CLOUD},media=cdrom\nscsi0: local:100/{DISK}\n"
        keys = "args: -S\naffinity: 0\nhookscript: local:snippets/x.pl\ntags: pr\u00fcf\nnewkey: 1\n"
        here.guest_file(100).write_text(f"memory: 16\nname: left\n{drives}{keys}")
        left = (there.storage / "images" / "100" / DISK).read_bytes()
        command = ("mtunnel_tx.cli", "migrate", "100", there.endpoint, "--target-storage", "local")

        done = here.run(*command, check=False)
        self.assertEqual(done.returncode, 1)
        lines = done.stderr.splitlines()
        self.assertEqual(lines[-1], f"{LEFT}: remove it, or choose another VMID")
        for key in ("args", "affinity", "hookscript", "tags", "newkey"):
            self.assertEqual(sum(f"--drop {key} leaves it out" in line for line in lines), 1)
        self.assertNotIn("sending", done.stdout)
        self.assertIsNone(there.guest(100))
        self.assertEqual((there.storage / "images" / "100" / DISK).read_bytes(), left)

        report = json.loads(here.run(*command, "--dry-run", "--json", check=False).stdout)
        self.assertFalse(report["success"])
        self.assertEqual([disk["target_format"] for disk in report["disks"]], ["qcow2", "raw"])
        self.assertGreater(report["disks"][0]["free"], 0)

        (there.storage / "images" / "100" / DISK).unlink()
        done = here.run(*command, "--drop", "args,affinity,hookscript,tags,newkey")
        told = f"target: storage 'local' has 'local:100/{CLOUD}' of VM 100, which no VM has: it is made anew"
        self.assertIn(told, done.stdout)
        config = there.guest(100) or ""
        self.assertIn(f"ide2: local:100/{CLOUD},media=cdrom", config)
        self.assertIn(f"scsi0: local:100/{DISK}", config)
        self.assertNotIn("args", config)
        folders = [node.storage / "images" / "100" for node in (here, there)]
        for name in (CLOUD, DISK):
            self.assertEqual(*[(folder / name).read_bytes() for folder in folders])
        (log,) = (there.state / "tasks").glob("*/*qmtunnel*")
        self.assertIn("left out by whoever moves it: args, affinity, hookscript, tags, newkey", log.read_text())
