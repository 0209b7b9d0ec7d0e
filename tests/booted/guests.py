"""mtunnel-guests.service on a system that systemd has booted: VMs start with it, and end in order before it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mtunnel_tx.backends.process import read_record
from tests.booted.real import BOOTED, CONFIG, RUNTIME, STATE, install_units, run, shown
from tests.cli.vmcase import CONF
from tests.guest.ticker import ticker
from tests.patience import wait_for
from tests.processes import run_program

UNIT = "mtunnel-guests.service"
VMIDS = (100, 101)


class GuestsTests(SynchronousTestCase):
    def setUp(self) -> None:
        if not BOOTED.is_dir() or os.geteuid() != 0:
            raise SkipTest("systemd is not PID 1 here: NO SERVICE IS TRIED (make booted boots it)")
        install_units(UNIT)
        CONFIG.parent.mkdir(exist_ok=True)
        CONFIG.write_text('node = "booted"\n')
        self.addCleanup(self.end_all)
        run("mtunnel", "init", "--yes")
        for vmid in VMIDS:
            folder = STATE / "storage/images" / str(vmid)
            folder.mkdir(parents=True)
            (folder / f"vm-{vmid}-disk-0.raw").write_bytes(ticker().ljust(4 << 20, b"\0"))
            conf = CONF.replace("disks:", "local:").replace("100", str(vmid)).replace("ticker", f"vm{vmid}")
            # The guest knows no power button: it is ended after a second.
            (STATE / f"pve/nodes/booted/qemu-server/{vmid}.conf").write_text(f"{conf}startup: order={vmid},down=1\n")
            run("mtunnel", "vm", "autostart", str(vmid), "on")

    def end_all(self) -> None:
        run_program(["systemctl", "stop", UNIT], check=False, quiet_s=120)
        for vmid in VMIDS:
            run_program(["mtunnel", "vm", "stop", str(vmid)], check=False, capture_output=True)
        shutil.rmtree(STATE)
        shutil.rmtree(RUNTIME, ignore_errors=True)

    def cgroup(self, vmid: int) -> str:
        record = read_record(RUNTIME / f"{vmid}.pid")
        assert record is not None
        return Path(f"/proc/{record.pid}/cgroup").read_text()

    def test_started_and_shut_down(self) -> None:
        run("systemctl", "start", UNIT)
        for vmid in VMIDS:
            wait_for("its scope", lambda vmid=vmid: f"mtunnel-vm-{vmid}.scope" in self.cgroup(vmid))
            self.assertIn(UNIT, shown("Before", f"mtunnel-vm-{vmid}.scope"))
        run("systemctl", "stop", UNIT)
        self.assertEqual(list(RUNTIME.glob("*.pid")), [])
        self.assertEqual((shown("ActiveState", UNIT), shown("Result", UNIT)), ("inactive", "success"))

    def test_one_that_does_not_start_keeps_nobody_from_being_shut_down(self) -> None:
        (STATE / "storage/images/100/vm-100-disk-0.raw").unlink()
        run("systemctl", "start", UNIT)
        self.assertEqual(shown("ActiveState", UNIT), "active")
        self.assertIn("mtunnel-vm-101.scope", self.cgroup(101))
        run("systemctl", "stop", UNIT)
        self.assertEqual(list(RUNTIME.glob("[1-9]*.pid")), [])

    def test_one_that_somebody_started_by_hand(self) -> None:
        """It outlives the session, here a unit of its own, in which it was started."""
        run("systemd-run", "--wait", "--collect", "--unit=session", shutil.which("mtunnel") or "", "vm", "start", "100")
        self.assertIn("mtunnel-vm-100.scope", self.cgroup(100))
        self.assertIn("running", run("mtunnel", "vm", "status", "100"))
