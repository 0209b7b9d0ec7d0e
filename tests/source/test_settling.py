import hashlib
import os

from mtunnel_tx.backends.programs import boot_id, start_ticks
from mtunnel_tx.errors import NotFound, TunnelError, WrongState
from mtunnel_tx.ports.programs import Program
from mtunnel_tx.pve.moved import find_move
from mtunnel_tx.source.departure import Power, claim
from mtunnel_tx.source.earlier import finish_earlier, settle
from mtunnel_tx.source.journal import find_departure
from mtunnel_tx.source.owner import Owner
from mtunnel_tx.source.removal import is_another
from mtunnel_tx.source.settling import OwnerUnknown
from mtunnel_tx.source.survey import Obstructed
from tests.source.case import CONF, MOVED, WHEN_S, SourceCase
from tests.source.machines import FakeMachine

DEAD = Program(boot="an earlier one", pid=1, started=1)
VOLUMES = ["local:100/vm-100-disk-0.raw", "local:100/vm-100-disk-1.qcow2"]
REMOVING = {"volumes": VOLUMES, "config": hashlib.sha256(CONF.encode()).hexdigest()}
VALUES = {"opened": {"upid": "UPID:x:"}, "removing": REMOVING, "freed": {"volid": VOLUMES[0]}}


def program_of(pid):
    """A process that lives."""
    return Program(boot=boot_id(), pid=pid, started=start_ticks(pid))


class LeftCase(SourceCase):
    """A VM that a program was sending when it was killed, or its host restarted."""

    async def leave(self, *words, power="running", machine=None, program=DEAD):
        """Args: words: the records behind the claim. machine: what runs here."""
        where = {"host": "pve2", "target_vmid": 200, "token": "mig@pve!t1"}
        record = claim(program=program, power=Power(power), at_s=int(WHEN_S), delete=False, **where)
        await self.journal.open(100, record)
        for word in words:
            await self.journal.append(100, {"do": word, **VALUES.get(word, {})})
        self.conf_file.write_text(f"lock: migrate\n{CONF}")
        self.machines = machine or FakeMachine("off")
        self.stale = self.folder / "100.out0"
        self.stale.touch()

    def host(self):
        return self.world()

    async def settle(self, decision=None):
        await settle(self.host(), 100, decision)

    def assert_kept(self, *deeds, said):
        self.assert_unlocked()
        self.assertEqual((self.machines.deeds, self.watcher.said[-1]), (list(deeds), f"VM 100 {said}"))
        self.assertFalse(self.stale.exists())

    def assert_gone_there(self, *deeds):
        self.assertEqual(self.conf_file.read_text(), MOVED.replace("127.0.0.1 as VM 300", "pve2 as VM 200"))
        self.assertEqual((self.machines.deeds, self.journal.standing()), (list(deeds), []))
        self.assertFalse(self.stale.exists())

    async def assert_held(self, *texts, power="running"):
        with self.assertRaises(OwnerUnknown) as caught:
            await self.settle()
        for text in texts:
            self.assertIn(text, caught.exception.text)
        self.assertEqual((self.guests.read(100).lock, self.journal.standing()), ("migrate", [100]))
        self.assertEqual(self.machines.deeds, [])


class KeptTest(LeftCase):
    async def test_nothing_was_sent_yet(self):
        for words in ((), ("opened",)):
            await self.leave(*words, machine=FakeMachine())
            await self.settle()
            self.assert_kept(said="runs on here")

    async def test_a_mirror_and_a_migration_are_ended(self):
        await self.leave("opened", "starting", machine=FakeMachine("running", "active", ["scsi0"]))
        await self.settle()
        self.assert_kept("cancel", "adopt scsi0", said="runs on here")

    async def test_it_stood_still_before_the_rest_was_sent(self):
        await self.leave("opened", "starting", "completing", machine=FakeMachine("finish-migrate", "pre-switchover"))
        await self.settle()
        self.assert_kept("cancel", "run", said="runs on here")

    async def test_a_paused_one_stays_paused(self):
        await self.leave("opened", "starting", power="paused", machine=FakeMachine("postmigrate", "failed"))
        await self.settle()
        self.assert_kept("pause", said="stays here, paused")

    async def test_its_host_was_restarted(self):
        await self.leave("opened", "starting")
        await self.settle()
        self.assert_kept(said="stays here, but is off now: it was running when it was to leave")

    async def test_a_stopped_one(self):
        await self.leave("opened", power="off")
        await self.settle()
        self.assert_kept(said="stays here as it was")

    async def test_the_target_had_removed_everything(self):
        await self.leave("opened", "starting", "completing", "kept", machine=FakeMachine("postmigrate", "completed"))
        await self.settle()
        self.assert_kept("run", said="runs on here")

    async def test_somebody_elses_lock_stays(self):
        await self.leave("opened", power="off")
        self.conf_file.write_text(f"lock: backup\n{CONF}")
        await self.settle()
        self.assertEqual((self.guests.read(100).lock, self.journal.standing()), ("backup", []))

    async def test_the_config_is_gone(self):
        await self.leave("opened", power="off")
        self.conf_file.unlink()
        await self.settle()
        self.assertEqual((self.conf_file.exists(), self.journal.standing()), (False, []))


