"""A VM that has a QEMU, from its first command to its last; what was written down before each, and whatever fails."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from twisted.internet.defer import CancelledError, Deferred

from mtunnel_tx.errors import BackendFailed, TunnelError, WrongState
from mtunnel_tx.source.patience import OnTimeout, Patience
from mtunnel_tx.source.qemu.forwards import Forwards
from tests.source.case import SourceCase
from tests.source.machines import FakeMachine

STATE = {"status": "active", "passes": 1, "throttle_percent": 0, "dirty_bytes_s": 2.0, "sent_bytes_s": 1.0}
STATE |= {"transferred_bytes": 1, "remaining_bytes": 9}


class LiveCase(SourceCase):
    def setUp(self):
        super().setUp()
        self.machines = FakeMachine()
        self.written = {}
        answer = self.target.answer_line

        def record(wire, line):
            """What the journal says when the target hears a command."""
            words = [record["do"] for record in self.journal.read(100) or []]
            answer(wire, line)
            self.written[self.target.commands[-1]["cmd"]] = words[-1]

        self.target.answer_line = record

    def migrate(self, **changes):
        return super().migrate(online=True, **changes)

    async def fails(self, *texts, **changes):
        with self.assertRaises(TunnelError) as caught:
            await self.migrate(**changes)
        for text in texts:
            self.assertIn(text, caught.exception.text)

    def told(self):
        """The commands that count, in order."""
        quiet = ("version", "bwlimit", "disk", "config", "ticket")
        return [command["cmd"] for command in self.target.commands if command["cmd"] not in quiet]

    def assert_back(self, *deeds, said):
        """The target was told to clean up; here it is as it was."""
        self.assert_unlocked()
        self.assertEqual(self.target.commands[-1], {"cmd": "quit", "cleanup": 1})
        self.assertEqual(self.machines.deeds[-len(deeds) :] if deeds else [], list(deeds))
        self.assertEqual(self.watcher.said[-1], f"VM 100 {said}")

    def assert_held(self, *texts):
        """Nothing was ended or removed there, nor started here."""
        self.assertTrue({"stop", "quit"}.isdisjoint(self.told()), self.told())
        self.assertEqual((self.guests.read(100).lock, self.journal.standing()), ("migrate", [100]))
        for text in ("nobody here knows who owns VM 100", *texts):
            self.assertIn(text, self.watcher.said[-1])
        self.assertTrue({"run", "end"}.isdisjoint(self.machines.deeds), self.machines.deeds)


class PostcopyTest(LiveCase):
    def setUp(self):
        super().setUp()
        self.machines.memory_states = [SimpleNamespace(**STATE)]
        self.target.http["GET", "/version"] = {"version": "9.2.0", "release": "9.2", "repoid": "mtunnel-tx-1.0"}
        self.target.http["POST", f"{self.target.guest}/mtunnelcheck"] = {"findings": [], "disks": []}

    def migrate(self, **changes):
        patience = Patience(timeout_s=1e-6, on_timeout=OnTimeout.POSTCOPY)
        return super().migrate(patience=patience, **changes)

    async def test_it_runs_there_before_all_of_it_is_there(self):
        await self.migrate()
        self.assertEqual(self.machines.deeds, ["mirror", "post-copy", "memory", "level", "rest", "end"])
        self.assertEqual((self.written["resume"], self.written["unlock"]), ("resuming", "whole"))
        self.assertIn("post-copy: 3.0 MiB remain", self.watcher.said)
        self.assert_moved()

    async def test_the_rest_does_not_come_there(self):
        self.machines.breaks = True
        with self.assertRaises(TunnelError):
            await self.migrate()
        self.assertTrue({"stop", "quit", "unlock"}.isdisjoint(self.told()), self.told())
        self.assertTrue({"run", "end", "cancel"}.isdisjoint(self.machines.deeds), self.machines.deeds)
        self.assertIn("VM 100 is in two parts (post-copy)", self.watcher.said[-1])

    async def test_the_target_does_not_let_it_run(self):
        """QEMU takes it back while the target's still lives; it runs here once that has cleaned up."""
        self.target.replies["resume"] = {"success": False, "msg": "no"}
        await self.fails("no")
        self.assert_back("cancel", "adopt scsi0", "adopt virtio1", "run", said="runs on here")

    async def test_the_exports_do_not_end(self):
        self.target.replies["nbdstop"] = {"success": False, "msg": "no"}
        await self.fails("no")
        self.assert_back("cancel", "run", "adopt scsi0", "adopt virtio1", said="runs on here")

    async def test_a_target_that_cannot(self):
        del self.target.http["POST", f"{self.target.guest}/mtunnelcheck"]
        with self.assertRaises(TunnelError) as caught:
            await self.migrate()
        self.assertIn("--on-timeout postcopy: only an mtunnel-tx", caught.exception.text)
        self.assertEqual(self.told(), [])


