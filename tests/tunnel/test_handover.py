"""`unlock`: what must be whole before it, and what its source can still do after it."""

from __future__ import annotations

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.ports.machines import MachineState
from mtunnel_tx.tunnel.qemu.table import QEMU_COMMANDS
from tests.fakes import TOKEN, FakeStream
from tests.tunnel.case import CONFIG, DISK, IMPORT, TunnelCase
from tests.tunnel.test_machine import RunningCase
from tests.tunnel.test_table import GOOD

OFF = MachineState(status="off", dirty_end="killed")
LEFT = {"version", "ticket", "fstrim", "progress", "quit"}


class AfterUnlockTests(TunnelCase):
    def setUp(self) -> None:
        super().setUp()
        self.connect()
        self.ask(**DISK)
        self.ask(**CONFIG)
        self.assertTrue(self.ask(cmd="unlock")["success"])
        del self.events[:]

    def test_what_is_left(self) -> None:
        allowed = set()
        for name in sorted(QEMU_COMMANDS, key="quit".__eq__):
            reply = self.ask(**{"cmd": name, **GOOD.get(name, {})})
            if "VM 100 is already unlocked" not in reply.get("msg", ""):
                allowed.add(name)
        self.assertEqual(allowed, {*LEFT, "unlock"})
        self.assertEqual(self.events, ["journal removed"])

    def test_it_makes_nothing(self) -> None:
        before = dict(self.fake.storage.sizes)
        for request in (DISK, IMPORT):
            text = f"failed to handle '{request['cmd']}' command - VM 100 is already unlocked\n"
            self.assertEqual(self.msg(**request), text)
        self.line.disconnected()
        self.assertEqual((self.fake.storage.sizes, self.fake.storage.requests), (before, []))

    def test_it_cannot_stop_the_vm(self) -> None:
        self.fake.machines.now = MachineState(status="running", whole=True)
        self.assertIn("is already unlocked", self.msg(cmd="stop"))
        self.assertEqual(self.fake.machines.now.status, "running")

    def test_twice(self) -> None:
        text = "failed to handle 'unlock' command - no lock found trying to remove any lock\n"
        self.assertEqual(self.msg(cmd="unlock"), text)

    def test_the_next_lock_is_somebody_elses(self) -> None:
        """Nor do the exports of a backup end."""
        for lock in ("backup", "migrate"):
            self.fake.guests.set(100, f"lock: {lock}\nmemory: 512\n")
            text = "failed to handle 'unlock' command - no lock found trying to remove any lock\n"
            self.assertEqual(self.msg(cmd="unlock"), text)
            self.assertEqual(self.fake.guests.configs[100].lock, lock)
        self.assertEqual(self.events, [])

    def test_the_time_is_limited(self) -> None:
        limit_s = self.fake.services.limits.unlocked_s
        self.fake.clock.advance(limit_s - 1)
        self.assertTrue(self.ask(cmd="version")["success"])
        self.assertEqual(len(self.registry.live()), 1)
        self.fake.clock.advance(2)
        self.assertEqual(self.registry.live(), [])
        self.assertEqual(self.task.status, "no 'quit' came in time after 'unlock'")
        self.assertEqual((self.fake.journal.records, self.registry.held, len(self.fake.storage.sizes)), ({}, {}, 1))
        self.assertIsNone(self.fake.guests.configs[100].lock)

    def test_quit_has_its_own_limit(self) -> None:
        self.ask(cmd="quit")
        self.fake.clock.advance(self.fake.services.limits.exit_s + 1)
        self.assertEqual((self.registry.live(), self.task.status), ([], "OK"))


class AnnouncedTests(TunnelCase):
    def test_an_unlock_that_failed_may_come_again_and_nothing_else(self) -> None:
        self.connect()
        self.ask(**CONFIG)

        async def full(*_: object) -> None:
            raise BackendFailed("No space left on device")

        patch = self.patch(self.fake.guests, "write", full)
        self.assertIn("No space left", self.msg(cmd="unlock"))
        patch.restore()
        self.assertIn("is already unlocked", self.msg(**DISK))
        self.assertTrue(self.ask(cmd="unlock")["success"])
        self.assertIsNone(self.fake.guests.configs[100].lock)


