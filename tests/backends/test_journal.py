import contextlib
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from unittest import SkipTest

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.journal import LEAVING, FileJournal
from mtunnel_tx.backends.reserve import RESERVE_BYTES
from mtunnel_tx.errors import BackendFailed, WrongState
from tests.backends.test_files import refuse
from tests.processes import run_program


class JournalTest(TestCase):
    def setUp(self):
        self.state = Path(self.mktemp())
        self.file = self.state / "journal" / "100.jsonl"
        self.journal = FileJournal(ReactorThreads(reactor, reactor.getThreadPool()), self.state)

    async def test_a_vm_has_one_journal(self):
        """It comes, or it is on its way out; what is left of the one must not touch the other."""
        leaving = FileJournal(ReactorThreads(reactor, reactor.getThreadPool()), self.state, LEAVING)
        for one, other in ((self.journal, leaving), (leaving, self.journal)):
            await one.open(100, {"do": "claim"})
            with self.assertRaises(WrongState) as caught:
                await other.open(100, {"do": "claim"})
            self.assertEqual(caught.exception.text, "VM 100 waits for 'mtunnel settle 100'")
            self.assertEqual((one.standing(), other.standing()), ([100], []))
            told = "VM 100 waits for 'mtunnel settle 100'"
            self.assertEqual((one.why_taken(100), other.why_taken(100), one.why_taken(101)), (told, told, None))
            await one.remove(100)
            self.assertIsNone(other.why_taken(100))

    async def test_nothing_can_be_written(self):
        self.assertIsNone(self.journal.why_taken(100))
        self.state.mkdir()
        self.file.parent.touch()
        self.assertEqual(self.journal.why_taken(100), f"'{self.file.parent}' is no folder")

    async def test_life(self):
        self.assertIsNone(self.journal.read(100))
        self.assertEqual(self.journal.standing(), [])
        await self.journal.open(100, {"do": "claim"})
        await self.journal.append(100, {"do": "ä\ud800\n", "n": [1, None]})
        self.assertEqual(self.journal.read(100), [{"do": "claim", "version": 2}, {"do": "ä\ud800\n", "n": [1, None]}])
        await self.journal.open(99, {})
        self.assertEqual(self.journal.standing(), [99, 100])
        await self.journal.remove(100)
        await self.journal.remove(100)
        self.assertIsNone(self.journal.read(100))
        self.assertEqual(self.journal.standing(), [99])

    async def test_only_one_stands(self):
        await self.journal.open(100, {"do": "claim"})
        with self.assertRaises(WrongState) as caught:
            await self.journal.open(100, {"do": "other"})
        self.assertEqual(caught.exception.text, "VM 100 waits for 'mtunnel settle 100'")
        self.assertEqual(self.journal.read(100), [{"do": "claim", "version": 2}])
        self.assertEqual([path.name for path in self.file.parent.iterdir()], ["100.jsonl"])
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o600)

    async def test_full_disk_is_named(self):
        await self.journal.open(100, {"do": "claim"})
        self.patch(os, "fsync", refuse(errno.ENOSPC))
        with self.assertRaises(BackendFailed) as caught:
            await self.journal.append(100, {"do": "making"})
        self.assertEqual(caught.exception.text, f"{self.file}: No space left on device")
        self.assertEqual(self.journal.read(100), [{"do": "claim", "version": 2}])

    async def test_a_full_disk_has_room_for_the_journal(self):
        """A file system that is really full: its last block is taken."""
        self.state.mkdir()
        if (
            os.geteuid() != 0
            or run_program(["mount", "-t", "tmpfs", "-o", "size=24m", "none", self.state], check=False).returncode
        ):
            raise SkipTest("only root mounts a file system")
        self.addCleanup(run_program, ["umount", self.state])
        await self.journal.tidy()
        await self.journal.open(100, {"do": "claim"})
        with (self.state / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        with self.assertRaises(OSError):
            (self.state / "other").write_bytes(b"x")
        for number in range(200):
            await self.journal.append(100, {"do": "making", "text": "x" * 1000, "number": number})
        await self.journal.open(101, {"do": "claim"})
        self.assertEqual(len(self.journal.read(100)), 201)
        (self.state / "filler").unlink()
        await self.journal.remove(101)
        self.assertEqual((self.state / "reserve").stat().st_size, RESERVE_BYTES)

    async def test_a_small_disk_is_left_alone(self):
        self.patch(os, "fstatvfs", lambda fd: SimpleNamespace(f_bavail=255, f_frsize=RESERVE_BYTES >> 4))
        await self.journal.tidy()
        self.assertEqual((self.state / "reserve").stat().st_size if (self.state / "reserve").exists() else 0, 0)

    async def test_what_a_crash_left_of_opening_one_goes(self):
        await self.journal.tidy()
        await self.journal.open(100, {"do": "claim"})
        (self.file.parent / "101.jsonl.tmp.77.0a0b0c0d").write_text('{"do":')
        await self.journal.tidy()
        self.assertEqual([path.name for path in self.file.parent.iterdir()], ["100.jsonl"])

    async def test_without_a_journal_nothing_is_appended(self):
        with self.assertRaises(BackendFailed):
            await self.journal.append(100, {"do": "x"})
        self.assertIsNone(self.journal.read(100))

    async def test_appends_keep_their_order(self):
        await self.journal.open(100, {})
        await gatherResults([Deferred.fromCoroutine(self.journal.append(100, {"n": number})) for number in range(40)])
        self.assertEqual([record.get("n") for record in self.journal.read(100)], [None, *range(40)])

    async def test_torn_last_line(self):
        await self.journal.open(100, {"do": "claim"})
        await self.journal.append(100, {"do": "second"})
        whole = self.file.read_bytes()
        first = whole.index(b"\n") + 1
        for cut in range(first, len(whole)):
            self.file.write_bytes(whole[:cut])
            self.assertEqual(self.journal.read(100), [{"do": "claim", "version": 2}])
        await self.journal.append(100, {"do": "third"})
        self.assertEqual([record["do"] for record in self.journal.read(100)], ["claim", "third"])

    async def test_zeros_of_a_crash(self):
        await self.journal.open(100, {"do": "claim"})
        with self.file.open("ab") as file:
            file.write(b"\0" * 100)
        self.assertEqual(len(self.journal.read(100)), 1)

    def test_what_cannot_be_understood_is_held(self):
        self.file.parent.mkdir(parents=True)
        for text in (
            "",
            '{"version":2,"do":"claim"',
            "\0" * 4096,
            "\0" * 100 + '{"do":"making"}\n',
            '{"version":3}\n',
            '{"version":"2"}\n',
            '{"version":2.0}\n',
            '{"version":true}\n',
            '{"do":"x"}\n',
            '{"version":1}\nrubbish\n',
            "[]\n",
            '{"version":1}\n\n',
            "\udcff\n",
        ):
            self.file.write_bytes(text.encode("utf-8", "surrogateescape"))
            self.assertRaises(WrongState, self.journal.read, 100)

    def test_version_1(self):
        self.file.parent.mkdir(parents=True)
        self.file.write_text('{"version":1,"do":"claim"}\n')
        self.assertEqual(self.journal.read(100), [{"version": 1, "do": "claim"}])

    async def refused(self):
        """Returns: why the journal is neither read nor written."""
        with self.assertRaises(WrongState) as caught:
            self.journal.read(100)
        with self.assertRaises(WrongState) as again:
            await self.journal.append(100, {"do": "x"})
        self.assertEqual(again.exception.text, caught.exception.text)
        self.assertEqual(self.journal.standing(), [100])
        return caught.exception.text

    async def test_a_link_is_not_followed(self):
        other = self.state / "other"
        await self.journal.open(100, {"do": "claim"})
        self.file.rename(other)
        before = other.read_bytes()
        self.file.symlink_to(other.resolve())
        self.assertEqual(await self.refused(), f"the journal '{self.file}' is a symbolic link")
        self.assertEqual(other.read_bytes(), before)
        self.file.unlink()
        self.file.symlink_to("nowhere")
        self.assertIn("is a symbolic link", await self.refused())

    async def test_what_is_no_file(self):
        self.file.parent.mkdir(parents=True)
        os.mkfifo(self.file)
        self.assertEqual(await self.refused(), f"the journal '{self.file}' is no file")

    async def test_of_another_owner(self):
        if os.geteuid():
            raise SkipTest("only root gives files away")
        await self.journal.open(100, {"do": "claim"})
        os.chown(self.file, 65534, -1)
        self.assertEqual(await self.refused(), f"the journal '{self.file}' belongs to user 65534")

    def test_standing_knows_its_own_files(self):
        self.file.parent.mkdir(parents=True)
        for name in ("100.jsonl.tmp.1.ab", "x.jsonl", "0100.jsonl", "200.jsonl"):
            (self.file.parent / name).write_text("")
        self.assertEqual(self.journal.standing(), [200])
