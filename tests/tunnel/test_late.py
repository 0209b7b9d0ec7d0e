"""A source that comes back when its tunnel is over: what it is told, and what it may decide."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from mtunnel_tx.errors import BackendFailed, NotFound, WrongState
from mtunnel_tx.ports.events import TunnelEnded, TunnelEvent
from mtunnel_tx.ports.machines import MachineState
from mtunnel_tx.ports.tunnels import Decision, LateAnswer
from mtunnel_tx.tunnel import verdicts
from tests.fakes import TOKEN, FakeHost, FakeTask
from tests.tunnel.test_machine import OFF, PAUSED, RUNNING, RunningCase

UPID = FakeTask.upid
HELD = LateAnswer(verdict="held", machine="paused", is_whole=True)


class LateCase(RunningCase):
    def setUp(self) -> None:
        super().setUp()
        self.told: list[TunnelEvent] = []
        self.fake.services.observers.add(self.told.append)

    def hold(self) -> None:
        """The whole VM is here, and the connection is lost for good."""
        self.start_with_disk()
        self.fake.machines.arrive()
        self.line.disconnected()
        self.assertIn(100, self.registry.held)
        del self.events[:]

    def come(self, decision: Decision | None = None, **other: Any) -> LateAnswer:
        return self.now(self.coming(decision, **other))

    def coming(self, decision: Decision | None = None, *, vmid: int = 100, token: str = TOKEN, upid: str = UPID) -> Any:
        return self.registry.come_late(vmid, token, upid, decision)

    def refused(self, decision: Decision | None = None, **other: Any) -> str:
        return self.fails(self.coming(decision, **other), WrongState).text

    def left(self) -> tuple[bool, bool, bool]:
        return 100 in self.fake.guests.configs, bool(self.fake.storage.sizes), 100 in self.fake.journal.records

    def ends(self) -> list[str]:
        return [event.outcome for event in self.told if isinstance(event, TunnelEnded)]


class AskTests(LateCase):
    def test_what_is_held(self) -> None:
        self.hold()
        self.assertEqual(self.come(), HELD)
        self.assertEqual((self.events, self.left()), ([], (True, True, True)))
        self.fake.machines.now = OFF
        self.assertEqual(self.come(), LateAnswer(verdict="held"))

    def test_somebody_elses_tunnel(self) -> None:
        self.hold()
        for other in ({"vmid": 101}, {"token": "else@pve!t1"}, {"upid": "UPID:x:"}, {"upid": ""}):
            for decision in (None, *Decision):
                self.fails(self.coming(decision, **other), NotFound)
        self.assertEqual(self.left(), (True, True, True))

    def test_what_was_kept_and_what_was_rolled_back(self) -> None:
        self.start_with_disk()
        self.fake.machines.arrive()
        self.ask(cmd="resume")
        self.line.disconnected()
        for decision in (None, *Decision):
            self.assertEqual(self.come(decision), LateAnswer(verdict="kept"))
        self.assertEqual(self.fake.machines.now.status, "running")

    def test_what_was_rolled_back(self) -> None:
        self.line.disconnected()
        self.assertEqual(self.come(Decision.RUN), LateAnswer(verdict="rolled back"))

    def test_what_somebody_has_decided(self) -> None:
        self.hold()
        self.now(self.registry.settle(100, discard=True))
        self.assertEqual((self.come(), self.ends()), (LateAnswer(verdict="rolled back"), ["held", "rolled back"]))

    def test_what_an_earlier_daemon_has_ended(self) -> None:
        async def remember(vmid: int, token: str, upid: str) -> str | None:
            return "kept" if (vmid, token, upid) == (100, TOKEN, UPID) else None

        after = FakeHost(self.mktemp())
        object.__setattr__(after.services, "remember", remember)
        self.registry = after.registry
        self.assertEqual(self.come(), LateAnswer(verdict="kept"))
        self.fails(self.coming(vmid=101), NotFound)

    def test_a_journal_that_is_gone_tells_nothing(self) -> None:
        self.hold()
        del self.fake.journal.records[100]
        self.fails(self.coming(Decision.RUN), NotFound)

    def test_verdicts_are_few(self) -> None:
        self.patch(verdicts, "MOST", 2)
        for vmid in (101, 102, 103):
            self.connect(vmid)
            self.line.disconnected()
        self.fails(self.coming(vmid=101), NotFound)
        self.assertEqual(self.come(vmid=102), LateAnswer(verdict="rolled back"))


class LiveTests(LateCase):
    def test_a_source_that_is_connected_is_not_late(self) -> None:
        self.assertEqual(self.refused(Decision.DISCARD), "the source of VM 100 is connected")

    def test_one_that_is_parked_is_ended_by_the_rule_first(self) -> None:
        self.start_with_disk()
        self.fake.machines.arrive()
        session = self.registry._sessions[100]
        self.patch(type(session.tunnel.parking), "has_commands", True)
        work = Deferred.fromCoroutine(self.coming())
        self.fake.clock.advance(10)
        self.assertEqual(self.successResultOf(work), HELD)
        self.assertEqual(self.registry.live(), [])


class RecordTests(LateCase):
    """What became of the VM is written before the journal goes: a crash in between would leave a source without it."""

    def setUp(self) -> None:
        super().setUp()

        async def record(vmid: int, token: str, upid: str, outcome: str) -> None:
            self.assertEqual((vmid, token, upid), (100, TOKEN, UPID))
            self.events.append(f"record {outcome}")

        self.record_with(record)

    def record_with(self, record: Any) -> None:
        object.__setattr__(self.fake.services, "record", record)

    def assert_recorded(self, outcome: str) -> None:
        last = [event for event in self.events if event.startswith(("record", "journal"))][-2:]
        self.assertEqual(last, [f"record {outcome}", "journal removed"])

    def test_every_end(self) -> None:
        self.line.disconnected()
        self.assert_recorded("rolled back")
        for decision, outcome in ((Decision.RUN, "kept"), (Decision.DISCARD, "rolled back")):
            self.setUp()
            self.hold()
            if decision is Decision.DISCARD:
                self.fake.machines.now = OFF
            self.come(decision)
            self.assert_recorded(outcome)

    def test_quit(self) -> None:
        for cleanup, outcome in ((0, "left as it is"), (1, "rolled back")):
            self.setUp()
            self.ask(cmd="quit", cleanup=cleanup)
            self.assert_recorded(outcome)

    def test_what_may_have_run_here_and_was_discarded(self) -> None:
        self.hold()
        self.fake.journal.records[100].append({"do": "resuming"})
        self.now(self.registry.settle(100, discard=True))
        self.assert_recorded("left as it is")

    def test_a_history_that_fails_or_hangs_holds_nothing_up(self) -> None:
        async def fail(*_values: object) -> None:
            raise ValueError("no")

        async def hang(*_values: object) -> None:
            await Deferred()

        for record in (fail, hang):
            self.setUp()
            self.record_with(record)
            self.line.disconnected()
            self.fake.clock.advance(3)
            self.assertNotIn(100, self.fake.journal.records)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class StoppingTests(LateCase):
    def test_what_is_being_settled_is_settled_before_the_daemon_leaves(self) -> None:
        self.hold()
        self.successResultOf(self.registry._settling.acquire())
        leaving = Deferred.fromCoroutine(self.registry.leave())
        self.assertNoResult(leaving)
        self.registry._settling.release()
        self.successResultOf(leaving)

    def test_nothing_is_given_up_then(self) -> None:
        session = self.registry._sessions[100]
        self.patch(type(session.tunnel.parking), "has_commands", True)
        self.now(self.registry.leave())
        self.fails(self.registry.abandon(100, TOKEN, UPID), WrongState)
        self.assertEqual(len(self.registry.live()), 1)


class DecideTests(LateCase):
    def test_it_runs_here(self) -> None:
        self.hold()
        self.assertEqual(self.come(Decision.RUN), LateAnswer(verdict="kept"))
        volid = self.disk["volid"]
        expected = ["stop NBD", f"sync {volid}", "journal resuming", "cont", "journal resumed"]
        self.assertEqual(self.events[:5], expected)
        self.assertEqual(self.left(), (True, True, False))
        self.assertIsNone(self.fake.guests.configs[100].lock)
        self.assertEqual((self.registry.held, self.ends()), ({}, ["held", "kept"]))
        self.assertEqual(self.come(Decision.RUN), LateAnswer(verdict="kept"))  # the answer was lost
        self.assertEqual(self.events.count("cont"), 1)

    def test_it_stays_paused_here(self) -> None:
        self.hold()
        self.assertEqual(self.come(Decision.KEEP), LateAnswer(verdict="kept"))
        self.assertEqual((self.fake.machines.now, self.left()), (PAUSED, (True, True, False)))
        unlocking = [event for event in self.events if event.startswith(("journal", "write", "config"))]
        self.assertEqual(unlocking[0], "journal handed_over")

    def test_where_the_lock_had_gone_and_the_journal_had_not(self) -> None:
        self.hold()
        remove = self.fake.journal.remove

        async def fail(_vmid: int) -> None:
            raise BackendFailed("no space left")

        self.fake.journal.remove = fail  # type: ignore[method-assign]
        self.fails(self.coming(Decision.KEEP), BackendFailed)
        self.assertIsNone(self.fake.guests.configs[100].lock)
        self.fake.journal.remove = remove  # type: ignore[method-assign]
        self.assertEqual(self.come(Decision.KEEP), LateAnswer(verdict="kept"))
        self.assertEqual((self.fake.machines.now, self.left()), (PAUSED, (True, True, False)))

    def test_it_is_the_sources(self) -> None:
        self.hold()
        self.fake.machines.now = OFF
        self.assertEqual(self.come(Decision.DISCARD), LateAnswer(verdict="rolled back"))
        self.assertEqual((self.left(), self.ends()), ((False, False, False), ["held", "rolled back"]))

    def test_what_is_not_all_here_does_not_run(self) -> None:
        self.hold()
        for machine in (OFF, RUNNING, MachineState(status="io-error", whole=True)):
            self.fake.machines.now = machine
            self.assertIn("is not whole here", self.refused(Decision.RUN))
        self.fake.machines.now = PAUSED
        self.fake.storage.sizes.clear()
        self.assertIn("is not there any more", self.refused(Decision.RUN))
        self.assertEqual(self.fake.journal.records[100][-1], {"do": "held"})

    def test_a_config_that_somebody_has_changed_does_not_run(self) -> None:
        self.hold()
        self.fake.guests.set(100, "lock: backup\nmemory: 512\n")
        for decision in (Decision.RUN, Decision.KEEP):
            self.assertIn("is no longer ours", self.refused(decision))
        self.assertEqual((self.fake.machines.now, self.left()), (PAUSED, (True, True, True)))

    def test_what_may_have_run_here_is_not_discarded(self) -> None:
        self.hold()
        self.fake.machines.now = RUNNING
        self.assertIn("somebody has to decide", self.refused(Decision.DISCARD))
        self.fake.machines.now = PAUSED
        self.fake.journal.records[100].append({"do": "resuming"})
        self.assertIn("somebody has to decide", self.refused(Decision.DISCARD))
        self.assertTrue(self.come().is_given_up)
        self.assertEqual(self.left(), (True, True, True))

    def test_one_that_may_have_run_and_was_discarded_is_not_called_ours(self) -> None:
        """Its source would end what it has of the VM."""
        self.hold()
        self.fake.journal.records[100].append({"do": "resuming"})
        self.fake.machines.now = OFF
        self.now(self.registry.settle(100, discard=True))
        self.assertEqual((self.come(), self.left()), (LateAnswer(verdict="left as it is"), (True, True, False)))

    def test_what_runs_with_a_part_of_its_memory_is_left_to_somebody(self) -> None:
        """By post-copy."""
        self.hold()
        self.fake.journal.records[100] += [{"do": "resuming"}]
        self.fake.machines.now = MachineState(status="running", partly=True)
        self.assertEqual(self.come(), LateAnswer(verdict="held", machine="running", is_given_up=True))
        self.assertIn("is not whole here", self.refused(Decision.RUN))
        self.assertIn("somebody has to decide", self.refused(Decision.DISCARD))

    def test_an_answer_that_nobody_knows_is_asked_for_again(self) -> None:
        """`cont` failed, or the daemon was killed before it."""
        self.hold()

        async def fail(_vmid: int) -> None:
            raise BackendFailed("no answer")

        self.fake.machines.resume = fail  # type: ignore[method-assign]
        self.fails(self.coming(Decision.RUN), BackendFailed)
        del self.fake.machines.resume
        self.assertEqual(self.come(), LateAnswer(verdict="held", machine="paused", is_whole=True, is_given_up=True))
        self.assertEqual(self.come(Decision.RUN), LateAnswer(verdict="kept"))
        self.assertEqual(self.fake.machines.now.status, "running")

    def test_a_rollback_that_was_begun_is_finished_and_nothing_else(self) -> None:
        self.hold()
        self.fake.journal.records[100].append({"do": "rolling_back"})
        self.assertFalse(self.come().is_whole)
        self.assertIn("is not whole here", self.refused(Decision.RUN))
        self.assertEqual(self.come(Decision.DISCARD), LateAnswer(verdict="rolled back"))
