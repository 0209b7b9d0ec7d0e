"""Standard streams that are closed, or that nobody reads."""

import os
import subprocess
from pathlib import Path

from mtunnel_tx.config import load_settings
from mtunnel_tx.pvesm import commands
from mtunnel_tx.pvesm.driver import NewImage
from mtunnel_tx.pvesm.images import allocation
from tests.patience import patience_s
from tests.pvesm.importing import ImportCase
from tests.pvesm.programs import MIB

RAW = ("local:100/vm-100-disk-0.raw", "raw+size")


class ClosedTests(ImportCase):
    def run_without(self, *words, closed):
        process = self.start(*words, preexec_fn=lambda: [os.close(fd) for fd in closed])
        out, err = process.communicate(timeout=patience_s())
        return process.returncode, out, err.decode()

    def test_nothing_to_import_from(self):
        code, out, err = self.run_without("import", *RAW, "-", closed=[0])
        self.assertEqual((code, out, err), (255, b"", "unable to open '-': the standard input is closed\n"))
        self.assertEqual(self.tree(), [])

    def test_nowhere_to_export_to(self):
        self.images.joinpath("100").mkdir(parents=True)
        self.images.joinpath("100/vm-100-disk-0.raw").write_bytes(bytes(MIB))
        code, _, err = self.run_without("export", *RAW, "-", closed=[0, 1])
        self.assertEqual((code, err), (255, "unable to open '-': the standard output is closed\n"))

    def test_all_closed_and_none_needed(self):
        (self.root / "stream").write_bytes(MIB.to_bytes(8, "little") + bytes(MIB))
        self.assertEqual(self.run_without("import", *RAW, self.root / "stream", closed=[0, 1, 2])[0], 0)
        self.assertEqual(self.stored("vm-100-disk-0.raw"), bytes(MIB))


class ErrorOutputTests(ImportCase):
    """The exit code stays, whatever becomes of the words."""

    def test_nowhere_to_complain(self):
        with Path("/dev/full").open("wb") as full:
            process = self.start("free", "x:", stderr=full)
        self.assertEqual(process.wait(patience_s()), 255)

    def test_nobody_to_complain_to(self):
        reader, writer = os.pipe()
        os.close(reader)
        process = self.start("free", "x:", stderr=writer)
        os.close(writer)
        self.assertEqual(process.wait(patience_s()), 255)

    def test_words_that_the_terminal_does_not_have(self):
        done = self.pvesm("free", "\u00e9:x", env={"PYTHONIOENCODING": "ascii"})
        self.assertEqual((done.code, done.err), (255, "unable to parse volume ID '?:x'\n"))

    def test_no_room_for_the_answer(self):
        with Path("/dev/full").open("wb") as full:
            process = self.start("path", "local:100/vm-100-disk-0.raw", stdout=full)
        _, err = process.communicate(timeout=patience_s())
        self.assertEqual((process.returncode, err), (255, b"[Errno 28] No space left on device\n"))


class UnreadTests(ImportCase):
    """Its first line is read, then nobody does any more: so its success cannot be told."""

    def unread(self, process, rest=None):
        self.assertIn(b"Formatting", process.stdout.readline())
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(rest, timeout=patience_s())
        self.assertEqual((process.returncode, err), (255, b"[Errno 32] Broken pipe\n"))
        self.assertEqual(self.tree(), [])

    def test_import(self):
        process = self.start("import", *RAW, "-", stdin=subprocess.PIPE)
        process.stdin.write(MIB.to_bytes(8, "little") + b"x")
        process.stdin.flush()
        self.unread(process, b"x" * (MIB - 1))

    def test_alloc(self):
        said = []

        def say(text):
            said.append(text)
            if len(said) == 2:
                raise BrokenPipeError

        for module in (allocation, commands):
            self.patch(module, "say", say)
        wanted = NewImage(vmid=100, name="", size_bytes=MIB, format=None)
        settings = load_settings(None, self.env)
        self.assertRaises(BrokenPipeError, commands.allocate, settings, "local", wanted)
        self.assertEqual(said[1:], ["successfully created 'local:100/vm-100-disk-0.raw'"])
        self.assertEqual(self.tree(), [])