class GoneThereTest(LeftCase):
    async def test_it_runs_there(self):
        for words in (("resumed",), ("resumed", "handed_over")):
            machine = FakeMachine("postmigrate", "completed")
            await self.leave("opened", "starting", "completing", "resuming", *words, machine=machine)
            await self.settle()
            self.assert_gone_there("end")

    async def test_handed_over(self):
        await self.leave("opened", "handing_over", "handed_over", power="off")
        await self.settle()
        self.assert_gone_there()

    async def test_it_runs_on_both_sides(self):
        """Somebody has started it by hand; whatever is done now would be wrong."""
        await self.leave("opened", "starting", "completing", "resuming", "resumed", machine=FakeMachine("running"))
        with self.assertRaises(WrongState) as caught:
            await self.settle()
        self.assertIn("but it runs here too", caught.exception.text)
        self.assertEqual((self.journal.standing(), self.machines.deeds), ([100], []))

    async def test_proxmox_has_no_room_for_the_mark(self):
        await self.leave("opened", "handing_over", "handed_over", power="off")
        self.marks_moves = False
        await self.settle()
        self.assertEqual((self.guests.read(100).lock, self.journal.standing()), ("migrate", []))
        self.assertIn("its copy stays here, locked, as qm leaves it", self.watcher.said[-1])

    async def test_somebody_removed_or_changed_the_lock(self):
        """The copy is marked all the same, and it is said; a lock that is somebody else's stays."""
        for before, after, said in (("", "", "removed"), ("lock: backup\n", "backup", "changed to 'backup'")):
            machine = FakeMachine("postmigrate", "completed")
            await self.leave("opened", "starting", "completing", "resuming", "resumed", machine=machine)
            self.conf_file.write_text(before + CONF)
            await self.settle()
            conf = self.guests.read(100)
            self.assertEqual((conf.lock or "", self.journal.standing()), (after, []))
            self.assertEqual(find_move(conf), "moved to pve2 as VM 200 on 2026-10-01 12:00 UTC")
            self.assertIn(f"does not start any more (its 'lock: migrate' was {said} here", self.watcher.said[-1])

    async def test_a_mark_of_before_a_crash_stays(self):
        await self.leave("opened", "handing_over", "handed_over", power="off")
        marked = MOVED.replace("127.0.0.1 as VM 300", "pve2 as VM 200").replace("2026-10-01", "2026-09-30")
        self.conf_file.write_text(marked)
        await self.settle()
        self.assertEqual((self.conf_file.read_text(), self.journal.standing()), (marked, []))

    async def test_proxmox_has_no_room_and_the_lock_is_gone(self):
        await self.leave("opened", "handing_over", "handed_over", power="off")
        self.conf_file.write_text(CONF)
        self.marks_moves = False
        await self.settle()
        self.assertEqual((self.conf_file.read_text(), self.journal.standing()), (CONF, []))
        self.assertIn("its copy here CAN START", self.watcher.said[-1])
        self.assertIn("'qm set 100 --lock migrate'", self.watcher.said[-1])


