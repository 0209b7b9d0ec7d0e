"""A VM that runs: start, resume, and who owns it when the tunnel ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred

from mtunnel_tx.errors import BackendFailed, TimedOut, TunnelError, WrongState
from mtunnel_tx.ports.machines import MachineState
from mtunnel_tx.tunnel.ledger import Owed
from mtunnel_tx.tunnel.sockets import SocketTable
from mtunnel_tx.tunnel.verdict import Verdict, judge
from tests.fakes import FakeHost
from tests.tunnel.case import CONFIG, DISK, TunnelCase

OFF, INCOMING, PAUSED, RUNNING, BROKEN = (
    MachineState(status=status, whole=whole)
    for status, whole in (("off", False), ("inmigrate", False), ("paused", True), ("running", True), ("io-error", True))
)
PARTLY = MachineState(status="running", partly=True)


class JudgeTests(TunnelCase):
    def test_every_row(self) -> None:
        back, keep, hold = Verdict.ROLL_BACK, Verdict.KEEP, Verdict.HOLD
        for marks, rows in (
            ("", ((OFF, back),)),
            ("started", ((OFF, back), (INCOMING, back), (PAUSED, hold), (RUNNING, hold), (BROKEN, hold))),
            ("started whole", ((OFF, hold), (PAUSED, hold), (RUNNING, hold), (BROKEN, hold))),
            ("started whole resuming", ((OFF, hold), (PAUSED, hold), (RUNNING, keep), (BROKEN, hold))),
            ("started whole resuming resumed", ((OFF, keep), (PAUSED, keep), (RUNNING, keep), (BROKEN, keep))),
            ("started whole handed_over", ((OFF, keep), (PAUSED, keep))),
            ("started whole resuming resumed handed_over", ((OFF, keep), (RUNNING, keep))),
            ("started resuming split", ((OFF, hold), (PARTLY, hold), (PAUSED, hold), (RUNNING, keep))),
            ("started resuming split resumed", ((OFF, hold), (PARTLY, hold), (RUNNING, keep))),
            ("started resuming split resumed whole", ((OFF, keep), (RUNNING, keep))),
            ("started resuming split resumed handed_over", ((OFF, keep), (RUNNING, keep))),
            ("started", ((PARTLY, hold),)),
            ("started rolling_back", ((OFF, back), (INCOMING, back), (PAUSED, back))),
            ("handed_over", ((OFF, keep),)),
        ):
            owed = Owed(vmid=100, **dict.fromkeys(marks.split(), True))  # type: ignore[arg-type]
            for machine, verdict in rows:
                self.assertIs(judge(owed, machine), verdict, (marks, machine))


class RunningCase(TunnelCase):
    def setUp(self) -> None:
        super().setUp()
        self.connect()
        self.disk = self.ask(**DISK)
        self.ask(**CONFIG)
        del self.events[:]

    def start(self, **options: Any) -> dict[str, Any]:
        options = {"type": "websocket", "migratedfrom": "a", "remote_node": "b", **options}
        return self.ask(cmd="start", start_params={"statefile": "unix", "skiplock": 1}, migrate_opts=options)

    def start_with_disk(self) -> dict[str, Any]:
        return self.start(nbd={"scsi0": self.disk})


class StartTests(RunningCase):
    def test_reply(self) -> None:
        volid, drivestr = self.disk["volid"], self.disk["drivestr"]
        uri = "nbd:unix:/run/qemu-server/100_nbd.migrate:exportname=drive-scsi0"
        addr = "/run/qemu-server/100.migrate"
        sockets = ["/run/qemu-server/100_nbd.migrate"]
        expected = {
            "success": True,
            "migrate": {"proto": "unix", "addr": addr, "uri": f"unix:{addr}", "unix_sockets": sockets},
            "drives": {"scsi0": {"drivestr": drivestr, "nbd_uri": uri, "volid": volid}},
        }
        self.assertEqual(self.start_with_disk(), expected)
        self.assertEqual(self.events, ["journal starting", "start QEMU", "journal started"])
        for path in (addr, *sockets):
            self.assertTrue(self.ask(cmd="ticket", path=path)["success"])

    def test_without_disks(self) -> None:
        reply = self.start()
        self.assertNotIn("drives", reply)
        self.assertEqual(reply["migrate"]["unix_sockets"], [])
        assert self.fake.machines.incoming is not None
        self.assertIsNone(self.fake.machines.incoming.nbd_socket)

    def test_empty_nbd_starts_the_server(self) -> None:
        reply = self.start(nbd={})
        self.assertEqual(reply["migrate"]["unix_sockets"], ["/run/qemu-server/100_nbd.migrate"])
        self.assertNotIn("drives", reply)

    def test_only_once(self) -> None:
        self.start()
        options = {"type": "websocket", "migratedfrom": "a", "remote_node": "b"}
        text = self.msg(cmd="start", start_params={"statefile": "unix"}, migrate_opts=options)
        self.assertEqual(text, "failed to handle 'start' command - VM 100 already running\n")

    def test_a_failed_start_is_undone_with_the_rest(self) -> None:
        self.fake.machines.refusal = BackendFailed("QEMU says no")
        options = {"type": "websocket", "migratedfrom": "a", "remote_node": "b"}
        text = self.msg(cmd="start", start_params={"statefile": "unix"}, migrate_opts=options)
        self.assertIn("QEMU says no", text)
        self.assertEqual(self.ask(cmd="quit", cleanup=1), {"success": True})
        self.assertEqual((self.fake.storage.sizes, self.fake.guests.configs), ({}, {}))

    def test_what_cannot_run_here_is_refused_at_config(self) -> None:
        self.connect(101)
        self.ask(**DISK)
        text = self.msg(cmd="config", conf="memory: 512\nwatchdog: i6300esb\n")
        self.assertEqual(text, "failed to handle 'config' command - watchdog: this host has none\n")


class ResumeTests(RunningCase):
    def test_marks_before_deeds(self) -> None:
        self.start_with_disk()
        self.fake.machines.arrive()
        del self.events[:]
        self.assertEqual(self.ask(cmd="resume"), {"success": True})
        self.assertEqual(self.events, [f"sync {self.disk['volid']}", "journal resuming", "cont", "journal resumed"])
        self.assertEqual(self.ask(cmd="resume"), {"success": True})

    def test_before_all_of_its_memory_is_here(self) -> None:
        """By post-copy; then `unlock` waits for the rest, and is refused without it."""
        self.start_with_disk()
        self.fake.machines.arrive_partly()
        del self.events[:]
        waiting = self.begin(cmd="resume")
        self.fake.clock.advance(0.1)
        self.assertEqual(self.successResultOf(waiting), {"success": True})
        expected = [f"sync {self.disk['volid']}", "journal resuming_partly", "cont", "journal resumed"]
        self.assertEqual(self.events, expected)
        refused = self.begin(cmd="unlock")
        self.fake.clock.advance(5)
        self.assertIn("the state of VM 100 has not arrived in full", self.successResultOf(refused)["msg"])
        self.assertIn("running here", self.msg(cmd="quit", cleanup=1))

    def test_not_where_its_source_is_out_of_reach(self) -> None:
        """By post-copy: the rest of its memory would never come."""
        self.start_with_disk()
        self.fake.machines.now = MachineState(status="paused", partly=True, cut=True)
        waiting = self.begin(cmd="resume")
        self.fake.clock.advance(26)
        self.assertIn("still waits for its state", self.successResultOf(waiting)["msg"])
        self.assertNotIn("journal resuming_partly", self.events)

    def unanswered(self, error: TunnelError, *, later: MachineState = PAUSED) -> dict[str, Any]:
        """QEMU does not say whether it lets the VM run. Returns: the reply, and what was ended."""
        self.start_with_disk()
        self.fake.machines.arrive()

        async def fail(_vmid: int, *, partly: bool = False) -> None:
            self.fake.machines.now = later
            raise error

        self.fake.machines.resume = fail  # type: ignore[method-assign]
        ended: list[str] = []
        self.patch(SocketTable, "abort_streams", lambda _, kinds=(): ended.extend(kind.name for kind in kinds))
        waiting = self.begin(cmd="resume")
        if not waiting.called:
            self.fake.clock.advance(11)
        return {**self.successResultOf(waiting), "ended": ended}

    def test_an_answer_of_qemu_that_comes_too_late(self) -> None:
        self.assertEqual(self.unanswered(TimedOut("late"), later=RUNNING), {"success": True, "ended": []})
        self.assertEqual(self.events[-1], "journal resumed")

    def test_an_answer_of_qemu_that_never_comes(self) -> None:
        """The source would take a failure for a no, and go on with the VM: it has no answer."""
        self.assertEqual(self.unanswered(BackendFailed("lost"))["ended"], ["commands"])

    def test_a_no_of_qemu_is_one(self) -> None:
        reply = self.unanswered(WrongState("QEMU refuses 'cont'"))
        self.assertEqual((reply["success"], reply["ended"]), (False, []))

    def test_waits_for_the_whole_state(self) -> None:
        self.start_with_disk()
        waiting = self.begin(cmd="resume")
        self.fake.clock.advance(3)
        self.assertNoResult(waiting)
        self.fake.machines.arrive()
        self.assertEqual(self.successResultOf(waiting), {"success": True})
        self.assertIn("journal whole", self.events)

    def test_but_not_for_ever(self) -> None:
        self.start_with_disk()
        waiting = self.begin(cmd="resume")
        self.fake.clock.advance(26)
        self.assertIn("still waits for its state", self.successResultOf(waiting)["msg"])
        self.assertNotIn("journal resuming", self.events)

    def test_nor_where_nobody_watches_any_more(self) -> None:
        """A mark that it ran would keep it for ever, though it never did."""
        self.start_with_disk()
        self.fake.machines.arriving.errback(BackendFailed("the monitor is gone"))
        self.assertIn("has not arrived in full", self.msg(cmd="resume"))
        self.assertNotIn("journal resuming", self.events)

    def test_two_records_at_once(self) -> None:
        self.start_with_disk()
        append, gate = self.fake.journal.append, Deferred[None]()

        async def slow(vmid: int, record: Mapping[str, Any]) -> None:
            if record["do"] == "whole":
                await gate
            await append(vmid, record)

        self.fake.journal.append = slow  # type: ignore[method-assign]
        self.fake.machines.arrive()
        unlocked = self.begin(cmd="unlock")
        gate.callback(None)
        self.assertEqual(self.successResultOf(unlocked), {"success": True})
        self.assertIn("is already unlocked", self.msg(cmd="quit", cleanup=1))
        self.assertNotIn("stop QEMU", self.events)

    def test_a_vm_that_died_on_the_way(self) -> None:
        self.start_with_disk()
        self.fake.machines.now = OFF
        self.fake.machines.arriving.errback(BackendFailed("load of migration failed"))
        self.assertEqual(self.msg(cmd="resume"), "failed to handle 'resume' command - VM 100 not running\n")
        self.assertIn("VM 100 ended before its state was complete: load of migration failed", self.task.lines)
        self.assertNotIn("journal resuming", self.events)


class EndTests(RunningCase):
    def left(self) -> tuple[bool, bool, bool]:
        return bool(self.fake.storage.sizes), bool(self.fake.guests.configs), bool(self.fake.journal.records)

    def test_before_the_state_is_whole_everything_goes(self) -> None:
        self.start_with_disk()
        self.line.disconnected()
        self.assertEqual(self.left(), (False, False, False))
        self.assertLess(self.events.index("stop QEMU"), self.events.index(f"free {self.disk['volid']}"))

    def test_whole_but_not_told_to_run_is_held(self) -> None:
        self.start_with_disk()
        self.fake.machines.arrive()
        self.line.disconnected()
        self.assertEqual(self.left(), (True, True, True))
        self.assertEqual(self.fake.guests.configs[100].lock, "migrate")
        self.assertIn("has its whole state here and is paused", self.registry.held[100])
        self.assertNotIn("stop QEMU", self.events)

    def test_running_is_kept_without_our_lock(self) -> None:
        self.start_with_disk()
        self.fake.machines.arrive()
        self.ask(cmd="resume")
        self.line.disconnected()
        self.assertEqual(self.left(), (True, True, False))
        self.assertIsNone(self.fake.guests.configs[100].lock)
        self.assertEqual(self.fake.machines.now.status, "running")

    def test_cleanup_after_resume_is_refused(self) -> None:
        self.start_with_disk()
        self.fake.machines.arrive()
        self.ask(cmd="resume")
        text = "failed to handle 'quit' command - refusing cleanup: VM 100 is running here\n"
        self.assertEqual(self.msg(cmd="quit", cleanup=1), text)
        self.line.disconnected()
        self.assertEqual(self.left(), (True, True, False))

    def test_a_vm_paused_at_the_source_gets_no_resume(self) -> None:
        self.start_with_disk()
        self.fake.machines.arrive()
        for cmd in ("unlock", "quit"):
            self.assertEqual(self.ask(cmd=cmd), {"success": True})
        self.line.disconnected()
        self.assertEqual(self.fake.machines.now.status, "paused")
        self.assertEqual(self.left(), (True, True, False))

    def test_the_sources_own_way_out(self) -> None:
        self.start_with_disk()
        self.assertEqual(self.ask(cmd="stop"), {"success": True})
        self.assertEqual(self.ask(cmd="quit", cleanup=1), {"success": True})
        self.assertEqual(self.left(), (False, False, False))

    def test_what_was_told_to_run_is_not_stopped(self) -> None:
        """A source that was told no may believe that it does not run."""
        self.start_with_disk()
        self.fake.machines.arrive()
        self.ask(cmd="resume")
        self.assertIn("refusing to stop VM 100: it was told to run here", self.msg(cmd="stop"))
        self.assertEqual(self.fake.machines.now.status, "running")
        self.fake.machines.now = OFF
        self.assertEqual(self.ask(cmd="stop"), {"success": True})

    def test_settle_resume(self) -> None:
        self.test_whole_but_not_told_to_run_is_held()
        del self.events[:]
        self.now(self.registry.settle(100, discard=False))
        self.assertEqual(self.events[:4], [f"sync {self.disk['volid']}", "journal resuming", "cont", "journal resumed"])
        self.assertEqual(self.fake.machines.now.status, "running")
        self.assertEqual(self.left(), (True, True, False))
        self.assertIsNone(self.fake.guests.configs[100].lock)

    def test_settle_discard(self) -> None:
        self.test_whole_but_not_told_to_run_is_held()
        self.now(self.registry.settle(100, discard=True))
        self.assertEqual(self.left(), (False, False, False))
        self.assertEqual(self.fake.machines.now.status, "off")


class CrashTests(RunningCase):
    """Another daemon finds the journal, and the machine as it is."""

    def after(self, machine: MachineState) -> FakeHost:
        after = FakeHost(self.mktemp())
        after.guests.configs, after.storage.sizes = self.fake.guests.configs, self.fake.storage.sizes
        after.journal.records, after.machines.now = self.fake.journal.records, machine
        after.machines.pid = self.fake.machines.pid
        self.now(after.registry.recover())
        return after

    def test_incoming(self) -> None:
        self.start_with_disk()
        after = self.after(INCOMING)
        self.assertEqual((after.storage.sizes, after.guests.configs, after.journal.records), ({}, {}, {}))
        self.assertEqual(after.machines.now.status, "off")

    def test_whole_before_it_was_written_down(self) -> None:
        self.start_with_disk()
        self.assertIn(100, self.after(PAUSED).registry.held)

    def test_told_to_run(self) -> None:
        self.start_with_disk()
        self.fake.journal.records[100] += [{"do": "whole"}, {"do": "resuming"}]
        self.assertIn(100, self.after(OFF).registry.held)
        self.assertIn(100, self.after(PAUSED).registry.held)
        after = self.after(RUNNING)
        self.assertEqual((after.registry.held, after.journal.records), ({}, {}))
        self.assertIsNone(after.guests.configs[100].lock)
        self.assertIn(self.disk["volid"], after.storage.sizes)
