"""`mtunnel settle`, `drain`, `status` against a real daemon: what a decision does, an end without loss, the record."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import patience_s, wait_for
from tests.whole.node import Node
from tests.whole.peer import Tunnel, call

VMID = 100


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node().start()
        self.addCleanup(self.node.close)

    def open(self, vmid: int = VMID) -> Tunnel:
        return Tunnel(self.node, vmid, storages="local", bridges="")

    def mtunnel(self, *arguments: str, fails: bool = False) -> str:
        """Returns: what the command printed; an error where it is meant to fail."""
        done = self.node.run("mtunnel_tx.cli", *arguments, check=False)
        self.assertEqual(done.returncode, 1 if fails else 0, done.stderr)
        return done.stderr if fails else done.stdout

    def held(self, taken_over: Callable[[], None]) -> str:
        """A tunnel with a disk, whose config somebody else takes over. Returns: the volume."""
        tunnel = self.open()
        volid = str(tunnel.ask(cmd="disk", storage="local", drive={"size": 1 << 20})["volid"])
        taken_over()
        tunnel.leave()
        wait_for("what is held", lambda: self.node.ask(cmd="status")["held"])
        return volid


class SettleTests(Case):
    def back_up(self) -> None:
        self.node.guest_file(VMID).write_text("lock: backup\nmemory: 512\n")

    def use_disk(self) -> None:
        self.node.guest_file(VMID).write_text(f"scsi0: local:{VMID}/vm-{VMID}-disk-0.raw\n")

    def test_status_says_what_is_held(self) -> None:
        volid = self.held(self.back_up)
        reason = f"the config of VM {VMID} is no longer ours; volumes left: {volid}"
        self.assertEqual(self.node.ask(cmd="status")["held"], {str(VMID): reason})
        self.assertIn(f"VM {VMID} waits for 'mtunnel settle {VMID}': {reason}", self.mtunnel("status"))

    def test_nothing_may_be_opened_before(self) -> None:
        self.held(lambda: self.node.guest_file(VMID).unlink())
        answer = call(self.node, "POST", f"/nodes/localhost/qemu/{VMID}/mtunnel", {})
        self.assertEqual(answer.status, 400)
        self.assertEqual(answer.json["errors"]["vmid"], f"VM {VMID} waits for 'mtunnel settle {VMID}'")

    def test_discard_frees_what_nobody_names(self) -> None:
        self.held(self.back_up)
        self.assertEqual(self.mtunnel("settle", str(VMID), "--discard"), f"VM {VMID} is settled\n")
        self.assertEqual(self.node.images(VMID), [])
        self.assertEqual(self.node.guest(VMID), "lock: backup\nmemory: 512\n")
        self.node.assert_idle()

    def test_discard_keeps_what_a_config_names(self) -> None:
        volid = self.held(self.use_disk)
        done = self.node.run("mtunnel_tx.cli", "settle", str(VMID), "--discard", "--quiet")
        self.assertEqual((done.stdout, done.stderr), ("", f"mtunnel settle: volume {volid} stays\n"))
        self.assertEqual(self.node.images(VMID), [f"vm-{VMID}-disk-0.raw"])

    def test_resume_keeps_everything(self) -> None:
        volid = self.held(self.back_up)
        why = self.mtunnel("settle", str(VMID), "--resume", fails=True)
        self.assertIn(f"the config of VM {VMID} is no longer ours. Put that right by hand and settle again", why)
        self.node.guest_file(VMID).write_text("lock: create\n")
        self.assertEqual(self.mtunnel("settle", str(VMID), "--resume"), f"VM {VMID} is settled\nvolume {volid} stays\n")
        self.assertEqual(self.node.images(VMID), [f"vm-{VMID}-disk-0.raw"])
        self.assertEqual(self.node.ask(cmd="status")["held"], {})

    def test_what_was_held_stays_held_after_a_restart(self) -> None:
        self.held(self.back_up)
        self.node.stop()
        self.assertIn(f"VM {VMID}: a tunnel did not end (mig@pve!t1", self.status_without_daemon())
        self.node.start()
        self.assertEqual(list(self.node.ask(cmd="status")["held"]), [str(VMID)])
        self.mtunnel("settle", str(VMID), "--discard")

    def status_without_daemon(self) -> str:
        done = self.node.run("mtunnel_tx.cli", "status", check=False)
        self.assertEqual(done.returncode, 1)
        return done.stdout

    def test_a_journal_of_a_later_version_is_never_deleted(self) -> None:
        self.node.stop()
        journal = self.node.state / "journal" / f"{VMID}.jsonl"
        journal.parent.mkdir(exist_ok=True)
        journal.write_text('{"version":3,"do":"claim"}\n')
        self.node.start()
        error = self.mtunnel("settle", str(VMID), "--discard", fails=True)
        self.assertEqual(error, f"mtunnel settle: the journal of VM {VMID} has an unknown version\n")
        self.assertTrue(journal.exists())

    def test_refusals(self) -> None:
        self.assertIn("nothing is to be settled", self.mtunnel("settle", "999", "--resume", fails=True))
        tunnel = self.open()
        self.assertIn("has a live tunnel", self.mtunnel("settle", str(VMID), "--discard", fails=True))
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()
        for request in ({"vmid": "100", "discard": True}, {"vmid": 100}, {"vmid": True, "discard": 1}):
            self.assertFalse(self.node.ask(cmd="settle", **request)["success"])

    def test_no_daemon(self) -> None:
        self.node.stop()
        self.assertIn("no daemon answers", self.mtunnel("settle", str(VMID), "--resume", fails=True))
        self.assertIn("no daemon answers", self.mtunnel("drain", fails=True))


class DrainTests(Case):
    def ended(self) -> int:
        process = self.node.process
        assert process is not None
        self.addCleanup(setattr, self.node, "process", None)
        return process.wait(patience_s())

    def test_without_tunnels(self) -> None:
        self.assertEqual(self.mtunnel("drain"), "no new tunnels are taken; the daemon ends now\n")
        self.assertEqual(self.ended(), 0)

    def test_the_last_tunnel_ends_in_peace(self) -> None:
        tunnel = self.open()
        self.assertEqual(self.mtunnel("drain"), "no new tunnels are taken; the daemon ends after 1 tunnel\n")
        answer = call(self.node, "POST", "/nodes/localhost/qemu/101/mtunnel", {})
        self.assertEqual((answer.status, answer.reason), (409, "this daemon is being drained and takes no new tunnels"))
        self.assertTrue(self.node.ask(cmd="status")["draining"])
        self.assertIn("takes no new tunnels", self.mtunnel("status"))
        self.assertEqual(tunnel.ask(cmd="config", conf="name: web\nmemory: 512\n")["success"], True)
        for name in ("unlock", "quit"):
            self.assertEqual(tunnel.ask(cmd=name), {"success": True})
        tunnel.leave()
        self.assertEqual(self.ended(), 0)
        self.assertIn("name: web", self.node.guest(VMID) or "")

    def test_stopped_while_it_drains(self) -> None:
        """The end of its last tunnel, which comes with that, asks for nothing more."""
        tunnel = self.open()
        self.mtunnel("drain")
        assert self.node.process is not None
        self.node.process.terminate()
        self.assertIn(self.ended(), (0, -signal.SIGTERM))
        tunnel.commands.drop()
        said = self.node.log.read_text()
        self.assertNotIn("Traceback", said)
        self.assertNotIn("ReactorNotRunning", said)
        self.assertIsNone(self.node.guest(VMID))


class AuditTests(Case):
    def record(self) -> str:
        """The line of the tunnel that has just ended."""
        self.node.assert_idle()
        lines = [line for line in self.node.log.read_text().splitlines() if "is over" in line]
        self.assertEqual(len(lines), 1)
        return lines[0].partition("#info] ")[2]

    def test_a_tunnel_that_ends_well(self) -> None:
        tunnel = self.open()
        tunnel.ask(cmd="config", conf="name: web\n")
        tunnel.ask(cmd="unlock")
        tunnel.ask(cmd="quit", cleanup=0)
        tunnel.leave()
        sent = len('{"cmd": "config", "conf": "name: web\\n"}\n{"cmd": "unlock"}\n{"cmd": "quit", "cleanup": 0}\n')
        expected = (
            rf"tunnel of VM 100 is over: kept, quit; mig@pve!t1 from 127\.0\.0\.1; {sent} bytes in, \d+ out,"
            r" \d+\.\d s; UPID:pvetest:\S+"
        )
        self.assertRegex(self.record(), f"^{expected}$")

    def test_a_source_that_dies(self) -> None:
        self.open().commands.drop()
        self.assertRegex(self.record(), "^tunnel of VM 100 is over: rolled back, mtunnel exited unexpectedly; mig")

    def test_a_source_that_leaves_it_all(self) -> None:
        tunnel = self.open()
        tunnel.ask(cmd="quit")
        tunnel.leave()
        self.assertRegex(self.record(), "^tunnel of VM 100 is over: left as it is, quit; ")

    def test_no_secret_in_the_log(self) -> None:
        tunnel = self.open()
        tunnel.ask(cmd="ticket", path="/run/qemu-server/100.storage")
        call(self.node, "GET", "/version", Authorization="PVEAPIToken=mig@pve!t1=not-the-secret")
        ticket = json.dumps(tunnel.opened["ticket"])[1:-1]
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()
        self.record()
        text = self.node.log.read_text()
        for secret in (ticket, "PVETUNNEL", "not-the-secret", self.node.authorization.rpartition("=")[2]):
            self.assertNotIn(secret, text)
        self.assertIn("failed login from 127.0.0.1, number 1", text)