class VolumeTests(TunnelCase):
    """The source deletes its copy next."""

    def setUp(self) -> None:
        super().setUp()
        self.connect()
        self.volid, self.other = self.ask(**DISK)["volid"], self.ask(**DISK)["volid"]
        self.ask(**CONFIG)

    def check_refused(self, reason: str) -> None:
        self.assertEqual(self.msg(cmd="unlock"), f"failed to handle 'unlock' command - {reason}\n")
        self.assertEqual(self.fake.guests.configs[100].lock, "migrate")
        self.assertNotIn("journal handed_over", self.events)

    def test_gone(self) -> None:
        del self.fake.storage.sizes[self.other]
        self.check_refused(f"volume '{self.other}' is not there any more")

    def test_cut(self) -> None:
        self.fake.storage.sizes[self.volid] = 0
        self.check_refused(f"volume '{self.volid}' has 0 bytes instead of {1 << 30}")

    def test_grown(self) -> None:
        self.fake.storage.sizes[self.volid] += 1
        self.check_refused(f"volume '{self.volid}' has {(1 << 30) + 1} bytes instead of {1 << 30}")

    def test_a_storage_that_cannot_be_asked(self) -> None:
        async def refuse(*_: object) -> None:
            raise BackendFailed("storage 'local' does not exist")

        self.patch(self.fake.storage, "volumes", refuse)
        self.check_refused("storage 'local' does not exist")

    def test_a_volume_that_is_not_there_when_it_was_made(self) -> None:
        async def nothing(*_: object) -> None:
            return None

        patch = self.patch(self.fake.storage, "size_bytes", nothing)
        self.assertIn("is not there, though it was made", self.msg(**DISK))
        patch.restore()
        self.assertEqual(set(self.fake.storage.sizes), {self.volid, self.other})

    def test_imported(self) -> None:
        volid = "local:100/vm-100-disk-7.raw"
        self.ask(**IMPORT)
        child = self.fake.storage.child
        assert child is not None
        self.check_refused("disk import still running as PID '4711'")
        child.lines.append(f"successfully imported '{volid}'\n")
        self.fake.storage.sizes[volid] = 4096
        child.exit(0)
        self.assertEqual(self.ask(cmd="query-disk-import")["status"], "complete")
        self.fake.storage.sizes[volid] = 512
        self.check_refused(f"volume '{volid}' has 512 bytes instead of 4096")
        self.fake.storage.sizes[volid] = 4096
        self.assertTrue(self.ask(cmd="unlock")["success"])


class MachineTests(RunningCase):
    """A VM that was paused at its source gets no `resume`: `unlock` is where its memory changes hands."""

    def setUp(self) -> None:
        super().setUp()
        self.start_with_disk()

    def check_refused(self, reason: str) -> None:
        self.assertEqual(self.msg(cmd="unlock"), f"failed to handle 'unlock' command - {reason}\n")
        self.assertEqual(self.fake.guests.configs[100].lock, "migrate")
        self.assertNotIn("journal handed_over", self.events)

    def test_qemu_gone(self) -> None:
        self.fake.machines.arrive()
        self.fake.machines.now = OFF
        self.check_refused("VM 100 not running: killed")
        self.assertTrue(self.ask(cmd="quit")["success"])

    def test_qemu_without_its_whole_state(self) -> None:
        waiting = self.begin(cmd="unlock")
        self.fake.clock.advance(3)
        self.assertNoResult(waiting)
        self.fake.clock.advance(2)
        text = "failed to handle 'unlock' command - the state of VM 100 has not arrived in full\n"
        self.assertEqual(self.successResultOf(waiting)["msg"], text)

    def test_the_rest_of_the_state_is_waited_for(self) -> None:
        waiting = self.begin(cmd="unlock")
        self.fake.machines.arrive()
        self.assertEqual(self.successResultOf(waiting), {"success": True})
        self.assertEqual(self.fake.machines.now.status, "paused")

    def test_stopped_by_its_source(self) -> None:
        self.fake.machines.arrive()
        self.ask(cmd="stop")
        self.check_refused("VM 100 not running")

    def test_a_vm_that_ran_here_may_have_ended(self) -> None:
        """Its guest switched itself off: what it wrote is here and nowhere else."""
        self.fake.machines.arrive()
        self.ask(cmd="resume")
        self.fake.machines.now = OFF
        self.assertTrue(self.ask(cmd="unlock")["success"])

    def test_exports_end_with_it(self) -> None:
        self.fake.machines.arrive()
        path = "/run/qemu-server/100_nbd.migrate"
        ticket = self.ask(cmd="ticket", path=path)["ticket"]
        stream = FakeStream()
        self.registry.route(100, path, TOKEN, ticket).opened(stream)
        del self.events[:]
        self.assertTrue(self.ask(cmd="unlock")["success"])
        self.assertLess(self.events.index("stop NBD"), self.events.index(f"sync {self.disk['volid']}"))
        self.assertLess(self.events.index(f"sync {self.disk['volid']}"), self.events.index("journal handed_over"))
        self.assertTrue(stream.aborted)
        for known in (path, "/run/qemu-server/100.migrate", "/run/qemu-server/100.storage"):
            self.assertIn("unknown socket", self.msg(cmd="ticket", path=known))

    def test_exports_that_cannot_be_ended(self) -> None:
        self.fake.machines.arrive()

        async def refuse(_vmid: int) -> None:
            raise BackendFailed("no answer")

        self.patch(self.fake.machines, "stop_nbd", refuse)
        self.check_refused("no answer")
