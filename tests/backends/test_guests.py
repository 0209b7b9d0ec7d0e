import fcntl
import os
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.guests import GuestFiles
from mtunnel_tx.errors import BackendFailed, NotFound, TimedOut, WrongState
from mtunnel_tx.ports.guests import GuestEntry
from mtunnel_tx.pve.guestconf import GuestConfig


class GuestsTest(TestCase):
    def setUp(self):
        self.base = Path(self.mktemp()).absolute()
        self.pve = self.base / "pve"
        self.clock = Clock()
        self.guests = GuestFiles(
            ReactorThreads(reactor, reactor.getThreadPool()),
            self.clock,
            pve_dir=self.pve,
            lock_dir=self.base / "lock",
            node="n1",
        )

    def put(self, name, text=""):
        path = self.pve / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


class ConfigTest(GuestsTest):
    file = "nodes/n1/qemu-server/100.conf"

    async def test_what_a_crash_left_of_writing_goes(self):
        kept = [self.put(self.file), self.put("firewall/100.fw"), self.put(self.file + "2.tmp.7.00aa00aa")]
        left = [self.put(self.file + ".tmp.7.00aa00aa"), self.put("firewall/100.fw.tmp.7.00aa00aa")]
        await self.guests.tidy(100)
        self.assertEqual([path.exists() for path in kept + left], [True, True, True, False, False])

    def test_missing(self):
        error = self.assertRaises(NotFound, self.guests.read, 100)
        self.assertEqual(error.text, "Configuration file 'nodes/n1/qemu-server/100.conf' does not exist")

    async def test_create_write_remove(self):
        await self.guests.create(100, GuestConfig(options={"lock": "create"}))
        self.assertEqual((self.pve / self.file).read_text(), "lock: create\n")
        with self.assertRaises(WrongState) as caught:
            await self.guests.create(100, GuestConfig())
        self.assertEqual(caught.exception.text, "VM 100 already exists on node 'n1'")
        await self.guests.write(100, GuestConfig(options={"name": "x", "cores": "2"}))
        self.assertEqual((self.pve / self.file).read_text(), "cores: 2\nname: x\n")
        self.assertEqual(self.guests.read(100).options, {"cores": "2", "name": "x"})
        self.assertEqual([path.name for path in (self.pve / self.file).parent.iterdir()], ["100.conf"])
        await self.guests.remove(100)
        await self.guests.remove(100)
        self.assertRaises(NotFound, self.guests.read, 100)

    async def test_any_text_of_a_peer_can_be_written(self):
        await self.guests.create(100, GuestConfig(options={"name": "a\ud800\udc80ä"}))
        self.assertEqual(self.guests.read(100).options, {"name": "a?\udc80ä"})

    async def test_write_into_nowhere(self):
        with self.assertRaises(BackendFailed):
            await self.guests.write(100, GuestConfig())

    async def test_firewall(self):
        self.assertIsNone(self.guests.read_firewall(100))
        await self.guests.write_firewall(100, "[OPTIONS]\n\nenable: 1\n\n")
        self.assertEqual((self.pve / "firewall/100.fw").read_text(), "[OPTIONS]\n\nenable: 1\n\n")
        self.assertEqual(self.guests.read_firewall(100), "[OPTIONS]\n\nenable: 1\n\n")
        await self.guests.remove_firewall(100)
        await self.guests.remove_firewall(100)
        self.assertIsNone(self.guests.read_firewall(100))


