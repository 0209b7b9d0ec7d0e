"""The daemon in the `proxmox` profile: a Proxmox node's own files, links, locks and programs."""

from __future__ import annotations

import fcntl
import signal
import ssl
import stat

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.tls.certificate import fingerprint, make_certificate
from tests.patience import wait_for
from tests.proxmox.node import ProxmoxNode
from tests.whole import test_daemon, test_recordings
from tests.whole.node import Node
from tests.whole.peer import Tunnel, call


class ProxmoxDaemonTests(test_daemon.DaemonTests):
    """What holds for every daemon."""

    def setUp(self) -> None:
        self.node = ProxmoxNode().start()
        self.addCleanup(self.node.close)


class ProxmoxRecordingTests(test_recordings.RecordingTests):
    """What Proxmox's own worker answered, and left behind, on such a node."""

    def setUp(self) -> None:
        self.node: Node = ProxmoxNode("pvetest", test_recordings.STORAGES).start()
        self.addCleanup(self.node.close)


class LayoutTests(SynchronousTestCase):
    """Where things are, and who else sees them there."""

    def setUp(self) -> None:
        self.node = ProxmoxNode().start()
        self.addCleanup(self.node.close)

    def test_config_is_seen_through_the_cluster_links(self) -> None:
        tunnel = Tunnel(self.node, 100, storages="local", bridges="")
        self.assertEqual((self.node.pve / "qemu-server" / "100.conf").read_text(), "lock: create\n")
        self.assertEqual((self.node.pve / "local" / "qemu-server" / "100.conf").read_text(), "lock: create\n")
        tunnel.ask(cmd="config", conf="name: web\nmemory: 512\n")
        mode = stat.S_IMODE(self.node.guest_file(100).stat().st_mode)
        self.assertEqual(mode, 0o640)
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()
        self.assertIsNone(self.node.guest(100))

    def test_lock_is_that_of_every_other_program(self) -> None:
        with (self.node.locks / "lock-100.conf").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            answer = call(self.node, "POST", "/nodes/localhost/qemu/100/mtunnel", {"storages": "local"})
        self.assertIn(f"can't lock file '{self.node.locks / 'lock-100.conf'}' - got timeout", answer.body.decode())
        self.assertNotEqual(answer.status, 200)
        self.assertIsNone(self.node.guest(100))

    def test_container_and_other_nodes_take_the_vmid(self) -> None:
        (self.node.own / "lxc" / "101.conf").write_text("hostname: box\n")
        other = self.node.pve / "nodes" / "pveother" / "qemu-server"
        other.mkdir(parents=True)
        (other / "102.conf").write_text("name: there\n")
        for vmid, kind, node in ((101, "CT", "pvetest"), (102, "VM", "pveother")):
            answer = call(self.node, "POST", f"/nodes/pvetest/qemu/{vmid}/mtunnel", {"storages": "local"})
            self.assertEqual(answer.status, 400)
            text = f"unable to create empty VM config - {kind} {vmid} already exists on node '{node}'\n"
            self.assertEqual(answer.json["errors"], {"vmid": text})

    def test_certificate_is_the_nodes_own(self) -> None:
        found = call(self.node, "GET", "/nodes/localhost/certificates/info").json["data"]
        self.assertEqual(found[0]["fingerprint"], self.node.fingerprint)

    def test_uploaded_certificate_is_taken_at_a_hangup(self) -> None:
        other = make_certificate("uploaded")
        for name, text in (("pveproxy-ssl.pem", other.certificate), ("pveproxy-ssl.key", other.key)):
            (self.node.own / name).write_bytes(text)
            (self.node.own / name).chmod(0o640)
        self.hang_up(fingerprint(other.certificate))
        (self.node.own / "pveproxy-ssl.pem").unlink()
        self.hang_up(self.node.fingerprint)

    def hang_up(self, expected: str) -> None:
        assert self.node.process is not None
        self.node.process.send_signal(signal.SIGHUP)
        wait_for("the other certificate", lambda: self.served() == expected)
        self.assertIn(f",fingerprint={expected}", self.node.run("mtunnel_tx.cli", "endpoint", "--port", "1").stdout)

    def served(self) -> str:
        return fingerprint(ssl.get_server_certificate(("127.0.0.1", self.node.port)).encode())

    def test_users_are_made_with_proxmox_programs(self) -> None:
        done = self.node.run("mtunnel_tx.cli", "token", "add", "new@pve!t2", "--role", "PVEAdmin", check=False)
        self.assertIn("pveum", done.stdout + done.stderr)
        self.assertNotIn("new@pve", (self.node.pve / "user.cfg").read_text())

    def test_nothing_stays_where_the_source_dies(self) -> None:
        tunnel = Tunnel(self.node, 100, storages="local", bridges="")
        tunnel.ask(cmd="disk", storage="local", drive={"interface": "scsi", "index": 0, "size": 1 << 20})
        self.assertEqual(self.node.images(100), ["vm-100-disk-0.raw"])
        tunnel.commands.drop()
        wait_for("the end of the tunnel", lambda: not self.node.ask(cmd="status")["tunnels"])
        self.assertEqual((self.node.images(100), self.node.guest(100)), ([], None))
        self.assertEqual(self.node.left_over()["journals"], [])
