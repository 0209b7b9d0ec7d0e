import errno
import os
from pathlib import Path

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mtunnel_tx.backends.files import (
    CachedFile,
    ReactorThreads,
    create_file,
    decode,
    encode,
    make_folder,
    read_text,
    remove_file,
    replace_file,
)
from mtunnel_tx.errors import BackendFailed


def refuse(number):
    def call(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return call


class WriteTest(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.file = self.folder / "a.conf"

    def names(self):
        return [path.name for path in self.folder.iterdir()]

    def test_replace(self):
        for text in ("one\n", "zwei ä\n", ""):
            replace_file(self.file, text, 0o640)
            self.assertEqual(read_text(self.file), text)
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o640)
        self.assertEqual(self.names(), ["a.conf"])

    def test_a_reader_keeps_its_version(self):
        replace_file(self.file, "one\n", 0o600)
        with self.file.open() as reader:
            replace_file(self.file, "two\n", 0o600)
            self.assertEqual(reader.read(), "one\n")

    def test_replace_that_fails_leaves_nothing(self):
        self.file.mkdir()
        self.assertRaises(OSError, replace_file, self.file, "x", 0o600)
        self.assertEqual(self.names(), ["a.conf"])

    def test_no_space_leaves_the_old_file(self):
        replace_file(self.file, "old", 0o600)
        self.patch(os, "fsync", refuse(errno.ENOSPC))
        error = self.assertRaises(OSError, replace_file, self.file, "new", 0o600)
        self.assertEqual(error.filename, str(self.file))
        self.assertEqual((self.names(), read_text(self.file)), (["a.conf"], "old"))

    def test_create_is_exclusive(self):
        create_file(self.file, "one", 0o600)
        self.assertRaises(FileExistsError, create_file, self.file, "two", 0o600)
        self.assertEqual((self.names(), read_text(self.file)), (["a.conf"], "one"))

    def test_create_without_space_leaves_nothing(self):
        self.patch(os, "fsync", refuse(errno.ENOSPC))
        self.assertRaises(OSError, create_file, self.file, "one", 0o600)
        self.assertEqual(self.names(), [])

    def test_without_links_it_is_exclusive_too(self):
        self.patch(os, "link", refuse(errno.EPERM))
        create_file(self.file, "one", 0o600)
        self.assertRaises(FileExistsError, create_file, self.file, "two", 0o600)
        self.assertEqual((self.names(), read_text(self.file)), (["a.conf"], "one"))

    def test_cluster_file_system_sets_modes_itself(self):
        self.patch(os, "fchmod", refuse(errno.EPERM))
        self.patch(os, "fchown", refuse(errno.EPERM))
        replace_file(self.file, "one", 0o640)
        self.assertEqual(read_text(self.file), "one")

    def test_folder_that_cannot_be_synced(self):
        fsync = os.fsync

        def refuse_folders(fd):
            if os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112
                raise OSError(errno.EINVAL, "Invalid argument")
            fsync(fd)

        self.patch(os, "fsync", refuse_folders)
        replace_file(self.file, "one", 0o640)
        self.assertEqual(read_text(self.file), "one")

    def test_owner_stays(self):
        if os.geteuid() != 0:
            self.skipTest("needs root")
        replace_file(self.file, "one", 0o600)
        os.chown(self.file, 12345, 54321)
        replace_file(self.file, "two", 0o600)
        self.assertEqual((self.file.stat().st_uid, self.file.stat().st_gid), (12345, 54321))

    def test_remove(self):
        replace_file(self.file, "one", 0o640)
        remove_file(self.file)
        remove_file(self.file)
        remove_file(self.folder / "none" / "x")
        self.assertEqual(self.names(), [])
        self.assertIsNone(read_text(self.file))

    def test_make_folder(self):
        path = self.folder / "a" / "b"
        make_folder(path)
        make_folder(path)
        self.assertEqual(path.stat().st_mode & 0o777, 0o700)

    def test_any_bytes(self):
        data = bytes(range(256))
        self.assertEqual(encode(decode(data)), data)
        self.assertEqual(encode("a\ud800\udfffb\udc80"), b"a??b\x80")


class CachedFileTest(SynchronousTestCase):
    def setUp(self):
        self.file = Path(self.mktemp())
        self.parsed = []
        self.cached = CachedFile(self.file, self.parse)

    def parse(self, text):
        self.parsed.append(text)
        return text.upper()

    def test_reads_again_when_changed(self):
        self.assertEqual([self.cached.value(), self.cached.value()], ["", ""])
        replace_file(self.file, "a", 0o600)
        self.assertEqual([self.cached.value(), self.cached.value()], ["A", "A"])
        replace_file(self.file, "b", 0o600)
        self.assertEqual(self.cached.value(), "B")
        remove_file(self.file)
        self.assertEqual(self.cached.value(), "")
        self.assertEqual(self.parsed, ["", "a", "b", ""])

    def test_cannot_be_read(self):
        self.file.mkdir()
        error = self.assertRaises(BackendFailed, self.cached.value)
        self.assertIn(f"{self.file}: ", error.text)


class ThreadsTest(TestCase):
    async def test_result_and_refusals(self):
        threads = ReactorThreads(reactor, reactor.getThreadPool())
        self.assertEqual(await threads.run(divmod, 7, 2), (3, 1))
        with self.assertRaises(BackendFailed) as caught:
            await threads.run(os.listdir, "/nonexistent")
        self.assertEqual(caught.exception.text, "/nonexistent: No such file or directory")
        with self.assertRaises(FileExistsError):
            await threads.run(os.mkdir, "/tmp")
