"""Imports that the recording does not have: streams that lie, break off, hurry or never end."""

import os
import resource
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

from twisted.trial.unittest import SkipTest

from tests.pvesm.programs import MIB, WAIT_S, PvesmCase, header

QCOW2 = ("local:100/vm-100-disk-0.qcow2", "qcow2+size")
RAW = ("local:100/vm-100-disk-0.raw", "raw+size")
VMDK = ("local:100/vm-100-disk-0.vmdk", "vmdk+size")
SNAPSHOTS = ("-with-snapshots", "1")


class ImportCase(PvesmCase):
    def feed(self, target, payload, *options, **more):
        """Import from standard input."""
        with_snapshots = () if target[1] == "raw+size" else SNAPSHOTS
        return self.pvesm("import", *target, "-", *with_snapshots, *options, given=payload, **more)

    def refused(self, done, text):
        """An error that says so, and nothing left behind: no file, no folder, no word of success."""
        self.assertIn(text, done.err)
        self.assertEqual(done.code, 255)
        self.assertNotIn("successfully", done.out)
        self.assertEqual(self.tree(), [])

    def stored(self, name) -> bytes:
        return (self.images / "100" / name).read_bytes()


class RawTests(ImportCase):
    def test_one_byte_short(self):
        self.refused(self.feed(RAW, header(MIB) + b"x" * (MIB - 1)), "stream ended after 1048575 of 1048576 bytes")

    def test_one_byte_long(self):
        self.refused(self.feed(RAW, header(MIB) + b"x" * (MIB + 1)), "stream is longer than 1048576 bytes")

    def test_exact_around_the_chunk(self):
        for number, size in enumerate((1024, 2 * MIB - 1024, 2 * MIB, 2 * MIB + 1024, 4 * MIB)):
            data = os.urandom(size)
            done = self.feed((f"local:100/vm-100-disk-{number}.raw", "raw+size"), header(size) + data)
            self.assertEqual((done.code, done.err), (0, ""))
            self.assertEqual(self.stored(f"vm-100-disk-{number}.raw"), data)

    def test_longer_is_known_at_once(self):
        """Not only when the stream ends: a sender may go on for ever."""
        process = self.start("import", *RAW, self.url())
        process.stdout.readline()
        connection = self.connect()
        connection.sendall(header(1024) + b"x" * 1025)
        _, err = process.communicate(timeout=WAIT_S)
        self.assertIn(b"longer than 1024 bytes", err)

    def test_header_cut(self):
        for count in range(8):
            self.refused(self.feed(RAW, header(MIB)[:count]), "import: no size found in export header, aborting.")

    def test_no_size(self):
        self.refused(self.feed(RAW, header(0)), "refusing an image of 0 bytes")

    def test_absurd_sizes(self):
        for size in (2**64 - 1, 2**63, 2**50 + 1):
            self.refused(self.feed(RAW, header(size) + b"x"), f"refusing an image of {size} bytes")

    def test_odd_size_is_filled_with_zeros(self):
        done = self.feed(RAW, header(1000) + b"x" * 1000)
        self.assertEqual(done.code, 0)
        self.assertEqual(self.stored("vm-100-disk-0.raw"), b"x" * 1000 + bytes(24))

    def test_odd_size_is_exact_too(self):
        self.refused(self.feed(RAW, header(1000) + b"x" * 1024), "longer than 1000 bytes")

    def test_sparse_stays_sparse(self):
        data = bytearray(64 * MIB)
        data[5 * MIB : 5 * MIB + 10] = b"0123456789"
        data[-1] = 1
        self.assertEqual(self.feed(RAW, header(len(data)) + data).code, 0)
        path = self.images / "100/vm-100-disk-0.raw"
        self.assertEqual(path.read_bytes(), data)
        self.assertLess(path.stat().st_blocks * 512, MIB)

    def test_all_zeros(self):
        self.assertEqual(self.feed(RAW, header(8 * MIB) + bytes(8 * MIB)).code, 0)
        self.assertEqual(self.stored("vm-100-disk-0.raw"), bytes(8 * MIB))

    def test_from_a_file(self):
        (self.root / "stream").write_bytes(header(1024) + b"y" * 1024)
        done = self.pvesm("import", *RAW, self.root / "stream", "--allow-rename=1")
        self.assertEqual(done.code, 0)
        self.assertEqual(self.stored("vm-100-disk-0.raw"), b"y" * 1024)

    def test_larger_than_the_free_space_is_no_error_where_it_is_thin(self):
        size = 1 << 43
        done = self.feed(RAW, header(size))
        self.assertIn(f"stream ended after 0 of {size} bytes", done.err)

    def test_larger_than_the_free_space_where_it_is_not(self):
        done = self.feed(("eager:100/vm-100-disk-0.raw", "raw+size"), header(1 << 43))
        self.assertIn(f"no space left on storage 'eager': {1 << 43} bytes wanted", done.err)
        self.assertFalse((self.root / "eager/images/100").exists())

    def test_a_file_that_may_not_grow(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, 2 * MIB))

        self.refused(self.feed(RAW, header(4 * MIB) + b"x" * 4 * MIB, preexec_fn=limit), "too large")

    def test_disk_full_midway(self):
        if os.geteuid() != 0:
            raise SkipTest("NEEDS ROOT: a small file system is mounted")
        place = self.root / "local"
        place.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", place], check=False)
        if mounted.returncode:
            raise SkipTest("NEEDS MOUNT: no file system can be mounted here")
        self.addCleanup(subprocess.run, ["umount", place], check=True)
        self.refused(self.feed(RAW, header(8 * MIB) + b"x" * 8 * MIB), "No space left on device")


