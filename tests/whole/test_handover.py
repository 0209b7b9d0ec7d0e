"""Nothing lost quietly at a real target: what `unlock` refuses, what is left after it, journals that a crash spoilt."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mtunnel_tx.backends.host import PROGRAM
from mtunnel_tx.backends.process import read_record
from tests.processes import run_program
from tests.whole.moving import FIREWALL, Move, make_qcow2
from tests.whole.node import USERS, Node, wait_for
from tests.whole.peer import Tunnel, call

VMID = 100
STORAGES = """\
dir: local
\tpath {root}/state/storage
\tcontent images,iso,snippets
"""
OPTIONS = {"type": "websocket", "migratedfrom": "a", "remote_node": "pvetest"}


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node(storages=STORAGES).start()
        self.addCleanup(self.node.close)

    def image(self, number: int, format: str = "raw") -> Path:
        return self.node.storage / "images" / str(VMID) / f"vm-{VMID}-disk-{number}.{format}"

    def refused(self, tunnel: Tunnel, **request: object) -> str:
        reply = tunnel.ask(**request)
        self.assertFalse(reply["success"], reply)
        return str(reply["msg"]).removeprefix(f"failed to handle '{request['cmd']}' command - ").removesuffix("\n")


class UnlockTests(Case):
    def setUp(self) -> None:
        super().setUp()
        self.move = Move(self.node, VMID, make_qcow2())
        self.move.run("version", "raw", "qcow2", "disk", "config")
        self.tunnel = self.move.tunnel
        self.addCleanup(self.tunnel.commands.drop)

    def test_a_volume_that_is_gone_cut_or_elsewhere(self) -> None:
        raw, qcow2 = self.image(0), self.image(1, "qcow2")
        raw.rename(aside := raw.with_suffix(".aside"))
        self.assertEqual(
            self.refused(self.tunnel, cmd="unlock"), f"volume 'local:{VMID}/{raw.name}' is not there any more"
        )
        aside.rename(raw)
        size_bytes = raw.stat().st_size
        os.truncate(raw, 0)
        text = f"volume 'local:{VMID}/{raw.name}' has 0 bytes instead of {size_bytes}"
        self.assertEqual(self.refused(self.tunnel, cmd="unlock"), text)
        os.truncate(raw, size_bytes)
        whole = qcow2.read_bytes()
        os.truncate(qcow2, 0)
        self.assertIn(qcow2.name, self.refused(self.tunnel, cmd="unlock"))
        qcow2.write_bytes(whole)
        storages = self.node.pve / "storage.cfg"
        there = storages.read_text()
        storages.write_text(there.replace("/state/storage", "/elsewhere"))
        self.assertIn("disk-0", self.refused(self.tunnel, cmd="unlock"))
        storages.write_text(there)
        self.assertIn("lock: migrate", self.node.guest(VMID) or "")
        self.assertEqual(self.tunnel.ask(cmd="unlock"), {"success": True})
        self.assertEqual(self.tunnel.ask(cmd="quit"), {"success": True})

    def test_afterwards_the_source_has_no_power(self) -> None:
        self.move.run("unlock")
        images = self.node.images(VMID)
        drive = {"interface": "scsi", "index": 5, "size": 1 << 20}
        for request in (
            {"cmd": "disk", "storage": "local", "drive": drive},
            {"cmd": "stop"},
            {"cmd": "config", "conf": "memory: 16\n"},
            {"cmd": "resume"},
        ):
            self.assertEqual(self.refused(self.tunnel, **request), f"VM {VMID} is already unlocked")
        self.assertEqual(self.node.images(VMID), images)
        for request in ({"cmd": "version"}, {"cmd": "fstrim"}, {"cmd": "quit"}):
            self.assertTrue(self.tunnel.ask(**request)["success"])

    def test_a_user_who_is_disabled(self) -> None:
        (self.node.pve / "user.cfg").write_text(USERS.replace("user:mig@pve:1:", "user:mig@pve:0:"))
        for name in ("version", "unlock", "quit"):
            self.assertEqual(self.refused(self.tunnel, cmd=name), "token 'mig@pve!t1' is no longer valid")
        self.tunnel.commands.send_close()
        wait_for("the rollback", lambda: self.node.guest(VMID) is None)
        self.assertEqual(self.node.images(VMID), [])
        (self.node.pve / "user.cfg").write_text(USERS)


class LimitTests(SynchronousTestCase):
    def test_a_source_that_never_quits(self) -> None:
        node = Node(extra="[limits]\nunlocked_s = 1\n").start()
        self.addCleanup(node.close)
        tunnel = Tunnel(node, VMID, storages="", bridges="")
        self.addCleanup(tunnel.commands.drop)
        for request in ({"cmd": "config", "conf": "memory: 16\n"}, {"cmd": "unlock"}):
            self.assertTrue(tunnel.ask(**request)["success"])
        wait_for("the end of the tunnel", lambda: not node.ask(cmd="status")["tunnels"])
        self.assertEqual(node.guest(VMID), "memory: 16\n")
        self.assertIn("TASK ERROR: no 'quit' came in time after 'unlock'", node.task_log(tunnel.opened["upid"]))


class ConfigTests(Case):
    def setUp(self) -> None:
        super().setUp()
        self.tunnel = Tunnel(self.node, VMID, storages="local", bridges="")
        self.addCleanup(self.tunnel.leave)

    def config(self, conf: str) -> str:
        return self.refused(self.tunnel, cmd="config", conf=f"memory: 16\n{conf}\n", **{"firewall-config": FIREWALL})

    def test_what_is_no_disk_of_its_own(self) -> None:
        secret = self.node.root / "secret"
        secret.write_bytes(bytes(4096))
        volume = self.image(0)
        volume.parent.mkdir(parents=True, exist_ok=True)
        volume.symlink_to(secret)
        self.assertIn("vm-100-disk-0.raw'", self.config(f"scsi0: local:{VMID}/{volume.name}"))
        volume.unlink()
        os.link(secret, volume)
        text = f"volume 'local:{VMID}/{volume.name}': volume is a file with another name beside (a hard link)"
        self.assertEqual(self.config(f"scsi0: local:{VMID}/{volume.name}"), text)
        snippet = self.node.storage / "snippets" / "h.pl"
        snippet.parent.mkdir(exist_ok=True)
        snippet.write_text("#!/bin/sh\n")
        text = "volume 'local:snippets/h.pl' is no disk image, but of content 'snippets'"
        self.assertEqual(self.config("scsi0: local:snippets/h.pl"), text)
        self.assertIn("invalid bridge ID '..'", self.config("net0: virtio,bridge=.."))
        self.assertIsNone(self.node.firewall(VMID))
        shutil.rmtree(volume.parent)

    def test_a_volume_that_another_vm_names(self) -> None:
        drive = {"interface": "scsi", "index": 0, "size": 1 << 20}
        volid = self.tunnel.ask(cmd="disk", storage="local", format="raw", drive=drive)["volid"]
        self.node.guest_file(101).write_text(f"scsi1: {volid},shared=1\n")
        self.assertEqual(self.tunnel.ask(cmd="quit", cleanup=1), {"success": True})
        self.assertEqual((self.node.images(VMID), self.node.guest(VMID)), ([self.image(0).name], None))
        log = self.node.task_log(self.tunnel.opened["upid"])
        self.assertIn(f"WARN: volume '{volid}' stays: the config of another guest names it", log)

    def test_bridges(self) -> None:
        for name in (".", ".."):
            answer = call(self.node, "POST", f"/nodes/localhost/qemu/{VMID + 1}/mtunnel", {"bridges": name})
            self.assertEqual(answer.status, 400)
            self.assertEqual(answer.json["errors"]["bridges"], f"invalid format - invalid bridge ID '{name}'\n")

    def test_firewall_rules_without_the_right(self) -> None:
        role = "role:most:VM.Allocate,VM.Config.Memory,Sys.Incoming:\n"
        users = USERS.replace("acl:1:/:mig@pve:Administrator:", f"{role}acl:1:/:mig@pve:most:")
        (self.node.pve / "user.cfg").write_text(users)
        self.assertEqual(self.config(""), f"403 Permission check failed (/vms/{VMID}, VM.Config.Network)")
        self.assertIsNone(self.node.firewall(VMID))


class FullDiskTests(SynchronousTestCase):
    """A file system that is full while `config` is written, and has space again later."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mtunnel-full-"))
        self.addCleanup(self.folder.rmdir)
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(self.folder)]
        if os.geteuid() or run_program(mount, check=False, capture_output=True).returncode:
            raise SkipTest("only root can mount a file system: NO FULL DISK IS TRIED")
        self.addCleanup(run_program, ["umount", str(self.folder)])
        self.patch(tempfile, "tempdir", str(self.folder))
        self.node = Node().start()
        self.addCleanup(self.node.close)

    def fill(self) -> Path:
        filler = self.folder / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 12)):
                pass
        return filler

    def test_config(self) -> None:
        tunnel = Tunnel(self.node, VMID, storages="local", bridges="")
        request = {"cmd": "config", "conf": "memory: 16\n", "firewall-config": FIREWALL}
        filler = self.fill()
        for _ in range(2):
            reply = tunnel.ask(**request)
            self.assertIn("No space left on device", str(reply.get("msg")))
            self.assertTrue(tunnel.ask(cmd="version")["success"])
        filler.unlink()
        self.assertEqual(tunnel.ask(**request), {"success": True})
        self.assertEqual(self.node.guest(VMID), "lock: migrate\nmemory: 16\n")
        for name in ("unlock", "quit"):
            self.assertEqual(tunnel.ask(cmd=name), {"success": True})
        tunnel.leave()
        self.node.assert_idle()
        self.assertEqual(self.node.guest(VMID), "memory: 16\n")


