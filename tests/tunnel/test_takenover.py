"""Somebody else's VM has the VMID of an old tunnel by now: its QEMU, its lock and its config are not ours to touch."""

from __future__ import annotations

from mtunnel_tx.errors import WrongState
from mtunnel_tx.ports.machines import MachineState
from tests.fakes import TOKEN
from tests.tunnel.case import CONFIG, DISK, TunnelCase
from tests.tunnel.test_machine import INCOMING, OFF, RunningCase

RESTORED = "name: restored\nmemory: 512\nscsi0: other:100/vm-100-disk-7.raw\n"
FRESH = MachineState(status="running")
STOPPED = MachineState(status="paused")


class RestoredTests(RunningCase):
    """A rollback came half way; then somebody restored another VM, and started it."""

    def setUp(self) -> None:
        super().setUp()
        self.start_with_disk()
        self.volid = self.disk["volid"]
        self.fake.storage.broken.add(self.volid)
        self.line.disconnected()
        self.assertIn(100, self.registry.held)
        self.fake.storage.broken.clear()

    def take_over(self, machine: MachineState) -> None:
        self.fake.guests.set(100, RESTORED)
        self.fake.machines.now = machine
        del self.events[:]

    def test_it_runs_on_when_the_daemon_starts(self) -> None:
        self.take_over(FRESH)
        self.now(self.registry.recover())
        self.assertEqual(self.fake.machines.now, FRESH)
        why = f"the config of VM 100 is no longer ours; volumes left: {self.volid}"
        self.assertEqual(self.registry.held, {100: why})

    def test_it_runs_on_when_the_rest_is_discarded(self) -> None:
        self.take_over(FRESH)
        self.assertEqual(self.now(self.registry.settle(100, discard=True)), [])
        self.assertEqual((self.fake.machines.now, self.fake.storage.sizes), (FRESH, {}))
        self.assertEqual(self.fake.guests.configs[100].options["name"], "restored")
        self.assertEqual((self.registry.held, self.fake.journal.records), ({}, {}))

    def test_one_that_stands_still_may_be_theirs(self) -> None:
        self.take_over(STOPPED)
        self.now(self.registry.recover())
        self.assertIn("its QEMU, which is paused, may be somebody else's", self.registry.held[100])
        why = self.fails(self.registry.settle(100, discard=True), WrongState).text
        self.assertIn("end it and settle again", why)
        self.assertEqual((self.fake.machines.now, list(self.fake.storage.sizes)), (STOPPED, [self.volid]))
        self.fake.machines.now = OFF
        self.assertEqual(self.now(self.registry.settle(100, discard=True)), [])

    def test_one_that_runs_without_a_config_may_be_theirs(self) -> None:
        self.take_over(FRESH)
        del self.fake.guests.configs[100]
        self.now(self.registry.recover())
        self.assertEqual(self.fake.machines.now, FRESH)

    def test_ours_that_waits_for_its_memory_is_ended(self) -> None:
        self.take_over(INCOMING)
        self.now(self.registry.recover())
        self.assertEqual(self.fake.machines.now.status, "off")
        self.assertIn("no longer ours", self.registry.held[100])


class RestoredWhileInPartsTests(RunningCase):
    def test_nobody_ends_it(self) -> None:
        self.start_with_disk()
        self.fake.journal.records[100] += [{"do": "resuming_partly"}]
        self.registry._sessions.clear()
        self.fake.guests.set(100, RESTORED)
        self.fake.machines.now = FRESH
        self.fails(self.registry.settle(100, discard=True), WrongState)
        self.assertEqual(self.fake.machines.now, FRESH)
        self.assertIn(100, self.fake.journal.records)


class NotWholeTests(TunnelCase):
    """A source that is told `kept` marks its copy as moved: `settle --resume` says that only of what is all here."""

    def setUp(self) -> None:
        super().setUp()
        self.connect()
        self.upid = self.task.upid
        self.volid, self.other = self.ask(**DISK)["volid"], self.ask(**DISK)["volid"]
        self.ask(**CONFIG)

    def check_refused(self, reason: str, way_on: str = "--discard', which frees what was made for it") -> None:
        self.assertIn(100, self.registry.held)
        configs, records = dict(self.fake.guests.configs), list(self.fake.journal.records[100])
        why = self.fails(self.registry.settle(100, discard=False), WrongState).text
        self.assertIn(reason, why)
        self.assertIn(way_on, why)
        self.assertEqual((self.fake.guests.configs, self.fake.journal.records[100]), (configs, records))
        self.assertEqual(self.now(self.registry.come_late(100, TOKEN, self.upid)).verdict, "held")

    def test_half_rolled_back(self) -> None:
        self.fake.storage.broken.add(self.volid)
        self.line.disconnected()
        self.fake.storage.broken.clear()
        self.check_refused("VM 100 is not whole here: its rollback was begun")

    def test_a_config_of_somebody_else(self) -> None:
        self.fake.guests.set(100, RESTORED)
        self.line.disconnected()
        self.check_refused("the config of VM 100 is no longer ours")

    def test_no_config(self) -> None:
        del self.fake.guests.configs[100]
        self.line.disconnected()
        self.check_refused("the config of VM 100 is no longer ours")

    def test_a_volume_that_is_gone(self) -> None:
        self.fake.journal.records[100] += [{"do": "starting"}, {"do": "whole"}, {"do": "resuming"}]
        self.registry._sessions.clear()
        self.now(self.registry.recover())
        self.registry.held[100] = "a test"
        del self.fake.storage.sizes[self.other]
        self.check_refused(f"volume '{self.other}' is not there any more", "lets go of it and frees nothing")
        self.assertEqual(self.now(self.registry.settle(100, discard=True)), [self.volid, self.other])
        self.assertEqual(self.now(self.registry.come_late(100, TOKEN, self.upid)).verdict, "left as it is")
