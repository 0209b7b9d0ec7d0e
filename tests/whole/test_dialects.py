"""An unmodified Proxmox source's steps against a real daemon, through our helper, in both dialects."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import wait_for
from tests.processes import run_program
from tests.proxmox.disks import MIB, make_guest
from tests.proxmox.node import ProxmoxNode
from tests.proxmox.source import Disk, Failed, First, Released, Source
from tests.whole.node import Node
from tests.whole.peer import Tunnel


class Case(SynchronousTestCase):
    """A home with VM 100, and a target."""

    dialect = Released()
    node = Node

    def setUp(self) -> None:
        self.home = Node("pvehome")
        self.addCleanup(self.home.close)
        # A helper that was killed looks like a network that is lost.
        self.target = self.node("pvetest", extra="[limits]\npark_s = 2").start()
        self.addCleanup(self.target.close)
        self.disks = make_guest(self.home)

    def source(self) -> Source:
        source = Source(self.home, self.target, self.dialect)
        self.addCleanup(source.close)
        source.look_around()
        source.open()
        return source

    def arrived(self, volid: str) -> bytes:
        return (self.target.storage / "images" / volid.partition(":")[2]).read_bytes()

    def await_end(self) -> None:
        wait_for("the end of the tunnel", lambda: not self.target.ask(cmd="status")["tunnels"])
        left = self.target.left_over()
        self.assertEqual((left["sockets"], left["journals"], left["children"]), ([], [], []))

    def assert_nothing_left(self) -> None:
        self.await_end()
        self.assertEqual((self.target.guest(200), self.target.images(200)), (None, []))


class Migrations(Case):
    """What every dialect and both profiles have to do."""

    def check_after_quit(self, source: Source) -> None:
        """Exit mode."""
        with self.assertRaises(Failed) as caught:
            source.ask("version")
        self.assertIn("tunnel is in exit-mode, processing 'version' cmd not possible", str(caught.exception))

    def test_stopped_vm(self) -> None:
        source = self.source()
        volumes = {disk.key: source.send(disk) for disk in self.disks}
        self.assertEqual(volumes, {"scsi0": "local:200/vm-200-disk-0.raw", "scsi1": "local:200/vm-200-disk-1.qcow2"})
        self.assertEqual(list(source.forwarded), ["/run/qemu-server/200.storage"])
        source.define(volumes, firewall="[OPTIONS]\n\nenable: 1\n")
        self.assertIn("lock: migrate\n", self.target.guest(200) or "")
        source.finish()
        self.check_after_quit(source)
        self.assertEqual(source.leave(), "")
        for disk in self.disks:
            self.assertEqual(self.arrived(volumes[disk.key]), disk.file.read_bytes())
        self.await_end()
        guest = self.target.guest(200) or ""
        self.assertNotIn("lock", guest)
        self.assertIn("vmgenid: 11111111-1111-4111-8111-111111111111\n", guest)
        self.assertIn("scsi0: local:200/vm-200-disk-0.raw,discard=on,size=16M\n", guest)
        self.assertIn("enable: 1", self.target.firewall(200) or "")
        self.assertTrue(self.target.task_log(source.upid).endswith("TASK OK\n"))

    def test_export_dies(self) -> None:
        """The source shuts its socket down although half is missing: the importer counts, the source cleans up."""
        source = self.source()
        local = source.start_import(self.disks[0])
        with socket.socket(socket.AF_UNIX) as sink:
            sink.connect(str(local))
            sink.sendall(struct.pack("<Q", 16 * MIB) + bytes(MIB))
        with self.assertRaises(Failed) as caught:
            source.complete()
        self.assertRegex(str(caught.exception), "import process failed - .*1048576")
        source.give_up()
        source.leave()
        self.assert_nothing_left()


class Failures(Case):
    """What may go wrong on the way."""

    def test_snapshots_come_along(self) -> None:
        source = self.source()
        volid = source.send(self.disks[1])
        file = self.target.storage / "images" / volid.partition(":")[2]
        listed = run_program(["qemu-img", "snapshot", "-l", file], capture_output=True, text=True)
        self.assertIn("before", listed.stdout)
        source.give_up()
        source.leave()
        self.assert_nothing_left()

    def test_export_of_qcow2_dies(self) -> None:
        """Nobody can tell from half a qcow2 that it is none, so the source's own word counts: it cleans up."""
        source = self.source()
        local = source.start_import(self.disks[1])
        with socket.socket(socket.AF_UNIX) as sink:
            sink.connect(str(local))
            sink.sendall(struct.pack("<Q", 32 * MIB) + self.disks[1].file.read_bytes()[:MIB])
            sink.shutdown(socket.SHUT_WR)
        with contextlib.suppress(Failed):
            source.complete()
        source.give_up()
        source.leave()
        self.assert_nothing_left()

    def test_helper_is_killed(self) -> None:
        """No Close frame, in the middle of a qcow2 that would pass any check."""
        source = self.source()
        local = source.start_import(self.disks[1])
        sink = socket.socket(socket.AF_UNIX)
        self.addCleanup(sink.close)
        sink.connect(str(local))
        sink.sendall(struct.pack("<Q", 32 * MIB) + self.disks[1].file.read_bytes()[: 2 * MIB])
        source.helper.process.send_signal(signal.SIGKILL)
        self.assert_nothing_left()
        self.assertIn("TASK ERROR", self.target.task_log(source.upid))

    def test_input_ends_in_the_middle_of_a_disk(self) -> None:
        """Whatever has arrived until then is no disk."""
        source = self.source()
        local = source.start_import(self.disks[1])
        sink = socket.socket(socket.AF_UNIX)
        self.addCleanup(sink.close)
        sink.connect(str(local))
        sink.sendall(struct.pack("<Q", 32 * MIB) + self.disks[1].file.read_bytes()[: 2 * MIB])
        self.assertEqual(source.helper.finish()[0], 0)
        self.assertFalse(local.exists())
        self.assert_nothing_left()

    def test_target_dies(self) -> None:
        """Every command is answered all the same, and the helper ends as always."""
        source = self.source()
        self.target.stop(signal.SIGKILL)
        for _ in range(2):
            with self.assertRaises(Failed) as caught:
                source.ask("version")
            self.assertEqual(str(caught.exception), "the command connection to the target has ended")
        self.assertIn("the command connection to the target has ended: it broke off", source.leave())
        self.target.start()
        self.assertEqual(self.target.ask(cmd="status")["held"], {})
        self.assertIsNone(self.target.guest(200))

    def test_source_gives_up_before_the_first_disk(self) -> None:
        source = self.source()
        source.give_up()
        source.leave()
        self.assert_nothing_left()

    def test_config_is_refused_and_may_come_again(self) -> None:
        source = self.source()
        volumes = {disk.key: source.send(disk) for disk in self.disks}
        with self.assertRaises(Failed):
            source.ask("config", **{"conf": "no config at all\n", "firewall-config": None})
        source.define(volumes)
        source.give_up()
        source.leave()
        self.assert_nothing_left()

    def test_refused_upgrade_is_told_in_the_next_reply(self) -> None:
        source = Source(self.home, self.target, self.dialect)
        self.addCleanup(source.close)
        source.connect(f"{source.url}ticket=PVETUNNEL%3A00000000%3A%3AAAAA&socket=%2Frun%2Fqemu-server%2F200.mtunnel")
        with self.assertRaises(Failed) as caught:
            source.ask("version")
        self.assertIn(
            "500 Configuration file 'nodes/pvetest/qemu-server/200.conf' does not exist", str(caught.exception)
        )
        self.assertIn("Configuration file", source.leave())


