"""Encrypted images: by the guest, which are bytes like others, or by QEMU, which would need a key that stays here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.luks import make_luks
from tests.patience import wait_for
from tests.processes import run_program
from tests.whole.test_online import GUEST, Listener, OnlineCase

MIB = 1 << 20
PASSPHRASE = "0123456789abcdef"
KEY = ("--object", f"secret,id=s,data={PASSPHRASE}")
CONTENT = 0x5A
AES = "encrypt.format=aes,encrypt.key-secret=s"
REFUSED = "'local:100/vm-100-disk-1.qcow2' cannot be sent: image is encrypted"


def make_aes(path: Path) -> None:
    """A real one, by qemu-img."""
    path.parent.mkdir(parents=True, exist_ok=True)
    run_program(["qemu-img", "create", "-q", "-f", "qcow2", *KEY, "-o", AES, str(path), str(2 * MIB)])


def opens(path: Path) -> bool:
    """Whether QEMU finds the content of a container with its key."""
    image = f"driver=luks,key-secret=s,file.filename={path}"
    argv = ["qemu-io", "-r", *KEY, "--image-opts", image, "-c", f"read -P {CONTENT} 0 2M"]
    done = run_program(argv, check=False, capture_output=True, text=True)
    return done.returncode == 0 and "failed" not in done.stdout


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class EncryptedTests(OnlineCase):
    def setUp(self) -> None:
        super().setUp()
        self.images = self.here.storage / "images" / "100"
        self.arrived = self.there.storage / "images" / "200"

    def make_luks(self) -> tuple[str, str]:
        """A container as cryptsetup makes it, too, in a raw image. Returns: its line in the config; its SHA-256."""
        path = self.images / "vm-100-disk-1.raw"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_luks(PASSPHRASE.encode(), bytes([CONTENT]) * (2 * MIB)))
        self.assertTrue(opens(path))
        return f"scsi1: local:100/vm-100-disk-1.raw,size={path.stat().st_size // 1024}K\n", digest(path)

    def make_encrypted(self) -> None:
        make_aes(self.images / "vm-100-disk-1.qcow2")

    def look(self) -> list[str]:
        """What the check says stands in the way."""
        report = json.loads(self.migrate("--dry-run", "--json", check=False).stdout)
        return [found["text"] for found in report["findings"] if found["severity"] == "refuse"]

    def assert_luks_there(self, made: str) -> None:
        self.assertIn(made, [digest(path) for path in self.arrived.iterdir()])

    def assert_refused(self, key: str) -> None:
        """Before a byte moves: the target has not even had a task."""
        self.assertEqual(self.look(), [f"{key}: {REFUSED}"])
        done = self.migrate(check=False)
        self.assertEqual((done.returncode, self.there.images(200)), (1, []))
        self.assertIn(REFUSED, done.stderr)
        self.assertEqual(list((self.there.state / "tasks").rglob("UPID*")), [])

    def test_of_the_guest_while_it_is_off(self) -> None:
        line, made = self.make_luks()
        self.here.guest_file(100).write_text(f"memory: 48\n{line}")
        self.assertEqual(self.look(), [])
        self.assertIn("scsi1: SHA-256 agrees", self.migrate("--delete").stdout)
        self.assert_luks_there(made)

    def test_of_the_guest_while_it_runs(self) -> None:
        line, made = self.make_luks()
        self.boot(more=line, spare=False)
        after = Listener(self.there.runtime / "200.serial0")
        self.addCleanup(setattr, after, "stopped", True)
        self.assertEqual(self.look(), [])
        self.migrate()
        wait_for("beats at the target", lambda: len(after.beats) >= 3)
        self.assert_luks_there(made)

    def test_of_the_guest_in_an_image_of_another_format(self) -> None:
        line, made = self.make_luks()
        self.here.guest_file(100).write_text(f"memory: 48\n{line}")
        self.migrate("--target-format", "qcow2")
        (image,) = self.arrived.iterdir()
        run_program(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(image.with_name("flat"))])
        self.assertEqual(digest(image.with_name("flat")), made)
        image.with_name("flat").unlink()

    def test_of_qemu_while_it_is_off(self) -> None:
        self.make_encrypted()
        self.here.guest_file(100).write_text(f"{GUEST}scsi1: local:100/vm-100-disk-1.qcow2,size=2M\n")
        self.images.joinpath("vm-100-disk-0.raw").write_bytes(bytes(16 * MIB))
        self.assert_refused("scsi1")

    def test_of_qemu_while_the_vm_runs(self) -> None:
        self.make_encrypted()
        self.boot(more="unused0: local:100/vm-100-disk-1.qcow2\n", spare=False)
        self.assert_refused("unused0")

    def test_of_qemu_is_not_opened(self) -> None:
        """Neither here nor at a target is there a key."""
        self.make_encrypted()
        self.here.guest_file(100).write_text("memory: 48\nscsi1: local:100/vm-100-disk-1.qcow2,size=2M\n")
        done = self.here.run("mtunnel_tx.cli", "vm", "start", "100", check=False)
        self.assertIn("image is encrypted", done.stderr)
