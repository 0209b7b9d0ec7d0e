"""The program that sends a running VM is killed; what is left is found, told and ended, and the VM runs on."""

from __future__ import annotations

import json

from tests.patience import patience_s
from tests.processes import run_program
from tests.whole.node import wait_for
from tests.whole.test_online import OnlineCase


class KilledTests(OnlineCase):
    def kill_on_the_way(self) -> None:
        migration = self.start_slow_migration()
        wait_for("the VM there", lambda: (self.there.runtime / "200.pid").exists())
        wait_for("its journal", lambda: '"starting"' in self.journal.read_text())
        self.refuse_a_second_program()
        migration.kill()
        migration.communicate(timeout=patience_s())

    def refuse_a_second_program(self) -> None:
        for words in (("settle", "100"), ("vm", "unlock", "100")):
            done = self.here.run("mtunnel_tx.cli", *words, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn("VM 100 is on its way to ", done.stderr)
        self.assertIn("on its way to 127.0.0.1 as VM 200: process ", self.departures()["100"])

    @property
    def journal(self):  # type: ignore[no-untyped-def]
        return self.here.state / "journal" / "source-100.jsonl"

    def departures(self) -> dict[str, str]:
        done = self.here.run("mtunnel_tx.cli", "status", "--json", check=False)
        found: dict[str, str] = json.loads(done.stdout)["departures"]
        return found

    def test_settled(self) -> None:
        before = self.boot(burst=64)
        self.kill_on_the_way()
        left = "was on its way to 127.0.0.1 as VM 200; its program has ended: run 'mtunnel settle 100'"
        self.assertEqual(self.departures(), {"100": left})
        refused = self.here.run("mtunnel_tx.cli", "settle", "100", "--there", check=False)
        self.assertEqual((refused.returncode, "VM 100 is this host's" in refused.stderr), (1, True))
        done = self.here.run("mtunnel_tx.cli", "settle", "100")
        self.assertRegex(done.stdout, r"has ended before it was done\nVM 100 runs on here\nVM 100 is settled\n\Z")
        beats = len(before.beats)
        wait_for("beats here", lambda: len(before.beats) > beats + 3)
        self.assertEqual((self.departures(), self.journal.exists()), ({}, False))
        self.assertNotIn("lock", self.here.guest(100) or "lock")
        self.assertEqual(list(self.here.runtime.glob("100.out*")), [])
        again = self.here.run("mtunnel_tx.cli", "settle", "100", check=False)
        self.assertIn("nothing is to be settled for VM 100", again.stderr)
        self.there.stop()  # else it would wait for the source, which does not come back

    def test_sent_again(self) -> None:
        self.boot(burst=64)
        self.kill_on_the_way()
        done = self.migrate()
        self.assertIn("has ended before it was done\nVM 100 runs on here\n", done.stdout)
        self.assertIn("running", self.status(self.there, 200))
        self.assertIn("moved: to 127.0.0.1 as VM 200 on ", self.here.guest(100) or "")


class InsideTests(OnlineCase):
    """What a qcow2 has beside its disk is not lost without a word."""

    def test_a_snapshot_that_the_config_does_not_name(self) -> None:
        image = self.here.storage / "images" / "100" / "vm-100-disk-2.qcow2"
        image.parent.mkdir(parents=True)
        for words in (["create", "-q", "-f", "qcow2", str(image), "1M"], ["snapshot", "-c", "before", str(image)]):
            run_program(["qemu-img", *words])
        self.boot(more="scsi1: local:100/vm-100-disk-2.qcow2,size=1M\n")
        for more in ((), ("--dry-run",), ("--delete",)):
            done = self.migrate(*more, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn(
                "scsi1: the snapshots in its image would be lost by a move while it runs: before", done.stderr
            )
        self.assertIn("running", self.status(self.here, 100))
        self.migrate("--drop-snapshots", "--delete")
        self.assertIn("running", self.status(self.there, 200))
        self.assertIsNone(self.here.guest(100))
