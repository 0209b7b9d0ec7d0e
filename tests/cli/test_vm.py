"""`mtunnel vm`: a VM started, seen and stopped from the command line, each time by another process."""

import json
import os
import signal
import socket
from pathlib import Path

from mtunnel_tx.ports.programs import Program
from mtunnel_tx.source.departure import Power, claim
from tests.cli.vmcase import CONF, NOBODY, VmCase

LISTED = "; mtunnel vm list shows those that are there"


class Vm(VmCase):
    def setUp(self):
        super().setUp()
        self.add_ticker()

    def test_a_life(self):
        self.assertEqual(self.vm("list"), (0, "VMID  STATUS   NAME    NOTE\n100   stopped  ticker\n", ""))
        status, _, err = self.vm("start", "100")
        self.assertEqual(status, 0, err)
        self.assertEqual(self.status("100"), "status: running\n")
        self.assertIn("100   running  ticker\n", self.vm("list")[1])
        self.assertEqual(self.vm("stop", "100"), (0, "", ""))
        self.assertEqual(self.status("100"), "status: stopped\n")
        self.assertEqual(self.left(), [])

    def test_by_name_and_as_json(self):
        self.assertEqual(self.said("start", "ticker")["vmid"], 100)
        found = self.said("status", "ticker")
        self.assertIn(found.pop("accelerator"), ("kvm", "tcg"))
        self.assertEqual(found, {"vmid": 100, "status": "running", "reason": "", "note": "", "notes": []})
        row = {"vmid": 100, "name": "ticker", "status": "running", "lock": "", "onboot": False, "note": ""}
        self.assertEqual(self.said("list"), {"guests": [row], "notes": []})
        self.assertEqual(self.said("stop", "ticker"), {"vmid": 100, "notes": []})

    def test_what_runs_it(self):
        (self.guests / "100.conf").write_text(CONF + "kvm: 0\n")
        self.assertEqual(self.vm("start", "100")[0], 0)
        self.assertEqual(self.vm("status", "100")[1], "status: running\naccelerator: none, the VM is emulated\n")

    def test_names_that_lead_nowhere(self):
        self.assertEqual(self.refused("start", "nobody"), f"there is no VM 'nobody'{LISTED}")
        self.assertEqual(self.refused("show", "4711"), f"there is no VM 4711{LISTED}")
        (self.guests / "101.conf").write_text(CONF)
        self.assertEqual(
            self.refused("start", "ticker"), "several VMs have the name 'ticker', so give the number: 100, 101"
        )
        status, _, err = self.vm("start", "7")
        self.assertEqual((status, "'7' is not a VMID" in err), (2, True))

    def test_failure_as_json(self):
        status, out, err = self.vm("start", "nobody", "--json")
        self.assertEqual(
            (status, json.loads(out), err), (1, {"success": False, "msg": f"there is no VM 'nobody'{LISTED}"}, "")
        )

    def test_why_it_does_not_start(self):
        (self.guests / "100.conf").write_text(CONF + "hostpci0: mapping=gpu\n")
        self.assertEqual(self.refused("start", "100"), "hostpci0: hardware of one host cannot move to another")

    def test_a_locked_one_is_left_alone(self):
        (self.guests / "100.conf").write_text(CONF + "lock: migrate\n")
        for action in ("start", "stop", "shutdown"):
            self.assertEqual(self.refused(action, "100"), f"VM 100 is locked (migrate){NOBODY}")

    def test_who_holds_it(self):
        """A journal stands: of one that comes, or of one on its way out; only `mtunnel settle` decides about it."""
        (self.guests / "100.conf").write_text(CONF + "lock: migrate\n")
        journal = self.folder / "state" / "journal"
        journal.mkdir()
        (journal / "100.jsonl").write_text("{}\n")
        reason = self.refused("start", "100")
        self.assertIn("VM 100 is locked (migrate): it comes from another host, or came from one and waits", reason)
        self.assertIn("'mtunnel status' says which, 'mtunnel settle 100' decides", reason)
        (journal / "100.jsonl").unlink()
        where = {"host": "b", "target_vmid": 200, "token": "mig@pve!t1", "at_s": 0, "delete": False}
        record = claim(program=Program(boot="x", pid=1, started=1), power=Power.OFF, **where)
        (journal / "source-100.jsonl").write_text(json.dumps({"version": 2, **record}) + "\n")
        text = "was on its way to b as VM 200; its program has ended: run 'mtunnel settle 100'"
        self.assertEqual(self.refused("start", "100"), f"VM 100 is locked (migrate): {text}")

    def test_a_guest_that_ignores_its_power_button(self):
        """The ticker knows no ACPI."""
        self.assertEqual(self.refused("shutdown", "100"), "VM 100 not running")
        self.assertEqual(self.vm("start", "100")[0], 0)
        reason = "VM 100 did not shut down within 1 s; 'mtunnel vm stop 100' ends it at once"
        self.assertEqual(self.refused("shutdown", "100", "--timeout", "1"), reason)
        self.assertEqual(self.status("100"), "status: running\n")

    def test_one_that_a_migration_left(self):
        self.assertEqual(self.vm("start", "100")[0], 0)
        self.stop_guest()
        (self.guests / "100.conf").write_text(CONF + "lock: migrate\n")
        self.assertEqual(self.refused("resume", "100"), f"VM 100 is locked (migrate){NOBODY}")
        self.assertEqual(self.status("100"), "status: paused\n")
        for action in ("unlock", "unlock", "resume", "resume"):
            self.assertEqual(self.vm(action, "100"), (0, "", ""))
        self.assertEqual(sorted((self.guests / "100.conf").read_text().split("\n")), sorted(CONF.split("\n")))
        self.assertEqual(self.status("100"), "status: running\n")
        self.assertEqual(self.vm("stop", "100"), (0, "", ""))
        self.assertEqual(self.refused("resume", "100"), "VM 100 not running")

    def stop_guest(self):
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.run_dir / "100.qmp"))
            lines = monitor.makefile("rb")
            for command in (b"qmp_capabilities", b"stop"):
                monitor.sendall(b'{"execute":"%s"}\n' % command)
            while b'"STOP"' not in lines.readline():
                pass

    def test_a_held_one_is_not_unlocked(self):
        """Its lock says whose it is; only `mtunnel settle` knows what else there is to do."""
        (self.guests / "100.conf").write_text(CONF + "lock: migrate\n")
        journal = self.folder / "state" / "journal"
        journal.mkdir()
        (journal / "100.jsonl").write_text("{}\n")
        self.assertEqual(self.refused("unlock", "100"), "VM 100 came from another host: mtunnel status, mtunnel settle")

    def test_one_that_is_not_there(self):
        for action in ("status", "start", "stop"):
            self.assertIn("there is no VM 101", self.refused(action, "101"))

    def test_a_proxmox_node_has_its_own(self):
        self.write('profile = "proxmox"\n')
        expected = "mtunnel vm: VMs belong to Proxmox here; run instead:\nqm start 100\n"
        self.assertEqual(self.vm("start", "100"), (1, "", expected))