class MovedTest(LiveCase):
    async def test_a_running_one(self):
        await self.migrate()
        self.assertEqual(self.told(), ["start", "nbdstop", "resume", "unlock", "quit"])
        self.assertEqual(self.machines.deeds, ["mirror", "memory", "level", "rest", "end"])
        self.assert_moved()

    async def test_one_that_is_stopped_between_the_look_and_the_lock(self):
        """Its disks would be sent while a guest writes to them, or the other way round."""
        seen, world = [], self.world

        def running(vmid):
            seen.append(vmid)
            return len(seen) == 1

        self.world = lambda: replace(world(), running=running)
        with self.assertRaises(WrongState) as caught:
            await self.migrate()
        self.assertEqual(caught.exception.text, "VM 100 was stopped meanwhile")
        self.assert_unlocked()
        self.assertEqual(self.journal.standing(), [])

    async def test_what_is_written_before_each_command(self):
        await self.migrate()
        expected = {"version": "claim", "config": "opened", "start": "starting", "nbdstop": "completing",
                    "resume": "resuming", "unlock": "resumed", "quit": "handed_over"}  # fmt: skip
        self.assertEqual({name: self.written[name] for name in expected}, expected)

    async def test_a_paused_one_lives_here_until_the_target_has_said_yes(self):
        self.machines.now = "paused"
        self.target.replies["unlock"] = Deferred()
        reached = self.target.when("unlock")
        running = self.migrate(delete=True)
        await reached
        self.assertTrue(self.machines.is_on)
        self.target.replies["unlock"].callback({})
        await running
        self.assertEqual(self.told(), ["start", "nbdstop", "unlock", "quit"])
        self.assertEqual(self.machines.deeds[-1], "end")
        self.assertEqual(self.written["unlock"], "handing_over")
        self.assertFalse(self.conf_file.exists())

    async def test_the_memory_of_a_paused_one_may_arrive_until_the_target_has_said_yes(self):
        closed, close = [], Forwards.close

        def note(forwards):
            closed.append(self.told())
            close(forwards)

        self.patch(Forwards, "close", note)
        self.machines.now = "paused"
        await self.migrate()
        self.assertIn("unlock", closed[0])

    async def test_interrupted_in_the_hand_over(self):
        """A terminal that goes away: too late, it is finished."""
        for event in ("nbdstop", "resume", "unlock"):
            self.setUp()
            reached = self.target.when(event)
            running = self.migrate()
            await reached
            running.cancel()
            await running
            self.assert_moved()

    async def test_interrupted_in_the_hand_over_nothing_is_deleted(self):
        reached = self.target.when("resume")
        running = self.migrate(delete=True)
        await reached
        running.cancel()
        with self.assertRaises(CancelledError):
            await running
        self.assert_moved()
        self.assertEqual((self.told()[-2:], self.storage.freed), (["unlock", "quit"], []))

    async def test_it_runs_there_but_is_not_unlocked(self):
        self.target.fail["unlock"] = "no"
        await self.fails("VM 300 runs at the target, but its lock there may stand: target: failed to handle 'unlock'")
        self.assert_moved()
        self.assertNotIn("quit", self.told())
        self.assertEqual(self.machines.deeds[-1], "end")