class BegunRemovalTest(LeftCase):
    WORDS = ("opened", "handing_over", "handed_over", "removing")
    RUN_WORDS = ("opened", "starting", "completing", "resuming", "resumed", "handed_over", "removing")

    async def test_everything_is_finished(self):
        await self.leave(*self.WORDS, power="off")
        await self.settle()
        self.assertEqual((self.storage.freed, self.conf_file.exists()), (VOLUMES, False))
        self.assertEqual(self.journal.standing(), [])

    async def test_what_was_freed_is_not_freed_again(self):
        await self.leave(*self.WORDS, "freed", power="off")
        self.conf_file.unlink()
        await self.settle()
        self.assertEqual((self.storage.freed, self.journal.standing()), (VOLUMES[1:], []))

    async def test_a_new_vm_of_this_number_is_left_alone(self):
        """Also one that comes from another host, whose lock is called like ours; its QEMU is not ended."""
        for text in ("memory: 512\n", "lock: migrate\nmemory: 512\n"):
            for status in ("off", "paused", "io-error", "running"):
                await self.leave(*self.RUN_WORDS, machine=FakeMachine(status, "none"))
                self.conf_file.write_text(text)
                await self.settle()
                self.assertEqual((self.storage.freed, self.journal.standing()), ([], []))
                self.assertEqual((self.conf_file.read_text(), self.machines.deeds), (text, []))
                for volid in VOLUMES:
                    self.assertIn(f"'{volid}'", self.watcher.said[-1])

    async def test_a_config_that_was_edited_is_no_new_vm(self):
        await self.leave(*self.WORDS, power="off")
        self.conf_file.write_text(f"lock: migrate\n{CONF}tags: x\n")
        self.assertFalse(is_another(self.host(), find_departure(self.host(), 100)))

    async def test_a_vm_restored_with_the_same_volumes_loses_nothing(self):
        """Nothing tells it from the old config, edited: a backup has the old ids too. It is marked, and kept."""
        await self.leave(*self.WORDS, power="off")
        self.conf_file.write_text(f"{CONF}description: restored\n")
        await self.settle()
        self.assertEqual((self.storage.freed, self.journal.standing()), ([], []))
        self.assertIsNotNone(find_move(self.guests.read(100)))
        self.assert_not_removed("'mtunnel vm destroy 100' removes it")
        self.assertIn("VM 100 was NOT removed here", self.watcher.warned[-1])

    async def test_a_restored_vm_that_runs_is_left_alone(self):
        await self.leave(*self.RUN_WORDS, machine=FakeMachine("running", "none"))
        self.conf_file.write_text(f"{CONF}description: restored\n")
        with self.assertRaises(WrongState) as caught:
            await self.settle()
        self.assertIn("but it runs here too", caught.exception.text)
        self.assertEqual((self.storage.freed, self.machines.deeds), ([], []))

    async def test_a_config_that_was_edited_stays_with_its_volumes_and_is_marked(self):
        for lock, left in (("lock: migrate\n", None), ("", None), ("lock: backup\n", "backup")):
            await self.leave(*self.WORDS, power="off")
            self.conf_file.write_text(f"{lock}{CONF}tags: x\n")
            await self.settle()
            conf = self.guests.read(100)
            self.assertEqual((conf.lock, conf.options["tags"]), (left, "x"))
            self.assertIsNotNone(find_move(conf))
            self.assertEqual((self.storage.freed, self.journal.standing()), ([], []))
            self.assert_not_removed("'mtunnel vm destroy 100' removes it")

    async def test_a_config_whose_lock_alone_is_gone_stays_too(self):
        await self.leave(*self.WORDS, power="off")
        self.conf_file.write_text(CONF)
        await self.settle()
        self.assertIsNotNone(find_move(self.guests.read(100)))
        self.assertEqual((self.storage.freed, self.journal.standing()), ([], []))
        self.assert_not_removed("'mtunnel vm destroy 100' removes it")

    async def test_an_edited_config_of_proxmox_stays_locked(self):
        await self.leave(*self.WORDS, power="off")
        self.conf_file.write_text(f"lock: migrate\n{CONF}tags: x\n")
        self.marks_moves = False
        await self.settle()
        self.assertEqual((self.guests.read(100).lock, self.storage.freed), ("migrate", []))
        self.assert_not_removed("'qm unlock 100 && qm destroy 100' removes it")

    def assert_not_removed(self, command):
        said = self.watcher.said[-1]
        for text in ("VM 100 was NOT removed here", *VOLUMES, command):
            self.assertIn(text, said)
        self.assertNotIn("VM 100 was removed here", self.watcher.said)