class ReleasedTests(Migrations, Failures):
    """Today's sources."""


class FirstTests(Migrations):
    """The sources of 2021."""

    dialect = First()

    def check_after_quit(self, source: Source) -> None:
        """They leave at once."""
        self.assertTrue(source.helper.is_silent())


class ProxmoxTests(Migrations, Failures):
    """Received by the `proxmox` profile."""

    node = ProxmoxNode


del Migrations, Failures  # not to be run by themselves


class DroppedTests(Case):
    """Proxmox's own helper sends Close and drops TCP at once: that is an end in order, and every byte counts."""

    def test_all_bytes_arrive(self) -> None:
        content = os.urandom(MIB) * 48
        tunnel = Tunnel(self.target, 200, storages="local", bridges="")
        disk = Disk(key="scsi0", volid="local:100/vm-100-disk-9.raw", file=Path("vm-100-disk-9.raw"))
        for name in (First(), Released()):
            opened = tunnel.ask(cmd="disk-import", **name.disk_import(disk, 200, "local"))
            stream = tunnel.stream(opened["socket"])
            stream.send(struct.pack("<Q", len(content)))
            for start in range(0, len(content), MIB):
                stream.send(content[start : start + MIB])
            stream.send_close()
            stream.drop()
            reply = tunnel.ask(cmd="query-disk-import")
            while reply["status"] == "pending":
                reply = tunnel.ask(cmd="query-disk-import")
            self.assertEqual(reply["status"], "complete", reply)
            self.assertEqual(self.arrived(reply["volid"]), content)
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()
        self.assert_nothing_left()