class BackTest(LiveCase):
    async def test_a_mirror_fails(self):
        self.machines.fails = "mirror"
        self.machines.before = "running"
        await self.fails("migration failed")
        self.assert_back(said="runs on here")

    async def test_memory_fails(self):
        self.machines.fails = "memory"
        await self.fails("Broken pipe")
        self.assert_back(said="runs on here")
        self.assertEqual(self.told(), ["start", "stop", "quit"])

    async def test_a_mirror_fails_in_the_last_moment(self):
        self.machines.fails = "level"
        await self.fails("Broken pipe")
        self.assert_back(said="runs on here")

    async def test_it_runs_on_before_the_target_is_told(self):
        """The network may be what is lost: nobody who stands still waits for an answer then."""
        for deed in ("memory", "level", "rest"):
            self.setUp()
            self.machines.late = deed
            asked = self.target.when("stop")
            self.target.replies["stop"] = Deferred()
            running = self.migrate()
            await asked
            self.assertEqual((self.machines.deeds[-1], self.machines.now), ("cancel", "running"))
            self.target.replies["stop"].callback({})
            with self.assertRaises(TunnelError):
                await running
            self.assert_back(said="runs on here")

    async def test_the_rest_cannot_be_sent(self):
        self.machines.fails = "rest"
        await self.fails("Broken pipe")
        self.assert_back(said="runs on here")
        self.assertEqual((self.written["stop"], self.machines.is_sped_up), ("runs_on", True))

    async def test_it_is_written_before_it_runs_on(self):
        """The target may have all of it, and would be told to run it once QEMU here is gone."""
        run, written = self.machines.run, []

        async def note():
            written.append(self.journal.read(100)[-1]["do"])
            await run()

        self.machines.run = note
        self.machines.before = "paused"
        self.machines.late = "rest"
        self.machines.cancel_migration = self.cancel
        await self.fails("not level")
        self.assertEqual(written[0], "runs_on")

    async def cancel(self):
        self.machines.memory, self.machines.now = "cancelled", "paused"

    async def test_the_target_does_not_let_it_run(self):
        self.target.fail["resume"] = "its QEMU is gone"
        await self.fails("its QEMU is gone")
        self.assert_back("run", said="runs on here")

    async def test_one_of_ours_that_said_no_is_not_told_to_end_it(self):
        """It may run there all the same: QEMU had not answered in time."""
        self.target.http["GET", "/version"] = {"version": "9.2.0", "release": "9.2", "repoid": "mtunnel-tx-1.0"}
        self.target.http["POST", f"{self.target.guest}/mtunnelcheck"] = {"findings": [], "disks": []}
        self.target.fail["resume"] = "QEMU did not answer 'cont' within 10 s"
        await self.fails("QEMU did not answer")
        self.assertNotIn("stop", self.told())
        self.assert_back("run", said="runs on here")

    async def test_one_that_does_not_answer_to_unlock_is_looked_at(self):
        """The memory of a paused VM is nowhere else, where QEMU here has died."""
        self.machines.now = "paused"
        self.target.replies["unlock"] = Deferred()
        reached = self.target.when("unlock")
        running = self.migrate()
        await reached
        self.machines.is_on = False
        self.target.command_wire.sendMessage(b"5\n", isBinary=True)
        with self.assertRaises(TunnelError):
            await running
        self.assert_held("was told that it is its own, and did not answer; it is off here")

    async def test_a_paused_one_comes_back_paused(self):
        self.machines.now = "paused"
        self.target.fail["unlock"] = "VM 300 is not whole"
        await self.fails("VM 300 is not whole", delete=True)
        self.assert_back("pause", said="stays here, paused")
        self.assertEqual(self.storage.freed, [])

    async def test_its_qemu_dies_before_the_rest_is_sent(self):
        self.machines.dies = "memory"
        await self.fails("the connection to QEMU has ended")
        self.assert_back(said="stays here, but is off now: it was running when it was to leave")

    async def test_interrupted(self):
        for event in ("config", "start"):
            self.setUp()
            reached = self.target.when(event)
            running = self.migrate()
            await reached
            running.cancel()
            with self.assertRaises(CancelledError):
                await running
            self.assert_back(said="runs on here")


class HeldTest(LiveCase):
    async def test_its_qemu_dies_while_the_rest_is_sent(self):
        """The target may have the only whole copy."""
        self.machines.dies = "rest"
        await self.fails("the connection to QEMU has ended")
        self.assert_held("may have its whole state, and was never told to run it; it is off here")

    async def test_no_answer_to_resume(self):
        self.target.replies["resume"] = Deferred()
        reached = self.target.when("resume")
        running = self.migrate()
        await reached
        self.target.command_wire.transport.abortConnection()
        with self.assertRaises(TunnelError):
            await running
        self.assert_held("was told to run it, and did not answer; it is paused here")

    async def test_no_answer_to_nbdstop_and_no_connection(self):
        self.target.replies["nbdstop"] = Deferred()
        reached = self.target.when("nbdstop")
        running = self.migrate()
        await reached
        self.target.command_wire.transport.abortConnection()
        with self.assertRaises(TunnelError):
            await running
        self.assert_held("was never told to run it; it is paused here")


class FullDiskTest(LiveCase):
    """The source's disk is full: what cannot be written down is not done, and what is done is told."""

    def fill_at(self, word):
        append = self.journal.append

        async def refuse(vmid, record):
            if record["do"] == word or self.is_full:
                self.is_full = True
                raise BackendFailed("source-100.jsonl: No space left on device")
            await append(vmid, record)

        self.is_full = False
        self.journal.append = refuse

    async def test_before_the_hand_over(self):
        for word in ("starting", "completing", "resuming"):
            self.setUp()
            self.fill_at(word)
            await self.fails("No space left on device")
            self.assertNotIn("resume", self.told())
            self.assert_back(said="runs on here")

    async def test_after_it(self):
        self.fill_at("resumed")
        await self.migrate()
        self.assertIn("the journal cannot be written: source-100.jsonl: No space left on device", self.watcher.said)
        self.assert_moved()

    async def test_the_lock_cannot_be_taken_off(self):
        write = self.guests.write

        async def refuse(vmid, conf):
            if "moved" in conf.options:
                raise BackendFailed("100.conf: No space left on device")
            await write(vmid, conf)

        self.guests.write = refuse
        there = "VM 100 was moved and is VM 300 at 127.0.0.1 now, but something is left to do here"
        await self.fails(f"{there}: 100.conf: No space left on device; then run 'mtunnel settle 100'")
        self.assertEqual((self.guests.read(100).lock, self.journal.standing()), ("migrate", [100]))
        self.assertTrue(Path(self.folder / "state/journal/source-100.jsonl").exists())