class Qcow2Tests(ImportCase):
    def setUp(self):
        super().setUp()
        self.image = self.qcow2()

    def stream(self, image=None, size=10 * MIB) -> bytes:
        return header(size) + (image or self.image).read_bytes()

    def changed(self, offset, data) -> bytes:
        image = bytearray(self.stream())
        image[8 + offset : 8 + offset + len(data)] = data
        return bytes(image)

    def test_snapshots_come_through_untouched(self):
        self.assertEqual(self.feed(QCOW2, self.stream()).code, 0)
        self.assertEqual(self.stored("vm-100-disk-0.qcow2"), self.image.read_bytes())
        listed = self.qemu_img("snapshot", "-l", self.images / "100/vm-100-disk-0.qcow2")
        self.assertIn("snap1", listed)

    def test_other_kinds_of_qcow2(self):
        kinds = ("compat=0.10", "extended_l2=on", "compression_type=zstd", "cluster_size=2M", "refcount_bits=1")
        for number, options in enumerate((*kinds, "lazy_refcounts=on")):
            path = self.root / f"kind{number}.qcow2"
            self.qemu_img("create", "-f", "qcow2", "-o", options, path, "10M")
            name = f"vm-100-disk-{number}.qcow2"
            done = self.feed((f"local:100/{name}", "qcow2+size"), self.stream(path))
            self.assertEqual((done.code, done.err), (0, ""), options)
            self.assertEqual(self.stored(name), path.read_bytes())

    def test_formatting_line_tells_what_the_image_is(self):
        path = self.root / "kind.qcow2"
        self.qemu_img("create", "-f", "qcow2", "-o", "cluster_size=128k,compression_type=zstd", path, "10M")
        done = self.feed(QCOW2, self.stream(path))
        self.assertIn(
            "fmt=qcow2 cluster_size=131072 extended_l2=off preallocation=metadata compression_type=zstd", done.out
        )

    def test_other_size_than_the_header(self):
        self.refused(
            self.feed(QCOW2, self.stream(size=11 * MIB)), "image has 10485760 bytes, the export header says 11534336"
        )

    def test_no_qcow2_at_all(self):
        for data in (b"", b"QFI", os.urandom(3 * MIB), b"QFI\xfb" + bytes(500)):
            self.refused(self.feed(QCOW2, header(MIB) + data), "qcow2")

    def test_backing_file(self):
        self.qemu_img("create", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", self.root / "b.qcow2", "10M")
        self.refused(self.feed(QCOW2, self.stream(self.root / "b.qcow2")), "backing file '/etc/passwd'")

    def test_backing_file_is_never_opened(self):
        """A named pipe without a writer: whoever opens it hangs."""
        pipe = self.root / "pipe"
        os.mkfifo(pipe)
        image = bytearray(self.stream())
        image[8 + 8 : 8 + 20] = (512).to_bytes(8, "big") + len(str(pipe)).to_bytes(4, "big")
        image[8 + 512 : 8 + 512 + len(str(pipe))] = str(pipe).encode()
        self.refused(self.feed(QCOW2, bytes(image)), "backing file")

    def test_data_file(self):
        path = self.root / "d.qcow2"
        self.qemu_img("create", "-f", "qcow2", "-o", f"data_file={self.root}/data,data_file_raw=on", path, "10M")
        self.refused(self.feed(QCOW2, self.stream(path)), "image has an external data file")

    def test_data_file_named_without_its_flag(self):
        path = self.root / "d.qcow2"
        self.qemu_img("create", "-f", "qcow2", "-o", f"data_file={self.root}/data", path, "10M")
        image = bytearray(self.stream(path))
        image[8 + 79] &= ~4
        self.refused(self.feed(QCOW2, bytes(image)), "image has an external data file")

    def test_data_file_flag_without_its_name(self):
        self.refused(self.feed(QCOW2, self.changed(79, b"\x04")), "image has an external data file")

    def test_encryption(self):
        path = self.root / "e.qcow2"
        secret = (
            "--object",
            "secret,id=s,data=x",
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        )
        self.qemu_img("create", "-f", "qcow2", *secret, path, "10M")
        self.refused(self.feed(QCOW2, self.stream(path)), "image is encrypted")

    def test_marked_as_corrupt(self):
        self.refused(self.feed(QCOW2, self.changed(79, b"\x02")), "corrupt")

    def test_references_that_lie(self):
        """The first L1 entry points behind the end."""
        image = self.stream()
        l1 = int.from_bytes(image[8 + 40 : 8 + 48], "big")
        self.refused(self.feed(QCOW2, self.changed(l1, (1 << 40 | 1 << 63).to_bytes(8, "big"))), "errors in the image")

    def test_cut_short(self):
        """Which qemu-img alone calls a good image."""
        stream = self.stream()
        for cut in (len(stream) - 3 * 65536, len(stream) // 2, 300000):
            self.refused(self.feed(QCOW2, stream[:cut]), "")

    def test_snapshot_is_deleted_on_demand(self):
        self.assertEqual(self.feed(QCOW2, self.stream(), "-delete-snapshot", "snap1").code, 0)
        listed = self.qemu_img("snapshot", "-l", self.images / "100/vm-100-disk-0.qcow2")
        self.assertNotIn("snap1", listed)

    def test_no_such_snapshot_to_delete(self):
        self.refused(self.feed(QCOW2, self.stream(), "-delete-snapshot", "other"), "command 'qemu-img snapshot' failed")

    def test_leaked_clusters_are_no_harm(self):
        path = self.root / "leak.qcow2"
        self.qemu_img("create", "-f", "qcow2", path, "10M")
        image = bytearray(path.read_bytes())
        block = int.from_bytes(image[int.from_bytes(image[48:56], "big") :][:8], "big")
        image[block + 40 : block + 42] = b"\x00\x01"
        path.write_bytes(image)
        self.assertEqual(self.feed(QCOW2, self.stream(path)).code, 0)


class VmdkTests(ImportCase):
    def image(self, *options) -> Path:
        path = self.root / "source.vmdk"
        self.qemu_img("create", "-f", "vmdk", *options, path, "10M")
        return path

    def stream(self, path) -> bytes:
        return header(10 * MIB) + path.read_bytes()

    def test_self_contained_kinds(self):
        for number, kind in enumerate(("monolithicSparse", "streamOptimized")):
            path = self.image("-o", f"subformat={kind}")
            name = f"vm-100-disk-{number}.vmdk"
            done = self.feed((f"local:100/{name}", "vmdk+size"), self.stream(path))
            self.assertEqual((done.code, done.err), (0, ""))
            self.assertEqual(self.stored(name), path.read_bytes())

    def test_stream_optimized_with_data(self):
        self.qemu_img("convert", "-O", "vmdk", "-o", "subformat=streamOptimized", self.qcow2(), self.root / "s.vmdk")
        self.assertEqual(self.feed(VMDK, self.stream(self.root / "s.vmdk")).code, 0)

    def test_a_descriptor_that_names_other_files(self):
        for kind in ("monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"):
            self.refused(self.feed(VMDK, self.stream(self.image("-o", f"subformat={kind}"))), "vmdk")

    def test_a_descriptor_inside_that_names_other_files(self):
        data = self.stream(self.image())
        at = data.index(b"RW 20480 SPARSE")
        for line in (b'RW 20480 FLAT "/etc/shadow" 0', b'RW 1 SPARSE "a"\nRW 1 SPARSE "/etc/shadow"'):
            evil = data[:at] + line + b"\n" + data[at + len(line) + 1 :]
            self.refused(self.feed(VMDK, evil), "does not consist of one sparse extent")

    def test_a_type_with_other_files(self):
        evil = self.stream(self.image()).replace(b'"monolithicSparse"', b'"monolithicFlat"  ')
        self.refused(self.feed(VMDK, evil), "has its data in other files")

    def test_a_parent(self):
        data = self.stream(self.image())
        at = data.index(b"# The Disk Data Base")
        line = b'parentFileNameHint="/etc/shadow"\n'
        self.refused(self.feed(VMDK, data[:at] + line + data[at + len(line) :]), "image has a backing file")

    def test_capacity_zero_makes_qemu_read_the_descriptor(self):
        data = bytearray(self.stream(self.image()))
        data[8 + 12 : 8 + 20] = bytes(8)
        self.refused(self.feed(VMDK, bytes(data)), "unsupported vmdk image")

    def test_other_size_than_the_header(self):
        self.refused(self.feed(VMDK, header(MIB) + self.image().read_bytes()), "the export header says 1048576")


class OrderTests(ImportCase):
    def refused_as(self, text, *words):
        self.refused(self.pvesm("import", *words), text)

    def test_what_is_wrong_first(self):
        self.refused_as("unable to parse volume ID 'x'", "x", "raw+size", "-")
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
            process.wait(WAIT_S)
            connection.close()
            self.assertEqual(process.returncode, 128 + number)
            self.assertEqual(self.tree(), [])

    def test_a_signal_while_nobody_came(self):
        process = self.start("import", *RAW, self.url())
        process.stdout.readline()
        process.terminate()
        process.wait(WAIT_S)
        self.assertFalse(self.socket.exists())

    def killed(self):
        process, _ = self.begin(RAW, header(8 * MIB) + b"x" * 4 * MIB)
        part = self.part()
        process.kill()
        process.wait(WAIT_S)
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
        out, _ = process.communicate(timeout=WAIT_S)
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
            parent = subprocess.Popen(
                ["sh", "-c", f"({words}) & wait"],
                env={**self.env, "MTUNNEL_ATTACHED": "1"},
                stdout=output,
                stderr=output,
            )
            self.until(lambda: b"ready" in Path(output.name).read_bytes())
            connection = self.connect()
            parent.kill()
            parent.wait(WAIT_S)
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
            thread.join(WAIT_S)
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
            thread.join(WAIT_S)
        self.assertEqual(sorted(codes), [0, 255, 255, 255])
