"""Disks of any number of sectors arrive with exactly their size."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.processes import run_program
from tests.whole.node import Node
from tests.whole.test_online import OnlineCase

SIZES = {"vm-100-disk-1.raw": (1 << 20) + 512, "vm-100-disk-2.raw": 1536, "vm-100-disk-3.qcow2": (1 << 20) + 512}
FIRMWARE = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
NOISE = os.urandom(65536)
DRIVES = "".join(f"scsi{number}: local:100/{name}\n" for number, name in enumerate(SIZES, 1))


def make_disks(node: Node) -> None:
    """One disk a size, raw ones full of noise."""
    folder = node.storage / "images" / "100"
    folder.mkdir(parents=True, exist_ok=True)
    for name, size_bytes in SIZES.items():
        if name.endswith("raw"):
            (folder / name).write_bytes(os.urandom(size_bytes))
        else:
            argv = ["qemu-img", "create", "-q", "-f", "qcow2", str(folder / name), str(size_bytes)]
            run_program(argv, check=True)


class OfflineTests(SynchronousTestCase):
    def test_with_delete(self) -> None:
        """The target's digests are those of here, or nothing would be deleted."""
        here, there = Node("here"), Node("there").start()
        for node in (here, there):
            self.addCleanup(node.close)
        make_disks(here)
        before = {path.name: path.read_bytes() for path in (here.storage / "images" / "100").iterdir()}
        here.guest_file(100).write_text(f"memory: 16\nname: sizes\n{DRIVES}")
        done = here.run("mtunnel_tx.cli", "migrate", "100", there.endpoint, "--target-storage", "local", "--delete")
        self.assertIn("was removed here", done.stdout)
        after = {path.name: path.read_bytes() for path in (there.storage / "images" / "100").iterdir()}
        self.assertEqual(after, before)


class ThinTests(SynchronousTestCase):
    def test_holes_are_not_sent(self) -> None:
        """Half a terabyte of nothing would take an hour, and more space than there is."""
        here, there = Node("here"), Node("there").start()
        for node in (here, there):
            self.addCleanup(node.close)
        folder = here.storage / "images" / "100"
        folder.mkdir(parents=True)
        with (folder / "vm-100-disk-0.raw").open("wb") as file:
            file.seek(300 << 30)
            file.write(NOISE)
            file.truncate(512 << 30)
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"]
        run_program([*argv, str(folder / "vm-100-disk-1.qcow2"), "512M"], check=True)
        here.guest_file(100).write_text(
            "memory: 16\nname: thin\nscsi0: local:100/vm-100-disk-0.raw\nscsi1: local:100/vm-100-disk-1.qcow2\n"
        )
        done = here.run("mtunnel_tx.cli", "migrate", "100", there.endpoint, "--target-storage", "local")
        self.assertRegex(done.stdout, r"scsi0: 0\.1 MiB of 0\.1 MiB")
        copy = there.storage / "images" / "100" / "vm-100-disk-0.raw"
        self.assertEqual((copy.stat().st_size, copy.stat().st_blocks * 512 < 1 << 20), (512 << 30, True))
        with copy.open("rb") as file:
            file.seek(300 << 30)
            self.assertEqual(file.read(len(NOISE)), NOISE)
        images = [node.storage / "images" / "100" / "vm-100-disk-1.qcow2" for node in (here, there)]
        run_program(["cmp", *map(str, images)], check=True)


class OnlineTests(OnlineCase):
    def test_running(self) -> None:
        make_disks(self.here)
        before = {path.name: path.read_bytes() for path in (self.here.storage / "images" / "100").glob("*.raw")}
        self.boot(more=DRIVES, spare=False)
        self.migrate()
        folder = self.there.storage / "images" / "200"
        for name in ("vm-100-disk-1.raw", "vm-100-disk-2.raw"):
            self.assertEqual((folder / name.replace("100", "200")).read_bytes(), before[name])
        listed = self.there.run("mtunnel_tx.pvesm", "list", "local").stdout
        self.assertRegex(listed, rf"vm-200-disk-3.qcow2 +qcow2 +images +{SIZES['vm-100-disk-3.qcow2']} ")


class EfiTests(OnlineCase):
    """An EFI disk's content has its own size, whatever file it is in."""

    def setUp(self) -> None:
        super().setUp()
        if not FIRMWARE.exists():
            raise SkipTest("no OVMF is installed: UEFI IS NOT TESTED")

    def move(self, name: str) -> Path:
        efi = f"efidisk0: local:100/{name},efitype=4m"
        self.here.guest_file(100).write_text(f"bios: ovmf\n{efi}\nmachine: q35\nmemory: 64\nname: efi\n")
        self.here.run("mtunnel_tx.cli", "vm", "start", "100")
        self.migrate()
        self.assertIn("running", self.status(self.there, 200))
        (found,) = (self.there.storage / "images" / "200").iterdir()
        return found

    def image(self, name: str) -> Path:
        path = self.here.storage / "images" / "100" / name
        path.parent.mkdir(parents=True)
        return path

    def test_a_file_that_is_larger(self) -> None:
        path = self.image("vm-100-disk-0.raw")
        path.write_bytes(FIRMWARE.read_bytes())
        os.truncate(path, 4 << 20)
        self.assertEqual(self.move(path.name).stat().st_size, 4 << 20)

    def test_qcow2(self) -> None:
        path = self.image("vm-100-disk-0.qcow2")
        argv = ["qemu-img", "convert", "-O", "qcow2", str(FIRMWARE), str(path)]
        run_program(argv, check=True)
        self.assertEqual(self.move(path.name).name, "vm-200-disk-0.qcow2")
