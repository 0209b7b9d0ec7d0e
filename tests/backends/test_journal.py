import errno
import os
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.journal import FileJournal
from mtunnel_tx.errors import BackendFailed, WrongState
from tests.backends.test_files import refuse


class JournalTest(TestCase):
    def setUp(self):
        self.state = Path(self.mktemp())
        self.file = self.state / "journal" / "100.jsonl"
        self.journal = FileJournal(ReactorThreads(reactor, reactor.getThreadPool()), self.state)

    async def test_life(self):
        self.assertIsNone(self.journal.read(100))
        self.assertEqual(self.journal.standing(), [])
        await self.journal.open(100, {"do": "claim"})
        await self.journal.append(100, {"do": "ä\ud800\n", "n": [1, None]})
        self.assertEqual(self.journal.read(100), [{"do": "claim", "version": 1}, {"do": "ä\ud800\n", "n": [1, None]}])
        await self.journal.open(99, {})
        self.assertEqual(self.journal.standing(), [99, 100])
        await self.journal.close(100)
        await self.journal.close(100)
        self.assertIsNone(self.journal.read(100))
        self.assertEqual(self.journal.standing(), [99])

    async def test_only_one_stands(self):
        await self.journal.open(100, {"do": "claim"})
        with self.assertRaises(WrongState) as caught:
            await self.journal.open(100, {"do": "other"})
        self.assertEqual(caught.exception.text, "VM 100 waits for 'mtunnel settle 100'")
        self.assertEqual(self.journal.read(100), [{"do": "claim", "version": 1}])
        self.assertEqual([path.name for path in self.file.parent.iterdir()], ["100.jsonl"])
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o600)

    async def test_full_disk_is_named(self):
        await self.journal.open(100, {"do": "claim"})
        self.patch(os, "fsync", refuse(errno.ENOSPC))
        with self.assertRaises(BackendFailed) as caught:
            await self.journal.append(100, {"do": "making"})
        self.assertEqual(caught.exception.text, f"{self.file}: No space left on device")

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
            self.assertEqual(self.journal.read(100), [{"do": "claim", "version": 1}])
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
            '{"version":2}\n',
            '{"do":"x"}\n',
            '{"version":1}\nrubbish\n',
            "[]\n",
            '{"version":1}\n\n',
            "\udcff\n",
        ):
            self.file.write_bytes(text.encode("utf-8", "surrogateescape"))
            self.assertRaises(WrongState, self.journal.read, 100)

    def test_empty(self):
        self.file.parent.mkdir(parents=True)
        self.file.write_text("")
        self.assertEqual(self.journal.read(100), [])

    def test_standing_knows_its_own_files(self):
        self.file.parent.mkdir(parents=True)
        for name in ("100.jsonl.tmp.1.ab", "x.jsonl", "0100.jsonl", "200.jsonl"):
            (self.file.parent / name).write_text("")
        self.assertEqual(self.journal.standing(), [200])
