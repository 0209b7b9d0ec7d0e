"""The QEMU that runs under a tunnel's VMID is not the one that it has started: its journal says which that was."""

from __future__ import annotations

from mtunnel_tx.errors import WrongState
from mtunnel_tx.ports.machines import MachineState
from mtunnel_tx.ports.tunnels import Decision
from tests.fakes import TOKEN
from tests.tunnel.test_machine import INCOMING, OFF, PAUSED, RunningCase
from tests.tunnel.test_takenover import RESTORED

RUNS = MachineState(status="running")
OTHER = "another QEMU's"


class AnothersCase(RunningCase):
    """The daemon is killed, and its tunnel's QEMU ends; then another one has its number."""

    def setUp(self) -> None:
        super().setUp()
        self.start_with_disk()
        self.volid = self.disk["volid"]

    def crash(self, theirs: MachineState, *words: str) -> None:
        self.fake.journal.records[100] += [{"do": word} for word in words]
        self.registry._sessions.clear()
        self.fake.machines.replace(theirs)
        del self.events[:]

    def recover(self) -> str:
        """Returns: why it is held. Nothing of it is touched, nor the QEMU."""
        before = self.fake.machines.now
        self.now(self.registry.recover())
        self.assertEqual(self.fake.machines.now, before)
        self.assertEqual(list(self.fake.storage.sizes), [self.volid])
        return self.registry.held[100]


class WithAnothersConfigTests(AnothersCase):
    def crash(self, theirs: MachineState, *words: str) -> None:
        super().crash(theirs, *words)
        self.fake.guests.set(100, RESTORED)

    def test_one_that_waits_for_its_memory_is_not_ended(self) -> None:
        """As where it is moved here from another node of its cluster."""
        self.crash(INCOMING)
        self.assertIn(f"no longer ours; volumes left: {self.volid}", self.recover())

    def test_nor_when_the_rest_is_discarded(self) -> None:
        self.crash(INCOMING)
        self.recover()
        self.assertEqual(self.now(self.registry.settle(100, discard=True)), [])
        self.assertEqual((self.fake.machines.now, self.fake.storage.sizes), (INCOMING, {}))

    def test_one_that_runs_does_not_make_the_vm_ours(self) -> None:
        """A source that asks would be told `kept`, and mark its VM, which is nowhere else, as moved."""
        self.crash(RUNS, "whole", "resuming")
        self.assertIn(
            "was told to run here and is off, and a QEMU that this tunnel has not started runs", self.recover()
        )
        self.assertEqual(self.now(self.registry.come_late(100, TOKEN, self.task.upid)).machine, OTHER)

    def test_its_source_does_not_take_it_for_gone(self) -> None:
        """Somebody may have started the VM itself, by hand: a source that has it too would let it run there as well."""
        self.crash(RUNS, "whole")
        self.recover()
        self.assertEqual(self.now(self.registry.come_late(100, TOKEN, self.task.upid)).machine, OTHER)
        reason = self.fails(self.registry.come_late(100, TOKEN, self.task.upid, Decision.DISCARD), WrongState).text
        self.assertIn("has not started runs under its number: somebody has to decide", reason)
        self.assertEqual(list(self.fake.storage.sizes), [self.volid])
        self.assertNotIn({"do": "rolling_back"}, self.fake.journal.records[100])

    def test_one_that_is_paused_holds_nothing_up(self) -> None:
        self.crash(PAUSED)
        self.assertIn("no longer ours; volumes left", self.recover())

    def test_of_an_old_journal_one_that_waits_is_taken_for_ours(self) -> None:
        self.crash(INCOMING)
        records = self.fake.journal.records[100]
        records[:] = [record for record in records if record["do"] != "started"]
        self.now(self.registry.recover())
        self.assertEqual(self.fake.machines.now, OFF)


class WithOurConfigTests(AnothersCase):
    """Somebody has started it although it was locked: it uses our volumes."""

    def test_nothing_is_freed_under_it(self) -> None:
        for theirs in (INCOMING, PAUSED, RUNS):
            self.crash(theirs)
            self.assertIn("a QEMU that this tunnel has not started runs under its number", self.recover())
            self.assertIn("has not started", self.fails(self.registry.settle(100, discard=True), WrongState).text)
        self.fake.machines.now = OFF
        self.assertEqual(self.now(self.registry.settle(100, discard=True)), [])
        self.assertEqual((self.fake.storage.sizes, self.fake.guests.configs), ({}, {}))

    def test_it_is_not_told_to_run(self) -> None:
        self.crash(PAUSED, "whole")
        self.recover()
        self.fails(self.registry.come_late(100, TOKEN, self.task.upid, Decision.RUN), WrongState)
        self.now(self.registry.settle(100, discard=False))
        self.assertNotIn("cont", self.events)


class LiveTests(AnothersCase):
    """The tunnel goes on, with its daemon or with the next one."""

    def test_its_source_does_not_end_it(self) -> None:
        self.fake.machines.replace(INCOMING)
        self.assertEqual(self.ask(cmd="stop"), {"success": True})
        self.assertEqual(self.fake.machines.now, INCOMING)

    def test_it_is_not_taken_for_the_vm(self) -> None:
        self.fake.machines.arrive()
        self.fake.machines.replace(PAUSED)
        self.assertIn("VM 100 not running", self.msg(cmd="resume"))
        self.assertIn("VM 100 not running", self.msg(cmd="unlock"))
        self.assertEqual(self.fake.machines.now, PAUSED)

    def test_one_that_the_tunnel_starts_after_it_is_its_own(self) -> None:
        self.ask(cmd="stop")
        self.start_with_disk()
        self.assertEqual(self.ask(cmd="quit", cleanup=1), {"success": True})
        self.assertEqual((self.fake.machines.now, self.fake.storage.sizes), (OFF, {}))