class MachineTests(Case):
    def test_a_qemu_that_is_gone_or_not_whole(self) -> None:
        if shutil.which(PROGRAM) is None:
            raise SkipTest(f"{PROGRAM} is not installed: NO QEMU IS STARTED IN THIS TEST")
        tunnel = Tunnel(self.node, VMID, storages="local", bridges="")
        self.assertTrue(tunnel.ask(cmd="config", conf="memory: 16\n")["success"])
        start = {"cmd": "start", "start_params": {"statefile": "unix"}, "migrate_opts": OPTIONS}
        self.assertTrue(tunnel.ask(**start)["success"])
        text = f"the state of VM {VMID} has not arrived in full"
        self.assertEqual(self.refused(tunnel, cmd="unlock"), text)
        record = read_record(self.node.runtime / f"{VMID}.pid")
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        wait_for("QEMU's end", lambda: not Path(f"/proc/{record.pid}/cwd").exists())
        self.assertEqual(self.refused(tunnel, cmd="unlock"), f"VM {VMID} not running")
        self.assertIn("lock: migrate", self.node.guest(VMID) or "")
        self.assertEqual(tunnel.ask(cmd="quit", cleanup=1), {"success": True})
        tunnel.leave()
        self.node.assert_idle()


class JournalTests(Case):
    """What a power cut leaves of a journal, and what somebody else put in its place."""

    def setUp(self) -> None:
        super().setUp()
        tunnel = Tunnel(self.node, VMID, storages="local", bridges="")
        drive = {"interface": "scsi", "index": 0, "size": 1 << 20}
        self.assertTrue(tunnel.ask(cmd="disk", storage="local", format="raw", drive=drive)["success"])
        self.node.stop(signal.SIGKILL)
        tunnel.commands.drop()
        self.file = self.node.state / "journal" / f"{VMID}.jsonl"
        self.whole = self.file.read_bytes()

    def held(self) -> str:
        """Start the daemon. Returns: why the VM is held; nothing of it was touched."""
        self.node.start()
        reason = str(self.node.ask(cmd="status")["held"][str(VMID)])
        shown = self.node.run("mtunnel_tx.cli", "status").stdout
        self.assertIn(f"VM {VMID} waits for 'mtunnel settle {VMID}': {reason}", shown)
        self.assertIn(reason, self.node.run("mtunnel_tx.cli", "settle", str(VMID), "--discard", check=False).stderr)
        answer = call(self.node, "POST", f"/nodes/localhost/qemu/{VMID}/mtunnel", {})
        self.assertEqual(answer.json["errors"]["vmid"], f"VM {VMID} waits for 'mtunnel settle {VMID}'")
        self.assertEqual((self.node.images(VMID), self.node.guest(VMID)), (["vm-100-disk-0.raw"], "lock: create\n"))
        self.assertTrue(os.path.lexists(self.file))
        self.node.stop()
        return reason

    def test_spoilt(self) -> None:
        claim, rest = self.whole.split(b"\n", 1)
        spoilt = {
            301: (b"", "has no whole record"),
            302: (claim, "has no whole record"),
            303: (claim[:-9], "has no whole record"),
            304: (bytes(len(self.whole)), "has no whole record"),
            305: (bytes(len(claim)) + b"\n" + rest, "is damaged"),
            306: (rest, "has an unknown version"),
            307: (self.whole.replace(b'"version":2', b'"version":"2"'), "has an unknown version"),
            308: (self.whole.replace(b'"version":2', b'"version":2.0'), "has an unknown version"),
            309: (self.whole + claim + b"\n", "must begin with its claim, and have one only"),
            310: (self.whole, "it is that of VM 100"),
        }
        for vmid, (data, _) in spoilt.items():
            own = data if vmid == 310 else data.replace(b'"vmid":100', b'"vmid":%d' % vmid)
            self.file.with_name(f"{vmid}.jsonl").write_bytes(own)
            self.node.guest_file(vmid).write_text("lock: create\n")
        written = {path.name: path.read_bytes() for path in self.file.parent.glob("3*")}
        self.node.start()
        held = self.node.ask(cmd="status")["held"]
        self.assertEqual(set(held), {str(vmid) for vmid in spoilt})
        for vmid, (_, reason) in spoilt.items():
            self.assertIn(reason, held[str(vmid)])
            self.assertEqual(self.node.guest(vmid), "lock: create\n")
        self.assertEqual({path.name: path.read_bytes() for path in self.file.parent.iterdir()}, written)

    def test_a_link(self) -> None:
        other = self.node.root / "journal-of-somebody"
        self.file.rename(other)
        self.file.symlink_to(other)
        self.assertIn("is a symbolic link", self.held())
        self.assertEqual(other.read_bytes(), self.whole)
        self.file.unlink()
        other.rename(self.file)

    def test_of_somebody_else(self) -> None:
        if os.geteuid():
            raise SkipTest("only root can give a file away")
        os.chown(self.file, 65534, -1)
        self.assertIn("belongs to user 65534", self.held())
        os.chown(self.file, 0, -1)

    def test_a_torn_end_is_none(self) -> None:
        self.file.write_bytes(self.whole + b'{"do":"mak' + bytes(500))
        self.node.start()
        self.assertEqual((self.node.ask(cmd="status")["held"], self.node.images(VMID)), ({}, []))
        self.assertIsNone(self.node.guest(VMID))
