"""A Debian as clouds have it, with UEFI and a TPM, goes from one plain host to another while it runs."""

from __future__ import annotations

import re
import shutil
import sys
from itertools import pairwise
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.debian.console import Console
from tests.patience import wait_for
from tests.processes import run_program, started_process
from tests.whole.node import Node

IMAGE = Path(__file__).parents[2] / ".guests" / "debian.qcow2"
"""Where `make guests` puts it."""
BOOT_S = 600.0
MOVE_S = 400.0
ROOT_OFFSET = 65 << 20
PASSWORD = "moved while it runs"
PCRS = "cat /sys/class/tpm/tpm0/pcr-sha256/0 /sys/class/tpm/tpm0/pcr-sha256/7"


class DebianCase(SynchronousTestCase):
    def setUp(self) -> None:
        if not IMAGE.exists():
            raise SkipTest("no .guests/debian.qcow2 (make guests makes it): NO WHOLE DEBIAN IS MOVED")
        for program in ("qemu-system-x86_64", "swtpm", "swtpm_setup", "xorriso"):
            if shutil.which(program) is None:
                raise SkipTest(f"{program} is not installed: NO WHOLE DEBIAN IS MOVED")
        if not Path("/usr/share/OVMF/OVMF_VARS_4M.fd").exists():
            raise SkipTest("ovmf is not installed: NO WHOLE DEBIAN IS MOVED")
        self.here, self.there = Node("here"), Node("there").start()
        for node in (self.here, self.there):
            self.addCleanup(node.close)
            self.addCleanup(self.end_guests, node)

    def end_guests(self, node: Node) -> None:
        for file in node.runtime.glob("*.pid"):
            node.run("mtunnel_tx.cli", "vm", "stop", file.stem)

    def console(self, node: Node, vmid: int) -> Console:
        console = Console(node.runtime / f"{vmid}.serial0")
        self.addCleanup(console.close)
        return console

    def import_debian(self, *more: str) -> Console:
        secret = self.here.state / "secret"
        secret.write_text(PASSWORD)
        words = ("vm", "import", str(IMAGE), "--name", "debian", "--memory", "768M", "--uefi", *more)
        seed = f"user=me,password={secret}"
        words += ("--cloud-init", seed, "--set", "ciupgrade=0", "--vmid", "100", "--start")
        self.here.run("mtunnel_tx.cli", *words)
        console = self.console(self.here, 100)
        console.log_in("me", PASSWORD, BOOT_S)
        return console


class Moved(DebianCase):
    def test_it_runs_on_there(self) -> None:
        console = self.import_debian("--tpm")
        self.assertEqual(console.run("id -un; hostname"), "me\ndebian")
        console.run("dd if=/dev/urandom of=data bs=1M count=32 status=none; sync", 120)
        console.run("(while sleep 0.2; do cut -d' ' -f1 /proc/uptime; done >beats) & true")
        known = "sha256sum <data; cat /proc/sys/kernel/random/boot_id"
        before, measured, up_s = console.run(known), console.run(PCRS), self.uptime_s(console)
        self.assertRegex(measured, r"^[0-9A-F]{64}\n[0-9A-F]{64}$")
        self.assertNotIn("0" * 64, measured)
        said = self.migrate("--online", "--delete")
        print(said)
        moved = self.console(self.there, 200)
        moved.type("")
        moved.expect(r"\$ ")
        self.assertEqual(moved.run(known), before)
        self.assertEqual(moved.run(PCRS), measured)
        self.assertGreater(self.uptime_s(moved), up_s)
        beats = [float(line) for line in moved.run("cat beats", 120).split()]
        gaps = [later - earlier for earlier, later in pairwise(beats)]
        print(f"{len(beats)} beats from {beats[0]} to {beats[-1]} s; the longest gap {max(gaps):.2f} s")
        self.assertGreater(beats[-1], up_s)
        self.assert_same_on_disk(moved, before)
        self.assertEqual((self.here.guest(100), self.here.images(100)), (None, []))
        self.assert_sound_after_its_end(moved)

    def uptime_s(self, console: Console) -> float:
        return float(console.run("cut -d' ' -f1 /proc/uptime"))

    def migrate(self, *more: str) -> str:
        words = ("migrate", "100", self.there.endpoint, "--target-vmid", "200", "--target-storage", "local")
        return self.here.run("mtunnel_tx.cli", *words, *more, quiet_s=MOVE_S).stdout

    def assert_same_on_disk(self, console: Console, known: str) -> None:
        """What the disk has, not the guest's memory."""
        read = console.run("kill %1; sync; dd if=data bs=1M iflag=direct status=none | sha256sum", 120)
        self.assertEqual(read.splitlines()[-1], known.splitlines()[0])

    def assert_sound_after_its_end(self, console: Console) -> None:
        console.type("exit")
        console.expect("login: ")
        argv = [sys.executable, "-m", "mtunnel_tx.cli", "vm", "shutdown", "200", "--timeout", "600"]
        started_process(self.addCleanup, argv, env=self.there.environ)
        console.expect(r"reboot: Power down", MOVE_S)
        wait_for("its end", lambda: not (self.there.runtime / "200.pid").exists())
        named = re.search(r"^scsi0: local:([^,]+)", self.there.guest(200) or "", re.MULTILINE)
        assert named is not None
        image = self.there.storage / "images" / named[1]
        flat = image.with_name("flat")
        run_program(["qemu-img", "convert", "-O", "raw", image, flat])
        run_program(["e2fsck", "-fn", f"{flat}?offset={ROOT_OFFSET}"], capture_output=True)
