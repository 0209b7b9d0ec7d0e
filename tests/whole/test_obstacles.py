"""What keeps a VM at its source, damaged images among it, is said before a byte moves, whatever sees it first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.processes import run_program
from tests.whole.node import Node

MIB = 1 << 20
NOT_WHOLE = "'qemu-img check' tells more"


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def mark_corrupt(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(79)
        file.write(b"\x02")


def spoil_table(path: Path) -> None:
    """The first entry of the L1 table points into the header."""
    with path.open("r+b") as file:
        file.seek(40)
        offset = int.from_bytes(file.read(8), "big")
        file.seek(offset)
        file.write((1 << 63 | 65536).to_bytes(8, "big"))


def leave_unclosed(path: Path) -> None:
    """As a power cut leaves one with lazy reference counts: all of the disk is there."""
    run_program(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", str(path), "1M"])
    writes = ("-c", "write -P 1 0 256k", "-c", "flush", "-c", "abort")
    run_program(["qemu-io", "-f", "qcow2", *writes, str(path)], check=False, capture_output=True)


SPOILED = (
    ("cut", cut, ": image is cut short"),
    ("marked", mark_corrupt, ": image is marked as corrupt"),
    ("wrong", spoil_table, ": qemu-img check found "),
    ("unclosed", leave_unclosed, "QEMU did not close it: a start of its VM puts that right"),
)


class DamagedCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.here, self.there = Node("here"), Node("there").start()
        self.addCleanup(self.here.close)
        self.addCleanup(self.there.close)

    def add(self, vmid: int, spoil: Callable[[Path], None] | None = None, options: str = "") -> None:
        folder = self.here.storage / "images" / str(vmid)
        folder.mkdir(parents=True)
        (folder / "raw").write_bytes(os.urandom(MIB))
        name = f"vm-{vmid}-disk-0.qcow2"
        run_program(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(folder / "raw"), str(folder / name)])
        (folder / "raw").unlink()
        if spoil is not None:
            spoil(folder / name)
        self.here.guest_file(vmid).write_text(f"memory: 16\nname: x\nscsi0: local:{vmid}/{name}{options}\n")

    def migrate(self, vmid: int, *more: str) -> str:
        command = ("migrate", str(vmid), self.there.endpoint, "--target-storage", "local", *more)
        done = self.here.run("mtunnel_tx.cli", *command, check=False)
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertNotIn("sending", done.stdout)
        self.assertIsNone(self.there.guest(vmid))
        return done.stderr


class DamagedTests(DamagedCase):
    def test_images(self) -> None:
        for number, (name, spoil, reason) in enumerate(SPOILED):
            self.add(100 + number, spoil)
            for more in ((), ("--dry-run",), ("--target-format", "raw")):
                with self.subTest(name=name, more=more):
                    told = self.migrate(100 + number, *more)
                    self.assertIn(reason, told)
                    self.assertIn(NOT_WHOLE, told)

    def test_a_drive_that_cannot_be_read(self) -> None:
        self.add(100, options=",cache=often")
        for more in ((), ("--dry-run",)):
            told = self.migrate(100, *more)
            self.assertNotIn("Traceback", told)
            self.assertIn("scsi0: cannot be read: ", told)
            self.assertEqual(told.count("\n"), 1, told)


class RunningTests(DamagedCase):
    def test_a_vmdk(self) -> None:
        """QEMU takes its mirror, and refuses to send the memory after that."""
        folder = self.here.storage / "images" / "100"
        folder.mkdir(parents=True)
        run_program(["qemu-img", "create", "-q", "-f", "vmdk", str(folder / "vm-100-disk-0.vmdk"), "1M"])
        self.here.guest_file(100).write_text("memory: 16\nvga: none\nscsi0: local:100/vm-100-disk-0.vmdk\n")
        self.here.run("mtunnel_tx.cli", "vm", "start", "100")
        for more in ((), ("--dry-run",)):
            self.assertIn("VM 100 cannot move while it runs: The vmdk format", self.migrate(100, "--online", *more))
        self.assertIn("running", self.here.run("mtunnel_tx.cli", "vm", "status", "100").stdout)

    def test_a_config_that_was_edited(self) -> None:
        """Both disks are of one size: a mirror would bring the one under the other's name."""
        folder = self.here.storage / "images" / "100"
        folder.mkdir(parents=True)
        for number in (0, 1):
            (folder / f"vm-100-disk-{number}.raw").write_bytes(bytes(MIB))
        config = self.here.guest_file(100)
        config.write_text("memory: 16\nvga: none\nvirtio0: local:100/vm-100-disk-0.raw,mbps=10\n")
        self.here.run("mtunnel_tx.cli", "vm", "start", "100")
        config.write_text(config.read_text().replace("disk-0", "disk-1"))
        for more in ((), ("--dry-run",)):
            told = self.migrate(100, "--online", *more)
            self.assertRegex(told, "virtio0: the VM runs with another file, .*vm-100-disk-0.raw")
        config.write_text(config.read_text().replace("virtio0", "scsi0"))
        self.assertIn("virtio0: the VM runs with this disk, which its config", self.migrate(100, "--online"))
        config.write_text(
            config.read_text().replace("scsi0", "virtio0").replace("disk-1", "disk-0").replace("16", "32")
        )
        self.assertIn("the VM runs with 16 MiB of memory, but its config says 32 MiB", self.migrate(100, "--online"))


class UnwritableTests(DamagedCase):
    def mount_read_only(self, folder: Path) -> None:
        if os.geteuid() != 0:
            raise SkipTest("NEEDS ROOT: a folder is mounted read-only")
        folder.mkdir(parents=True, exist_ok=True)
        if run_program(["mount", "--bind", str(folder), str(folder)], check=False).returncode:
            raise SkipTest("NEEDS MOUNT: nothing can be mounted here")
        self.addCleanup(run_program, ["umount", str(folder)], check=False, capture_output=True)
        run_program(["mount", "-o", "remount,ro,bind", str(folder)])

    def test_folders_that_are_read_only(self) -> None:
        """Nothing is seen of it before something is written."""
        self.add(100)
        for folder in (self.here.pve, self.here.state / "journal", self.there.pve, self.there.storage):
            with self.subTest(folder=folder):
                self.mount_read_only(folder)
                for more in ((), ("--dry-run",)):
                    self.assertIn(f"nothing can be written in '{folder}", self.migrate(100, *more))
                run_program(["umount", str(folder)])

    def test_a_folder_that_is_none(self) -> None:
        self.add(100)
        images = self.there.storage / "images"
        images.mkdir(parents=True, exist_ok=True)
        (images / "100").write_text("")
        self.assertIn(f"target: storage 'local': '{images}/100' is no folder", self.migrate(100, "--dry-run"))
        (images / "100").unlink()
        (images / "100").symlink_to(self.here.root)
        self.assertIn(f"target: storage 'local': '{images}/100' is a symbolic link", self.migrate(100, "--dry-run"))
