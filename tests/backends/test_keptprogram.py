"""Storage programs that are kept: the real mtunnel-pvesm, killed, cancelled, late and idle."""

import os
import signal
import sys
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults

from mtunnel_tx.backends.keptprogram import KeptPrograms
from mtunnel_tx.backends.storage import PvesmStorage
from mtunnel_tx.errors import BackendFailed, TimedOut
from mtunnel_tx.waiting import pause
from tests.backends.test_storage import MIB, StorageCase
from tests.patience import patience_s, tries

COMMAND = (sys.executable, "-m", "mtunnel_tx.pvesm")
STUBBORN = """\
import json, sys, time
for line in sys.stdin:
    words = json.loads(line)
    if words[0] == "die":
        print("no more", flush=True)
        sys.exit(3)
    if words[0] == "sleep":
        time.sleep(3600)
    print("odd line\\n\\x1e" + ("seven" if words[0] == "odd" else "7"), flush=True)
"""


class KeptCase(StorageCase):
    def programs(self):
        """The processes that are marked as this test's."""
        word = f"MTUNNEL_OWNER_OF_TEST={self.root}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    environ = (folder / "environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                found += [int(folder.name)] if word in environ else []
        return sorted(found)

    async def until(self, condition):
        for _ in tries("programs"):
            if condition():
                return
            await pause(reactor, 0.01)

    async def until_gone(self):
        await self.until(lambda: not self.programs())
        await pause(reactor, 0.01)  # their ends are known to the reactor

    def setUp(self):
        super().setUp()
        self.env["MTUNNEL_OWNER_OF_TEST"] = str(self.root)


class _Making(KeptCase):
    def make(self, command):
        options = {"environ": self.env, "pve_dir": self.pve_dir, "owner": str(self.root), "keeps": True}
        storage = PvesmStorage(reactor, command=command, **options)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.until_gone()))
        self.addCleanup(lambda: Deferred.fromCoroutine(storage.close()))
        return storage


class OwnProgramTests(_Making):
    def setUp(self):
        super().setUp()
        self.storage = self.make(COMMAND)

    async def test_all_commands_run_in_one_program(self):
        volid = await self.storage.alloc("local", 100, 4 * MIB, "qcow2", self.lines.append)
        programs = self.programs()
        self.assertEqual(len(programs), 1)
        self.assertTrue(self.lines[0].startswith("Formatting '"))
        self.assertEqual([found.volid for found in await self.storage.volumes("local", 100)], [volid])
        self.assertGreater(await self.storage.available_bytes("local"), 0)
        self.assertEqual(await self.storage.path(volid), str(self.images / "100/vm-100-disk-0.qcow2"))
        await self.storage.free(volid)
        self.assertEqual(await self.storage.volumes("local", 100), [])
        self.assertEqual(self.programs(), programs)

    async def test_it_says_what_a_program_of_its_own_would_say(self):
        other = PvesmStorage(reactor, command=COMMAND, environ=self.env, pve_dir=self.pve_dir, owner=str(self.root))
        for words in (("alloc", "nope", "100", "", "4M"), ("path", "nonsense"), ("list",)):
            kept, own = [await self.failure(each._run(60, *words), BackendFailed) for each in (self.storage, other)]
            self.assertEqual(kept, own)
            self.assertIn("failed with exit code", own)

    async def test_it_sees_what_has_changed(self):
        self.assertIsNone(await self.storage.available_bytes("other"))
        (self.root / "other").mkdir()
        self.cfg.write_text(self.cfg.read_text() + f"\ndir: other\n\tpath {self.root}/other\n\tcontent images\n")
        self.assertGreater(await self.storage.available_bytes("other"), 0)

    async def test_what_is_asked_at_the_same_time_is_answered_at_the_same_time(self):
        asked = [Deferred.fromCoroutine(self.storage.volumes("local", 100)) for _ in range(6)]
        self.assertEqual(await gatherResults(asked), [[]] * 6)
        self.assertGreater(len(self.programs()), 1)

    async def test_one_that_was_killed_is_replaced(self):
        await self.storage.volumes("local", 100)
        (pid,) = self.programs()
        os.kill(pid, signal.SIGKILL)
        await self.until_gone()
        self.assertEqual(await self.storage.volumes("local", 100), [])

    async def test_one_that_is_interrupted_ends(self):
        await self.storage.volumes("local", 100)
        (pid,) = self.programs()
        os.kill(pid, signal.SIGTERM)
        await self.until_gone()

    async def test_imports_are_not_served(self):
        text = await self.failure(self.storage._run(60, "import", "local:100/x", "raw+size", "-"), BackendFailed)
        self.assertIn("'import' needs a process of its own", text)


