"""Every row of the handover rule for a VM that never ran here."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from twisted.internet.defer import Deferred

from mtunnel_tx.errors import BackendFailed, NotFound, TimedOut, WrongState
from tests.fakes import FakeWorld
from tests.tunnel.case import CONFIG, DISK, IMPORT, TunnelCase

FIREWALL = "[OPTIONS]\n\nenable: 1\n"
VOLID = "local:100/vm-100-disk-0.raw"


class EndWithoutQuitTests(TunnelCase):
    def test_rolled_back_newest_first(self) -> None:
        self.connect()
        self.ask(**DISK)
        self.ask(**DISK)
        self.ask(**CONFIG, **{"firewall-config": FIREWALL})
        del self.events[:]
        self.line.disconnected()
        self.assertEqual(
            self.events,
            [
                "journal undo",
                "free local:100/vm-100-disk-1.raw",
                "journal freed",
                "free local:100/vm-100-disk-0.raw",
                "journal freed",
                "remove firewall",
                "remove config",
                "journal closed",
            ],
        )
        self.assertEqual(self.task.status, "mtunnel exited unexpectedly")

    def test_kept_after_unlock(self) -> None:
        self.connect()
        self.ask(**DISK)
        self.ask(**CONFIG)
        self.ask(cmd="unlock")
        self.line.disconnected()
        self.assertIn(VOLID, self.fake.storage.sizes)
        self.assertEqual(self.fake.guests.configs[100].options, {"memory": "512", "name": "test"})
        self.assertEqual(self.fake.journal.records, {})

    def test_marks_before_deeds(self) -> None:
        self.connect()
        self.ask(**DISK)
        self.ask(**CONFIG)
        del self.events[:]
        self.ask(cmd="unlock")
        self.assertEqual(self.events, [f"sync {VOLID}", "journal ours", "write config, lock None", "journal unlocked"])

    def test_every_effect_is_written_down_first(self) -> None:
        self.connect()
        self.ask(**DISK)
        self.ask(**CONFIG, **{"firewall-config": FIREWALL})
        self.assertEqual(
            self.events,
            [
                "journal claim",
                "create config",
                "journal storage",
                "journal making",
                f"alloc {VOLID}",
                "journal made",
                "journal firewall",
                "write firewall",
                "journal config",
                "write config, lock migrate",
                "journal configured",
            ],
        )

    def test_volumes_that_were_there_before_are_not_ours(self) -> None:
        self.fake.storage.sizes["local:100/vm-100-disk-77.raw"] = 1
        self.connect()
        self.ask(**IMPORT)
        self.fake.storage.sizes["local:100/vm-100-disk-0.raw"] = 1  # made by the child, not told yet
        self.line.disconnected()
        self.assertTrue(self.fake.storage.child.killed)
        self.assertEqual(set(self.fake.storage.sizes), {"local:100/vm-100-disk-77.raw"})

    def test_a_volume_that_is_gone_already_is_no_obstacle(self) -> None:
        self.connect()
        self.fake.storage.sizes.pop(self.ask(**DISK)["volid"])
        self.line.disconnected()
        self.assertEqual((self.fake.guests.configs, self.fake.journal.records), ({}, {}))

    def test_what_cannot_be_freed_keeps_config_and_journal(self) -> None:
        self.connect()
        self.fake.storage.broken.add(self.ask(**DISK)["volid"])
        other = self.ask(**DISK)["volid"]
        self.line.disconnected()
        self.assertNotIn(other, self.fake.storage.sizes)
        self.assertEqual(self.fake.guests.configs[100].lock, "create")
        self.assertIn("cannot free", self.registry.held[100])
        self.assertEqual(self.fake.journal.records[100][-2:], [{"do": "undo"}, {"do": "freed", "volid": other}])


class SomebodyElseTests(TunnelCase):
    def test_another_lock_stops_every_command_and_the_cleanup(self) -> None:
        self.connect()
        self.fake.guests.set(100, "lock: backup\n")
        for cmd in ("version", "quit"):
            text = f"failed to handle '{cmd}' command - Encountered wrong lock - aborting mtunnel command handling.\n"
            self.assertEqual(self.msg(cmd=cmd), text)
        self.line.disconnected()
        self.assertEqual(self.fake.guests.configs[100].lock, "backup")
        self.assertEqual(self.fake.journal.records, {})

    def test_volumes_are_left_and_named(self) -> None:
        self.connect()
        volid = self.ask(**DISK)["volid"]
        self.fake.guests.set(100, "lock: backup\n")
        self.line.disconnected()
        self.assertIn(volid, self.fake.storage.sizes)
        self.assertIn(volid, self.registry.held[100])
        self.assertIn(100, self.fake.journal.records)

    def test_volumes_of_a_config_that_is_gone_are_left_and_named(self) -> None:
        """It may have moved to another node, and they with it."""
        self.connect()
        volid = self.ask(**DISK)["volid"]
        del self.fake.guests.configs[100]
        self.line.disconnected()
        self.assertIn(volid, self.fake.storage.sizes)
        self.assertIn(volid, self.registry.held[100])
        self.assertIn(100, self.fake.journal.records)

    def test_config_gone(self) -> None:
        self.connect()
        del self.fake.guests.configs[100]
        path = "Configuration file 'nodes/pvetest/qemu-server/100.conf' does not exist\n"
        self.assertEqual(self.msg(cmd="unlock"), f"failed to handle 'unlock' command - {path}")
        self.line.disconnected()
        self.assertEqual((self.fake.guests.configs, self.fake.journal.records), ({}, {}))


class QuitTests(TunnelCase):
    def test_cleanup_after_unlock_is_refused(self) -> None:
        self.connect()
        volid = self.ask(**DISK)["volid"]
        self.ask(cmd="unlock")
        text = "failed to handle 'quit' command - refusing cleanup: VM 100 is already unlocked\n"
        self.assertEqual(self.msg(cmd="quit", cleanup=1), text)
        self.assertIn("exit-mode", self.msg(cmd="version"))
        self.line.disconnected()
        self.assertIn(volid, self.fake.storage.sizes)
        self.assertIn(100, self.fake.guests.configs)

    def test_without_cleanup_all_stays(self) -> None:
        self.connect()
        volid = self.ask(**DISK)["volid"]
        self.assertEqual(self.ask(cmd="quit"), {"success": True})
        self.line.disconnected()
        self.assertIn(volid, self.fake.storage.sizes)
        self.assertEqual(self.fake.guests.configs[100].lock, "create")
        self.assertEqual(self.fake.journal.records, {})
        self.assertEqual(self.task.status, "OK")

    def test_cleanup_ends_a_running_import(self) -> None:
        self.connect()
        self.ask(**IMPORT)
        self.assertEqual(self.ask(cmd="quit", cleanup=1), {"success": True})
        self.assertTrue(self.fake.storage.child.killed)
        self.assertEqual((self.fake.guests.configs, self.fake.journal.records), ({}, {}))

    def test_a_cleanup_that_fails_is_told_and_tried_again(self) -> None:
        self.connect()
        volid = self.ask(**DISK)["volid"]
        self.fake.storage.broken.add(volid)
        self.assertIn("cannot free", self.msg(cmd="quit", cleanup=1))
        self.fake.storage.broken.clear()
        self.line.disconnected()
        self.assertEqual((self.fake.storage.sizes, self.fake.guests.configs), ({}, {}))


class RecoveryTests(TunnelCase):
    """The daemon dies; another one finds its journal."""

    def _crash(self) -> FakeWorld:
        after = FakeWorld(self.mktemp())
        after.guests.configs = self.fake.guests.configs
        after.storage.sizes = self.fake.storage.sizes
        after.journal.records = self.fake.journal.records
        self.now(after.registry.recover())
        return after

    def test_nothing_is_left_after_any_record(self) -> None:
        """The records of a whole migration, cut after each one; the effect after the last may or may not be there."""
        self.connect()
        self.ask(**DISK)
        self.ask(**IMPORT)
        self.fake.storage.sizes["local:100/vm-100-disk-9.raw"] = 1
        self.ask(**CONFIG)
        records = list(self.fake.journal.records[100])
        sizes, configs = dict(self.fake.storage.sizes), dict(self.fake.guests.configs)
        for count in range(1, len(records) + 1):
            done = [record["do"] for record in records[:count]]
            self.fake.journal.records[100] = records[:count]
            made = list(sizes)[: done.count("making")]
            self.fake.storage.sizes = {volid: sizes[volid] for volid in made}
            self.fake.guests.set(100, "lock: migrate\n" if "config" in done else "lock: create\n")
            after = self._crash()
            left = (after.storage.sizes, after.guests.configs, after.journal.records)
            self.assertEqual(left, ({}, {}, {}), done)
        self.assertEqual(configs[100].lock, "migrate")

    def test_claim_without_config(self) -> None:
        self.open()
        self.fake.guests.configs.clear()
        self.assertEqual(self._crash().journal.records, {})

    def test_ours_is_kept_and_its_unlock_finished(self) -> None:
        self.connect()
        volid = self.ask(**DISK)["volid"]
        self.ask(**CONFIG)
        self.fake.journal.records[100].append({"do": "ours"})
        after = self._crash()
        self.assertIn(volid, after.storage.sizes)
        self.assertEqual(after.guests.configs[100].options, {"memory": "512", "name": "test"})
        self.assertEqual(after.journal.records, {})

    def test_undo_whose_config_is_gone(self) -> None:
        self.connect()
        self.ask(**DISK)
        self.fake.journal.records[100].append({"do": "undo"})
        self.fake.guests.configs.clear()
        after = self._crash()
        self.assertEqual((after.storage.sizes, after.journal.records), ({}, {}))

    def test_what_works_on_is_ended_before_anything_is_freed(self) -> None:
        self.connect()
        self.ask(**DISK)
        after = self._crash()
        self.assertEqual(after.events[:4], ["end orphans", "tidy journals", "tidy 100", "journal undo"])
        self.assertEqual(after.tasks.closed_orphans, "the daemon ended before the tunnel did")

    def test_sockets_of_tunnels_go_and_those_of_qemu_stay(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        for name in ("100.mtunnel", "100.storage", "100.migrate", "100_nbd.migrate", "control.sock"):
            (folder / name).touch()
        self.now(FakeWorld(str(folder)).registry.recover())
        names = sorted(path.name for path in folder.iterdir())
        self.assertEqual(names, ["100.migrate", "100_nbd.migrate", "control.sock"])

    def test_a_volume_freed_before_the_crash_is_not_freed_again(self) -> None:
        """Somebody may have made another one of that name meanwhile."""
        self.connect()
        kept, freed = self.ask(**DISK)["volid"], self.ask(**DISK)["volid"]
        self.fake.storage.broken.add(kept)
        self.line.disconnected()
        self.assertNotIn(freed, self.fake.storage.sizes)
        self.fake.storage.sizes[freed] = 1
        after = self._crash()
        self.assertEqual(set(after.storage.sizes), {freed})

    def test_a_lock_set_after_unlock_is_somebody_elses(self) -> None:
        self.connect()
        self.ask(**CONFIG)
        self.ask(cmd="unlock")
        self.fake.guests.set(100, "lock: migrate\n")
        self.line.disconnected()
        self.assertEqual(self.fake.guests.configs[100].lock, "migrate")

    def test_an_empty_journal_announced_nothing(self) -> None:
        self.fake.journal.records[100] = []
        self.fake.guests.set(100, "lock: create\n")
        after = self._crash()
        self.assertEqual((set(after.guests.configs), after.journal.records), ({100}, {}))

    def test_a_damaged_record_holds_this_vm_only(self) -> None:
        self.fake.journal.records[100] = [{"do": "claim"}]
        self.fake.journal.records[101] = [{"do": "claim", "token": "a"}]
        after = self._crash()
        self.assertEqual(after.registry.held, {100: "journal of VM 100: damaged record 'claim'"})
        self.assertEqual(set(after.journal.records), {100})

    def test_an_unknown_record_holds_everything(self) -> None:
        self.connect()
        volid = self.ask(**DISK)["volid"]
        self.fake.journal.records[100].append({"do": "teleport"})
        after = self._crash()
        self.assertIn("unknown record", after.registry.held[100])
        self.assertIn(volid, after.storage.sizes)

    def test_a_vm_in_the_making_is_somebody_elses(self) -> None:
        """A claim is nothing but its lock; a restore under this number has more, and volumes of the same names."""
        self.connect()
        self.ask(**DISK)
        volumes = dict(self.fake.storage.sizes)
        self.fake.guests.set(100, "lock: create\nmemory: 512\n")
        after = self._crash()
        self.assertIn("is no longer ours", after.registry.held[100])
        self.assertEqual((after.storage.sizes, set(after.guests.configs)), (volumes, {100}))

    def test_a_config_that_somebody_works_on_holds(self) -> None:
        """A VM that is just being restored under this number has the same lock, and volumes of the same names."""
        self.connect()
        self.ask(**DISK)
        after = FakeWorld(self.mktemp())
        after.guests.configs, after.journal.records = self.fake.guests.configs, self.fake.journal.records
        after.storage.sizes = dict(self.fake.storage.sizes)

        def busy(*_: object) -> NoReturn:
            raise TimedOut("can't lock file")

        after.guests.locked = busy  # type: ignore[method-assign]
        self.now(after.registry.recover())
        self.assertEqual(after.registry.held, {100: "can't lock file"})
        self.assertEqual((set(after.storage.sizes), set(after.guests.configs)), ({VOLID}, {100}))

    def test_a_storage_that_fails_holds(self) -> None:
        self.connect()
        self.ask(**DISK)
        after_storage = self.fake.storage.sizes

        async def refuse(*_: object) -> None:
            raise BackendFailed("storage is offline")

        after = FakeWorld(self.mktemp())
        after.guests.configs, after.journal.records = self.fake.guests.configs, self.fake.journal.records
        after.storage.sizes = after_storage
        after.storage.free = refuse  # type: ignore[method-assign]
        self.now(after.registry.recover())
        self.assertEqual(after.registry.held, {100: "storage is offline"})
        self.assertIn(100, after.guests.configs)


class SettleTests(TunnelCase):
    """Somebody changed the lock, so the end of the tunnel touched nothing; now somebody decides."""

    def setUp(self) -> None:
        super().setUp()
        self.connect()
        self.volid = self.ask(**DISK)["volid"]

    def _end(self, conf: str) -> None:
        self.fake.guests.set(100, conf)
        self.line.disconnected()
        self.assertIn(100, self.registry.held)

    def settle(self, *, discard: bool) -> list[str]:
        left = self.now(self.registry.settle(100, discard=discard))
        self.assertEqual((self.registry.held, self.fake.journal.records), ({}, {}))
        return left

    def test_discard_frees_what_no_config_names(self) -> None:
        self._end("lock: backup\n")
        self.assertEqual(self.settle(discard=True), [])
        self.assertEqual(self.fake.storage.sizes, {})
        self.assertEqual(self.fake.guests.configs[100].lock, "backup")

    def test_discard_leaves_what_another_config_names(self) -> None:
        self._end(f"scsi0: {self.volid}\n")
        self.assertEqual(self.settle(discard=True), [self.volid])
        self.assertIn(self.volid, self.fake.storage.sizes)

    def test_discard_leaves_what_another_config_names_also_where_ours_stands(self) -> None:
        self.fake.storage.broken.add(self.volid)
        self.line.disconnected()
        self.fake.storage.broken.clear()
        self.fake.guests.set(200, f"scsi0: {self.volid}\n")
        self.assertEqual(self.settle(discard=True), [self.volid])
        self.assertEqual(set(self.fake.guests.configs), {200})

    def test_keep(self) -> None:
        self._end("lock: backup\n")
        self.assertEqual(self.settle(discard=False), [self.volid])
        self.assertIn(self.volid, self.fake.storage.sizes)

    def test_discard_of_what_could_not_be_freed_before(self) -> None:
        self.fake.storage.broken.add(self.volid)
        self.line.disconnected()
        self.fake.storage.broken.clear()
        self.assertEqual(self.settle(discard=True), [])
        self.assertEqual((self.fake.storage.sizes, self.fake.guests.configs), ({}, {}))

    def test_after_ours_nothing_is_freed(self) -> None:
        self.fake.journal.records[100].append({"do": "ours"})
        self.registry._workers.clear()
        self.assertEqual(self.settle(discard=True), [self.volid])
        self.assertIn(self.volid, self.fake.storage.sizes)

    def test_a_live_tunnel_is_not_settled(self) -> None:
        self.fails(self.registry.settle(100, discard=True), WrongState)

    def settle_slowly(self) -> tuple[Deferred[list[str]], Deferred[None]]:
        """Returns: the settling of VM 100, and what lets it go on."""
        free, freed = self.fake.storage.free, Deferred[None]()

        async def slowly(volid: str) -> None:
            await freed
            await free(volid)

        self._end("lock: backup\n")
        self.fake.storage.free = slowly  # type: ignore[method-assign]
        return Deferred.fromCoroutine(self.registry.settle(100, discard=True)), freed

    def test_nor_one_that_was_opened_while_another_was_settled(self) -> None:
        _, freed = self.settle_slowly()
        settling = Deferred.fromCoroutine(self.registry.settle(101, discard=True))
        self.open(101)
        freed.callback(None)
        self.assertEqual(self.failureResultOf(settling, WrongState).value.text, "VM 101 has a live tunnel")
        self.assertEqual((set(self.fake.journal.records), self.fake.guests.configs[101].lock), ({101}, "create"))

    def test_the_daemon_ends_when_it_is_settled(self) -> None:
        settling, freed = self.settle_slowly()
        stopping = Deferred.fromCoroutine(self.registry.stop())
        self.assertNoResult(stopping)
        freed.callback(None)
        self.successResultOf(settling)
        self.successResultOf(stopping)

    def test_nothing_to_settle(self) -> None:
        self.fails(self.registry.settle(101, discard=True), NotFound)
