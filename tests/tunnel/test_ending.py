"""Every row of the handover rule for a VM that never ran here."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from mtunnel_tx.errors import NotFound, WrongState
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
                "journal rolling_back",
                "free local:100/vm-100-disk-1.raw",
                "journal freed",
                "free local:100/vm-100-disk-0.raw",
                "journal freed",
                "remove firewall",
                "remove config",
                "journal removed",
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
        self.assertEqual(
            self.events, [f"sync {VOLID}", "journal handed_over", "write config, lock None", "journal unlocked"]
        )

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
        gone = "volume 'local:100/vm-100-disk-0.raw' is not where it was made, and counts as freed"
        self.assertIn(f"WARN: {gone}", self.task.lines)

    def test_what_cannot_be_freed_keeps_config_and_journal(self) -> None:
        self.connect()
        self.fake.storage.broken.add(self.ask(**DISK)["volid"])
        other = self.ask(**DISK)["volid"]
        self.line.disconnected()
        self.assertNotIn(other, self.fake.storage.sizes)
        self.assertEqual(self.fake.guests.configs[100].lock, "create")
        self.assertIn("cannot free", self.registry.held[100])
        expected = [{"do": "rolling_back"}, {"do": "freed", "volid": other}, {"do": "held"}]
        self.assertEqual(self.fake.journal.records[100][-3:], expected)


class NamedTests(TunnelCase):
    """A volume that the config of another guest names, as a shared disk does, is freed by nobody."""

    def setUp(self) -> None:
        super().setUp()
        self.connect()
        self.named, self.other = self.ask(**DISK)["volid"], self.ask(**DISK)["volid"]
        self.fake.guests.set(101, f"scsi1: {self.named},shared=1\n")

    def _check_left(self) -> None:
        self.assertEqual((set(self.fake.storage.sizes), set(self.fake.guests.configs)), ({self.named}, {101}))
        self.assertEqual((self.fake.journal.records, self.registry.held), ({}, {}))
        text = f"WARN: volume '{self.named}' stays: the config of another guest names it"
        self.assertIn(text, self.task.lines)

    def test_rollback(self) -> None:
        self.line.disconnected()
        self._check_left()

    def test_cleanup(self) -> None:
        self.assertEqual(self.ask(cmd="quit", cleanup=1), {"success": True})
        self.line.disconnected()
        self._check_left()
        self.assertEqual(self.task.status, "WARNINGS: 1")

    def test_a_failed_import(self) -> None:
        volid = "local:100/vm-100-disk-7.raw"
        self.ask(**IMPORT)
        self.fake.storage.sizes[volid] = 1
        self.fake.guests.set(101, f"scsi1: {self.named},shared=1\nscsi2: {volid}\n")
        assert self.fake.storage.child is not None
        self.fake.storage.child.exit(1)
        self.assertEqual(self.ask(cmd="query-disk-import")["status"], "error")
        self.assertIn(volid, self.fake.storage.sizes)

    def test_its_own_config_is_none_of_another(self) -> None:
        self.fake.guests.set(101, "")
        self.ask(cmd="config", conf=f"scsi0: {self.named}\n")
        self.line.disconnected()
        self.assertEqual((self.fake.storage.sizes, set(self.fake.guests.configs)), ({}, {101}))


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
        self.fake.guests.set(100, "lock: create\n")
        self.assertEqual(self.settle(discard=False), [self.volid])
        self.assertIn(self.volid, self.fake.storage.sizes)

    def test_discard_of_what_could_not_be_freed_before(self) -> None:
        self.fake.storage.broken.add(self.volid)
        self.line.disconnected()
        self.fake.storage.broken.clear()
        self.assertEqual(self.settle(discard=True), [])
        self.assertEqual((self.fake.storage.sizes, self.fake.guests.configs), ({}, {}))

    def test_a_journal_that_somebody_removed(self) -> None:
        self._end("lock: backup\n")
        self.fake.journal.records.clear()
        why = self.fails(self.registry.settle(100, discard=True), WrongState).text
        self.assertIn("the journal of VM 100 is gone", why)
        self.assertEqual((self.registry.held, list(self.fake.storage.sizes)), ({}, [self.volid]))
        self.fails(self.registry.settle(100, discard=True), NotFound)

    def test_after_ours_nothing_is_freed(self) -> None:
        self.fake.journal.records[100].append({"do": "handed_over"})
        self.registry._sessions.clear()
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