class EarlierProgramTests(_Making):
    """A program of that name that does not know `serve`."""

    def setUp(self):
        KeptCase.setUp(self)
        self.calls = self.root / "calls"
        script = self.root / "mtunnel-pvesm"
        note = f'echo "$1" >>{self.calls}'
        refusal = "echo \"ERROR: unknown command 'pvesm serve'\" >&2; exit 255"
        own = " ".join(COMMAND)
        script.write_text(f'#!/bin/sh\n{note}\n[ "$1" = serve ] && {{ {refusal}; }}\nexec {own} "$@"\n')
        script.chmod(0o755)
        self.storage = self.make((str(script),))

    async def test_each_command_gets_a_process_and_serve_is_asked_for_once(self):
        volid = await self.storage.alloc("local", 100, 4 * MIB, "qcow2", self.lines.append)
        self.assertEqual([found.volid for found in await self.storage.volumes("local", 100)], [volid])
        await self.storage.free(volid)
        self.assertEqual(self.calls.read_text().split(), ["serve", "alloc", "list", "free"])
        await self.until_gone()

    async def test_many_at_once(self):
        asked = [Deferred.fromCoroutine(self.storage.volumes("local", 100)) for _ in range(4)]
        self.assertEqual(await gatherResults(asked), [[]] * 4)

    async def test_it_fails_as_ever(self):
        text = await self.failure(self.storage._run(60, "alloc", "nope", "100", "", "4M"), BackendFailed)
        self.assertIn("failed with exit code", text)


class OtherProgramTests(KeptCase):
    def setUp(self):
        super().setUp()
        self.kept = self.keep()

    def keep(self, **options):
        script = self.root / "stubborn.py"
        script.write_text(STUBBORN)
        kept = KeptPrograms(reactor, [sys.executable, str(script)], self.env, **options)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.until_gone()))
        self.addCleanup(lambda: Deferred.fromCoroutine(kept.close()))
        return kept

    async def test_answers(self):
        self.assertEqual(await self.kept.run(["x"], patience_s(), "x"), (7, "odd line\n"))
        self.assertEqual(await self.kept.run(["die"], patience_s(), "x"), (3, "no more\n"))
        self.assertEqual(await self.kept.run(["x"], patience_s(), "x"), (7, "odd line\n"))
        self.assertIn("exit code", await self.failure(self.kept.run(["odd"], patience_s(), "x"), BackendFailed))

    async def test_one_that_is_late_is_killed(self):
        self.assertIn("'slow' did not end", await self.failure(self.kept.run(["sleep"], 0.2, "slow"), TimedOut))
        self.assertEqual(self.programs(), [])

    async def test_one_whose_caller_gives_up_is_killed(self):
        running = Deferred.fromCoroutine(self.kept.run(["sleep"], patience_s(), "x"))
        await self.until(self.programs)
        running.cancel()
        try:
            await running
        except CancelledError:
            await self.until_gone()
        else:
            self.fail("it went on")

    async def test_one_that_nobody_asks_ends(self):
        kept = self.keep(idle_s=0.05)
        await kept.run(["x"], patience_s(), "x")
        await self.until_gone()

    async def test_one_that_is_at_work_at_the_end_ends_afterwards(self):
        running = Deferred.fromCoroutine(self.kept.run(["x"], patience_s(), "x"))
        await self.kept.close()
        self.assertEqual(await running, (7, "odd line\n"))
        await self.until_gone()
