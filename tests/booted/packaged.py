"""The Debian package on a system that systemd has booted: upgraded, removed and purged while VMs move and run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest

from mtunnel_tx.backends.process import read_record
from tests.booted.real import CONFIG, RUNTIME, SERVICE, STATE, WORKERS, Booted, journal, run, shown
from tests.guest.ticker import read_beats
from tests.patience import patience_s, tries, wait_for
from tests.processes import run_program, started_process
from tests.whole.test_online import Listener

PACKAGE = os.environ.get("MTUNNEL_PACKAGE", "")
NEXT = os.environ.get("MTUNNEL_NEXT_PACKAGE", "")
NAME = "mtunnel-tx"


def version_of(file: str) -> str:
    return run("dpkg-deb", "--field", file, "Version").strip()


def dpkg(*argv: str) -> subprocess.CompletedProcess[str]:
    return run_program(["dpkg", *argv], check=False, capture_output=True, text=True, quiet_s=240)


class PackageCase(Booted):
    def setUp(self) -> None:
        if not (PACKAGE and NEXT):
            raise SkipTest("no package is named: tools/run-booted does that")
        super().setUp()
        # What the test's own node needs at its end is in the package.
        self.addCleanup(dpkg, "--install", PACKAGE)

    def begin_move(self, source: str = "tests.whole.plainsource") -> None:
        """A running VM on its way, slowly; usually as Proxmox sends it."""
        self.before, self.after = self.boot(), Listener(RUNTIME / "200.serial0")
        self.addCleanup(setattr, self.after, "stopped", True)
        argv = [sys.executable, "-m", source, "migrate", "100", self.there.endpoint, "--online"]
        self.move = self.start([*argv, "--target-vmid", "200", "--target-storage", "local", "--bwlimit", "1024"])
        wait_for("bytes that come", self.bytes_come)

    def bytes_come(self) -> bool:
        assert self.move.poll() is None, journal()
        tunnels = self.there.ask(cmd="status")["tunnels"]
        return bool(tunnels) and tunnels[0]["bytes_in"] > 1 << 18

    def end_move(self) -> None:
        """It arrives, and not a beat is lost."""
        out, err = self.move.communicate(timeout=patience_s(120))
        self.assertEqual(self.move.returncode, 0, (out, err))
        wait_for("beats at the target", lambda: len(self.after.beats) >= 5)
        numbers = [number for number, _ in read_beats(self.before.text + self.after.text)]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))

    def upgrade(self) -> str:
        """Returns: what it says."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = started_process(self.addCleanup, ["dpkg", "--install", NEXT], **pipes)
        for _ in tries("the upgrade", quiet_s=120):
            # The source works a tenth of the time only: on a busy host, too, the move is still under way afterwards.
            self.move.send_signal(signal.SIGSTOP)
            time.sleep(0.9)
            self.move.send_signal(signal.SIGCONT)
            time.sleep(0.1)
            if process.poll() is not None:
                break
        said, _ = process.communicate(timeout=patience_s())
        self.assertEqual(process.returncode, 0, said)
        self.assertIsNone(self.move.poll(), "the move was over before the upgrade was")
        return str(said)

    @property
    def version(self) -> str:
        return str(self.there.ask(cmd="status")["version"])


class SurvivingTests(PackageCase):
    settings = WORKERS + "[limits]\nrestart_s = 120\n"

    def test_an_upgrade_restarts_the_service_and_the_move_goes_on(self) -> None:
        self.restart_in("tests.whole.plainsource")

    def test_the_same_for_a_move_from_mtunnel(self) -> None:
        self.restart_in("mtunnel_tx.cli")

    def restart_in(self, source: str) -> None:
        self.begin_move(source)
        pid = self.pid
        self.upgrade()
        self.assertNotEqual(self.pid, pid)
        wait_for("the next version", lambda: self.version == version_of(NEXT))
        self.end_move()


class PlainTests(PackageCase):
    settings = "workers = 0\n"

    def test_an_upgrade_that_would_cut_a_move_leaves_the_daemon(self) -> None:
        self.begin_move()
        pid = self.pid
        self.assertIn("keeps running", self.upgrade())
        self.assertEqual(self.pid, pid)
        self.assertEqual(self.version, version_of(PACKAGE))
        self.end_move()
        run("mtunnel", "drain")
        wait_for("its end", lambda: shown("ActiveState") == "inactive")
        run("systemctl", "start", SERVICE)
        self.assertEqual(self.version, version_of(NEXT))

    def test_an_upgrade_without_a_move(self) -> None:
        pid = self.pid
        self.assertEqual(dpkg("--install", NEXT).returncode, 0)
        self.assertNotEqual(self.pid, pid)
        self.assertEqual(self.version, version_of(NEXT))

    def test_a_service_that_does_not_run_is_not_started(self) -> None:
        run("systemctl", "stop", SERVICE)
        self.assertEqual(dpkg("--install", NEXT).returncode, 0)
        self.assertEqual(shown("ActiveState"), "inactive")

    def test_removed_and_purged(self) -> None:
        """Not while a VM is on its way; the one that has arrived runs on, and its files stay."""
        self.begin_move()
        refused = dpkg("--remove", NAME)
        self.assertNotEqual(refused.returncode, 0)
        self.assertIn("a VM is on its way", refused.stderr)
        self.assertEqual(shown("ActiveState"), "active")
        self.end_move()
        record = read_record(RUNTIME / "200.pid")
        assert record is not None
        removed = dpkg("--remove", NAME)
        self.assertEqual(removed.returncode, 0, removed)
        self.assertEqual(shown("LoadState"), "not-found")
        count = len(self.after.beats)
        wait_for("more beats", lambda: len(self.after.beats) > count + 3)
        purged = dpkg("--purge", NAME)
        self.assertEqual(purged.returncode, 0, purged)
        self.assertIn(f"{STATE} stays", purged.stderr)
        self.assertTrue(Path(f"/proc/{record.pid}").exists())
        self.assertFalse(CONFIG.exists())
        self.assertEqual(list(Path("/etc/systemd/system").rglob("*mtunnel*")), [])
        self.assertEqual(dpkg("--install", PACKAGE).returncode, 0)
        CONFIG.parent.mkdir(exist_ok=True)
        CONFIG.write_text('node = "booted"\n')
        self.assertIn("running", self.status(self.there, 200))
