"""A daemon that died: what the next one finds in its journals, and makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from mtunnel_tx.errors import BackendFailed, TimedOut
from tests.fakes import FakeHost
from tests.tunnel.case import CONFIG, DISK, IMPORT, TunnelCase

FIREWALL = "[OPTIONS]\n\nenable: 1\n"
VOLID = "local:100/vm-100-disk-0.raw"


class RecoveryTests(TunnelCase):
    """The daemon dies; another one finds its journal."""

    def _crash(self) -> FakeHost:
        after = FakeHost(self.mktemp())
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
        self.fake.journal.records[100].append({"do": "handed_over"})
        after = self._crash()
        self.assertIn(volid, after.storage.sizes)
        self.assertEqual(after.guests.configs[100].options, {"memory": "512", "name": "test"})
        self.assertEqual(after.journal.records, {})

    def test_undo_whose_config_is_gone(self) -> None:
        self.connect()
        self.ask(**DISK)
        self.fake.journal.records[100].append({"do": "rolling_back"})
        self.fake.guests.configs.clear()
        after = self._crash()
        self.assertEqual((after.storage.sizes, after.journal.records), ({}, {}))

    def test_what_works_on_is_ended_before_anything_is_freed(self) -> None:
        self.connect()
        self.ask(**DISK)
        after = self._crash()
        self.assertEqual(after.events[:4], ["end orphans", "tidy journals", "tidy 100", "journal rolling_back"])
        self.assertEqual(after.tasks.finished_orphans, "the daemon ended before the tunnel did")

    def test_sockets_of_tunnels_go_and_those_of_qemu_stay(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        for name in ("100.mtunnel", "100.storage", "100.migrate", "100_nbd.migrate", "control.sock"):
            (folder / name).touch()
        self.now(FakeHost(str(folder)).registry.recover())
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

    def test_an_empty_journal_is_held(self) -> None:
        """A crash emptied it: nobody knows what was made."""
        self.fake.journal.records[100] = []
        self.fake.guests.set(100, "lock: create\n")
        after = self._crash()
        self.assertIn("must begin with its claim", after.registry.held[100])
        self.assertEqual((set(after.guests.configs), after.journal.records), ({100}, {100: []}))

    def test_a_damaged_record_holds_this_vm_only(self) -> None:
        self.fake.journal.records[100] = [{"do": "claim"}]
        self.fake.journal.records[101] = [{"do": "claim", "token": "a"}]
        after = self._crash()
        self.assertEqual(after.registry.held, {100: "journal of VM 100: damaged record 'claim'"})
        self.assertEqual(set(after.journal.records), {100})

    def test_a_guest_of_a_later_version(self) -> None:
        self.connect()
        volid = self.ask(**DISK)["volid"]
        self.fake.journal.records[100][0]["kind"] = "lxc"
        after = self._crash()
        self.assertEqual(after.registry.held, {100: "journal of VM 100: guests of kind 'lxc' are not known here"})
        self.assertIn(volid, after.storage.sizes)

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
        after = FakeHost(self.mktemp())
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

        after = FakeHost(self.mktemp())
        after.guests.configs, after.journal.records = self.fake.guests.configs, self.fake.journal.records
        after.storage.sizes = after_storage
        after.storage.free = refuse  # type: ignore[method-assign]
        self.now(after.registry.recover())
        self.assertEqual(after.registry.held, {100: "storage is offline"})
        self.assertIn(100, after.guests.configs)
