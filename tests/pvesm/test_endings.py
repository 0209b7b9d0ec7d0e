"""How imports end: refused, by a signal, killed, two for one name."""

import os
import signal
import tempfile
import threading
from pathlib import Path

from tests.patience import patience_s
from tests.processes import started_process
from tests.pvesm.importing import ImportCase
from tests.pvesm.programs import MIB, header

QCOW2 = ("local:100/vm-100-disk-0.qcow2", "qcow2+size")
RAW = ("local:100/vm-100-disk-0.raw", "raw+size")


class OrderTests(ImportCase):
    def refused_as(self, text, *words):
        self.refused(self.pvesm("import", *words), text)

    def test_what_is_wrong_first(self):
        self.refused_as("cannot import into volume 'x'", "x", "raw+size", "-")
        self.refused_as("storage 'off' is disabled", "off:100/a.raw", "raw+size", "-")
        self.refused_as(
            "storage 'othernode' is not available on node 'pvetest'", "othernode:100/a.raw", "raw+size", "-"
        )
        self.refused_as("storage 'nodisks' does not support vm images", "nodisks:100/a.raw", "raw+size", "-")
        self.refused_as("storage 'tank' has type 'zfspool'", "tank:vm-100-disk-0", "raw+size", "-")
        self.refused_as("expected to be a mount point but is not mounted", "unmounted:100/a.raw", "raw+size", "-")
        self.refused_as("does not exist or is unreachable", "absent:100/a.raw", "raw+size", "-")
        self.refused_as("cannot be imported with snapshots", *RAW, "-", "-with-snapshots", "1")
        self.refused_as("unable to parse directory volume name 'iso/a.iso'", "local:iso/a.iso", "raw+size", "-")

    def test_a_folder_that_leads_elsewhere(self):
        self.images.mkdir(parents=True)
        (self.root / "elsewhere").mkdir()
        (self.images / "100").symlink_to(self.root / "elsewhere")
        done = self.feed(RAW, header(1024) + b"x" * 1024)
        self.assertIn("unable to open directory", done.err)
        self.assertEqual(list((self.root / "elsewhere").iterdir()), [])

    def test_a_name_that_is_a_link_to_nowhere_is_taken(self):
        (self.images / "100").mkdir(parents=True)
        (self.images / "100/vm-100-disk-0.raw").symlink_to(self.root / "gone")
        done = self.feed(RAW, header(1024) + b"x" * 1024)
        self.assertIn("already exists", done.err)
        self.assertFalse((self.root / "gone").exists())


class EndTests(ImportCase):
    def begin(self, target, payload, *options, **more):
        process = self.start("import", *target, self.url(), *options, **more)
        self.assertEqual(process.stdout.readline(), b"ready\n")
        connection = self.connect()
        connection.sendall(payload)
        return process, connection

    def part(self):
        """Wait until the unfinished file has something in it."""
        return self.until(lambda: next((path for path in self.parts() if path.stat().st_blocks), None))

    def parts(self):
        return list(self.images.glob("100/.*.part-*"))

    def test_signals_leave_nothing(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process, connection = self.begin(RAW, header(8 * MIB) + b"x" * 4 * MIB)
            self.part()
            process.send_signal(number)
            process.wait(patience_s())
            connection.close()
            self.assertEqual(process.returncode, 128 + number)
            self.assertEqual(self.tree(), [])

    def test_a_signal_while_nobody_came(self):
        process = self.start("import", *RAW, self.url())
        process.stdout.readline()
        process.terminate()
        process.wait(patience_s())
        self.assertFalse(self.socket.exists())

    def killed(self):
        process, _ = self.begin(RAW, header(8 * MIB) + b"x" * 4 * MIB)
        part = self.part()
        process.kill()
        process.wait(patience_s())
        self.assertTrue(part.exists())
        return part

    def test_what_a_kill_leaves_is_no_volume(self):
        self.killed()
        self.assertNotIn("vm-100", self.pvesm("list", "local").out)

    def test_what_a_kill_leaves_goes_with_the_next_look(self):
        for words in (("list", "local", "-vmid", "100"), ("free", RAW[0])):
            self.killed()
            self.assertEqual(self.pvesm(*words).code, 0)
            self.assertEqual(self.tree(), [])

    def test_what_a_kill_leaves_does_not_take_the_name(self):
        self.killed()
        done = self.feed(RAW, header(1024) + b"x" * 1024)
        self.assertIn(f"successfully imported '{RAW[0]}'", done.out)
        self.assertEqual(self.tree(), ["images/100", "images/100/vm-100-disk-0.raw"])

    def test_a_running_import_is_not_swept_and_its_name_is_taken(self):
        process, connection = self.begin(RAW, header(2 * MIB) + b"x" * MIB)
        self.until(self.parts)
        self.pvesm("list", "local", "-vmid", "100")
        done = self.feed(RAW, header(1024) + b"x" * 1024, "-allow-rename", "1")
        self.assertIn("successfully imported 'local:100/vm-100-disk-1.raw'", done.out)
        connection.sendall(b"x" * MIB)
        connection.close()
        out, _ = process.communicate(timeout=patience_s())
        self.assertIn(b"successfully imported 'local:100/vm-100-disk-0.raw'", out)

    def test_only_one_client(self):
        self.begin(RAW, header(2 * MIB) + b"x" * MIB)
        self.until(lambda: not self.socket.exists())
        with self.assertRaises((FileNotFoundError, ConnectionRefusedError)):
            self.connect()

    def test_an_orphan_does_not_publish(self):
        """The daemon's end closes the stream: a qcow2 image could look whole."""
        image = self.qcow2()
        with tempfile.NamedTemporaryFile(dir=self.root) as output:
            words = (
                f"exec {os.sys.executable} -m mtunnel_tx.pvesm import {' '.join(QCOW2)} {self.url()} -with-snapshots 1"
            )
            env = {**self.env, "MTUNNEL_ATTACHED": "1"}
            argv = ["sh", "-c", f"({words}) & wait"]
            parent = started_process(self.addCleanup, argv, env=env, stdout=output, stderr=output)
            self.until(lambda: b"ready" in Path(output.name).read_bytes())
            connection = self.connect()
            parent.kill()
            parent.wait(patience_s())
            connection.sendall(header(10 * MIB) + image.read_bytes())
            connection.close()
            self.until(lambda: b"is gone" in Path(output.name).read_bytes())
        self.until(lambda: not self.tree())


class RaceTests(ImportCase):
    def test_many_at_once_with_one_name(self):
        count = 6
        dones = []

        def work(number):
            data = bytes([65 + number]) * (2 * MIB)
            dones.append((data, self.feed(RAW, header(len(data)) + data, "-allow-rename", "1")))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(patience_s())
        found = {self.stored(path.name) for path in (self.images / "100").iterdir()}
        self.assertEqual(found, {data for data, _ in dones})
        self.assertEqual([done.code for _, done in dones], [0] * count)

    def test_many_at_once_without_renaming(self):
        codes = []

        def work():
            codes.append(self.feed(RAW, header(MIB) + b"x" * MIB).code)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(patience_s())
        self.assertEqual(sorted(codes), [0, 255, 255, 255])