class Orphans(VmCase):
    """A QEMU that nobody knows any more, for want of its config or of its record, is seen and can be ended."""

    def setUp(self):
        super().setUp()
        self.add_ticker()
        self.assertEqual(self.vm("start", "100")[0], 0)
        self.qemu = self.pid()
        self.addCleanup(self.kill_qemu)

    def kill_qemu(self):
        if self.lives():
            os.kill(self.qemu, signal.SIGKILL)

    def lives(self):
        try:
            return " Z " not in Path(f"/proc/{self.qemu}/stat").read_text()
        except FileNotFoundError:
            return False

    def test_its_config_was_removed(self):
        (self.guests / "100.conf").unlink()
        (row,) = self.said("list")["guests"]
        self.assertEqual((row["vmid"], row["status"]), (100, "orphan"))
        self.assertIn("mtunnel vm stop 100", row["note"])
        self.assertEqual(self.status("100"), "status: running\nnote: its config was removed\n")
        self.assertEqual(self.vm("stop", "100"), (0, "", ""))
        self.assertEqual((self.lives(), self.left()), (False, []))
        self.assertEqual(self.said("list")["guests"], [])

    def test_the_runtime_directory_was_emptied(self):
        for file in self.run_dir.glob("100.*"):
            file.unlink()
        self.assertEqual(self.status("100"), "status: running\n")
        self.assertEqual(self.refused("start", "100"), "VM 100 already running")
        self.assertEqual(self.vm("stop", "100"), (0, "", ""))
        self.assertEqual((self.lives(), self.left()), (False, []))

    def test_another_host_below_another_folder_is_not_asked(self):
        (self.run_dir / "100.pid").unlink()
        self.config.write_text(self.config.read_text().replace("/run", "/run2"))
        self.assertEqual(self.said("list")["guests"][0]["status"], "stopped")
        self.assertFalse((self.run_dir / "100.pid").exists())