class UndecidedTest(LeftCase):
    async def test_the_target_was_never_told_to_run_it(self):
        await self.leave("opened", "starting", "completing", machine=FakeMachine("postmigrate", "completed"))
        await self.assert_held("was never told to run it; it is paused here")

    async def test_its_qemu_is_gone(self):
        await self.leave("opened", "starting", "completing")
        await self.assert_held("it is off here")

    async def test_no_answer(self):
        await self.leave(
            "opened", "starting", "completing", "resuming", machine=FakeMachine("postmigrate", "completed")
        )
        await self.assert_held("was told to run it, and did not answer")

    async def test_no_answer_for_a_stopped_one(self):
        await self.leave("opened", "handing_over", power="off")
        await self.assert_held("was told that it is its own, and did not answer")

    async def test_decided_for_here(self):
        await self.leave("opened", "starting", "completing", machine=FakeMachine("postmigrate", "completed"))
        await self.settle(Owner.HERE)
        self.assert_kept("run", said="runs on here")

    async def test_decided_for_there(self):
        await self.leave("opened", "starting", "completing", machine=FakeMachine("postmigrate", "completed"))
        await self.settle(Owner.THERE)
        self.assert_gone_there("end")

    async def test_nothing_is_to_be_decided_where_it_is_known(self):
        await self.leave("opened", "starting", machine=FakeMachine())
        with self.assertRaises(WrongState) as caught:
            await self.settle(Owner.THERE)
        self.assertIn("VM 100 is this host's", caught.exception.text)
        await self.settle(Owner.HERE)
        self.assert_kept(said="runs on here")


class AgainTest(LeftCase):
    """The next `mtunnel migrate`."""

    async def test_it_says_what_happened_and_goes_on(self):
        await self.leave("opened", power="off")
        await self.migrate()
        self.assert_moved()
        self.assertIn("VM 100 was on its way to pve2 as VM 200; the program that sent it (2026-10-01 12:00 UTC) has "
                      "ended before it was done", self.watcher.said)  # fmt: skip

    async def test_what_is_the_targets_is_not_sent_again(self):
        await self.leave("opened", "handing_over", "handed_over", power="off")
        with self.assertRaises(WrongState) as caught:
            await self.migrate()
        self.assertEqual(caught.exception.text, "VM 100 is VM 200 at pve2 since then")
        with self.assertRaises(Obstructed) as caught:
            await self.migrate()
        self.assertEqual(caught.exception.obstacles, ("VM 100 was moved to pve2 as VM 200 on 2026-10-01 12:00 UTC",))
        self.assertIsNotNone(find_move(self.guests.read(100)))

    async def test_what_nobody_knows_is_not_sent_again(self):
        await self.leave("opened", "handing_over", power="off")
        with self.assertRaises(OwnerUnknown):
            await self.migrate()
        self.assertEqual(self.target.requests, [])

    async def test_a_program_that_works_on_it_is_left_alone(self):
        await self.leave("opened", power="off", program=program_of(os.getppid()))
        for work in (self.migrate(), self.settle(), finish_earlier(self.host(), 100, self.host().target)):
            with self.assertRaises(WrongState) as caught:
                await work
            self.assertIn("is on its way to pve2 as VM 200: process", caught.exception.text)
        self.assertEqual(len(self.journal.read(100)), 2)

    async def test_a_look_touches_nothing(self):
        await self.leave("opened", power="off")
        with self.assertRaises(Obstructed) as caught:
            await self.migration().check()
        left = "VM 100 was on its way to pve2 as VM 200; first run 'mtunnel settle 100'"
        self.assertEqual(caught.exception.obstacles, (left, "VM 100 is locked (migrate)"))
        self.assertEqual(len(self.journal.read(100)), 2)

    async def test_a_journal_that_a_crash_tore_is_held_and_named(self):
        file = self.folder / "state/journal/source-100.jsonl"
        await self.leave(power="off")
        for content in (b"", b'{"version":1,"do":"cl', b"\0" * 100, b"\0" * 100 + b"\n", b"x\n", b"5\n"):
            file.write_bytes(content)
            for work in (self.migrate(), self.settle(), self.settle(Owner.HERE)):
                with self.assertRaises(TunnelError) as caught:
                    await work
                self.assertIn("journal", caught.exception.text)
            self.assertEqual((file.read_bytes(), self.guests.read(100).lock), (content, "migrate"))

    async def test_nothing_is_to_be_settled(self):
        with self.assertRaises(NotFound):
            await self.settle()