class EntriesTest(GuestsTest):
    def test_all_nodes_and_kinds(self):
        self.assertEqual(self.guests.entries(), [])
        self.put("nodes/n1/qemu-server/200.conf", "#name: no\nname: web\n\n[snap]\nname: old\n")
        self.put("nodes/n2/qemu-server/100.conf", "cores: 1\n")
        self.put("nodes/n2/lxc/300.conf", "hostname: ct\n")
        for name in ("200.conf.tmp.1.ab", "99.conf", "0200.conf", "x.conf", "1234567890.conf"):
            self.put(f"nodes/n1/qemu-server/{name}")
        expected = [
            GuestEntry(vmid=100, node="n2", kind="qemu", name=""),
            GuestEntry(vmid=200, node="n1", kind="qemu", name="web"),
            GuestEntry(vmid=300, node="n2", kind="lxc", name="ct"),
        ]
        self.assertEqual(self.guests.entries(), expected)
        self.assertEqual(self.guests.entries(), expected)

    def test_changes_are_seen(self):
        path = self.put("nodes/n1/qemu-server/200.conf", "name: a\n")
        self.assertEqual(self.guests.entries()[0].name, "a")
        path.write_text("name: other\n")
        self.assertEqual(self.guests.entries()[0].name, "other")
        path.unlink()
        self.assertEqual(self.guests.entries(), [])

    def test_a_directory_is_no_config(self):
        (self.pve / "nodes/n1/qemu-server/101.conf").mkdir(parents=True)
        self.assertEqual((self.guests.entries(), self.guests.naming("a:b")), ([], []))

    def test_a_folder_that_may_not_be_read_is_no_empty_one(self):
        def scandir(path):
            raise PermissionError(13, "Permission denied", str(path))

        self.patch(os, "scandir", scandir)
        error = self.assertRaises(BackendFailed, self.guests.entries)
        self.assertEqual(error.text, f"{self.pve}/nodes: Permission denied")


class LockTest(GuestsTest):
    def hold(self, vmid=100, wait_s=5.0):
        """Take the lock, tell so by the list, and keep it until the Deferred in it fires."""
        steps = []

        async def run():
            async with self.guests.locked(vmid, wait_s):
                release = Deferred()
                steps.append(release)
                await release

        return Deferred.fromCoroutine(run()), steps

    def foreign(self, vmid=100):
        path = self.base / "lock" / f"lock-{vmid}.conf"
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
        self.addCleanup(file.close)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file

    def test_excludes_others(self):
        done, steps = self.hold()
        self.assertEqual(len(steps), 1)
        self.assertRaises(BlockingIOError, self.foreign)
        other, _ = self.hold(vmid=101)
        self.assertNoResult(other)
        steps[0].callback(None)
        self.successResultOf(done)
        self.foreign()

    def test_waits_in_steps_of_100_ms(self):
        file = self.foreign()
        done, steps = self.hold()
        self.clock.pump([0.1] * 10)
        self.assertEqual(steps, [])
        file.close()
        self.clock.advance(0.09)
        self.assertEqual(steps, [])
        self.clock.advance(0.011)
        self.assertEqual(len(steps), 1)
        steps[0].callback(None)
        self.successResultOf(done)

    def test_gives_up(self):
        self.foreign()
        done, steps = self.hold()
        self.clock.pump([0.1] * 49)
        self.assertNoResult(done)
        self.clock.pump([0.1] * 2)
        error = self.failureResultOf(done, TimedOut).value
        self.assertEqual(error.text, f"can't lock file '{self.base}/lock/lock-100.conf' - got timeout")
        self.assertEqual(steps, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_tunnels_exclude_each_other(self):
        first, first_steps = self.hold()
        second, second_steps = self.hold()
        self.assertEqual(second_steps, [])
        first_steps[0].callback(None)
        self.clock.advance(0.1)
        self.assertEqual(len(second_steps), 1)
        second_steps[0].callback(None)
        self.successResultOf(first)
        self.successResultOf(second)

    def test_error_inside_gives_it_back(self):
        done, steps = self.hold()
        steps[0].errback(ZeroDivisionError())
        self.failureResultOf(done, ZeroDivisionError)
        self.foreign()

    def test_cancelled_while_waiting(self):
        file = self.foreign()
        done, _ = self.hold()
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        file.close()
        self.foreign()

    def test_content_is_left_alone(self):
        path = self.base / "lock" / "lock-100.conf"
        path.parent.mkdir(parents=True)
        path.write_text("x")
        done, steps = self.hold()
        steps[0].callback(None)
        self.successResultOf(done)
        self.assertEqual(path.read_text(), "x")

    def test_no_place_for_locks(self):
        self.base.mkdir()
        (self.base / "lock").write_text("")
        done, _ = self.hold()
        self.failureResultOf(done, BackendFailed)
