"""A VM that is off goes to a node where its disks become images of another format, and is deleted here."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.processes import run_program
from tests.whole.node import Node

MIB = 1 << 20
CONTENT = b"one" + bytes(3 * MIB) + b"two" + bytes(MIB - 6)
GUEST = """\
name: web
scsi0: local:100/vm-100-disk-0.raw,size=4M
scsi1: local:100/vm-100-disk-1.qcow2,format=qcow2,size=4M
"""


class ConvertingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.here, self.there = Node("here"), Node("there").start()
        for node in (self.here, self.there):
            self.addCleanup(node.close)
        self.folder = self.here.storage / "images" / "100"
        self.folder.mkdir(parents=True)
        raw, qcow2 = self.folder / "vm-100-disk-0.raw", self.folder / "vm-100-disk-1.qcow2"
        raw.write_bytes(CONTENT)
        run_program(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(qcow2)])
        run_program(["qemu-img", "snapshot", "-c", "before", str(qcow2)])
        self.here.guest_file(100).write_text(GUEST)

    def migrate(self, *more: str, check: bool = True) -> str:
        arguments = ("migrate", "100", self.there.endpoint, "--target-vmid", "200", "--target-storage", "local")
        done = self.here.run("mtunnel_tx.cli", *arguments, *more, check=check)
        return done.stdout + done.stderr

    def assert_arrived(self, format: str) -> None:
        for number in (0, 1):
            image = self.there.storage / "images" / "200" / f"vm-200-disk-{number}.{format}"
            flat = image.with_name("flat")
            run_program(["qemu-img", "convert", "-f", format, "-O", "raw", str(image), str(flat)])
            self.assertEqual(flat.read_bytes(), CONTENT)
            self.assertLess(image.stat().st_blocks * 512, MIB)
            flat.unlink()
            self.assertIn(f"local:200/vm-200-disk-{number}.{format},size=4M", self.there.guest(200) or "")

    def test_to_qcow2(self) -> None:
        said = self.migrate("--target-format", "qcow2", "--delete")
        self.assertIn("scsi0: becomes qcow2 there, from raw\n", said)
        self.assertIn("scsi0: SHA-256 of its content agrees\nscsi1: SHA-256 agrees\n", said)
        self.assert_arrived_with_snapshot()
        self.assertEqual((self.here.guest(100), self.here.images(100)), (None, []))

    def assert_arrived_with_snapshot(self) -> None:
        kept = self.there.storage / "images" / "200" / "vm-200-disk-1.qcow2"
        listed = run_program(["qemu-img", "snapshot", "-l", str(kept)], capture_output=True, text=True)
        self.assertIn("before", listed.stdout)
        config = self.there.guest(200) or ""
        self.assertIn("vm-200-disk-0.qcow2,size=4M", config)
        self.assertIn("vm-200-disk-1.qcow2,format=qcow2,size=4M", config)

    def test_to_raw(self) -> None:
        said = self.migrate("--target-format", "raw", "--delete", check=False)
        reason = "where it becomes raw: before; --drop-snapshots lets them go"
        self.assertIn(f"scsi1: the snapshots in its image would be lost {reason}", said)
        self.assertEqual(self.there.images(200), [])
        said = self.migrate("--target-format", "raw", "--delete", "--drop-snapshots")
        self.assertIn("scsi0: SHA-256 agrees\nscsi1: SHA-256 of its content agrees\n", said)
        self.assert_arrived("raw")
        self.assertEqual((self.here.guest(100), self.here.images(100)), (None, []))
