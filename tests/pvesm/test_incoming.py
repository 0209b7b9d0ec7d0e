"""Imports that the recording does not have: streams that lie, break off, hurry or never end."""

import contextlib
import os
import resource
import subprocess
from pathlib import Path

from tests.patience import patience_s
from tests.pvesm.importing import ImportCase
from tests.pvesm.programs import MIB, header

QCOW2 = ("local:100/vm-100-disk-0.qcow2", "qcow2+size")
RAW = ("local:100/vm-100-disk-0.raw", "raw+size")
VMDK = ("local:100/vm-100-disk-0.vmdk", "vmdk+size")


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
        _, err = process.communicate(timeout=patience_s())
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

    def test_whole_sectors_keep_their_size(self):
        for size in (512, 1536, MIB + 512):
            name = f"vm-100-disk-{size}.raw"
            done = self.feed((f"local:100/{name}", "raw+size"), header(size) + b"x" * size)
            self.assertEqual((done.code, self.stored(name)), (0, b"x" * size))
            self.assertNotIn("rounding", done.out)

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
        self.mount_small("3m")
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

    def test_formatting_line_is_that_of_an_empty_image(self):
        """Proxmox's pvesm makes one first, with its own options, and then writes the stream over it."""
        path = self.root / "kind.qcow2"
        options = "cluster_size=128k,compression_type=zstd,extended_l2=on,lazy_refcounts=on,refcount_bits=8"
        self.qemu_img("create", "-f", "qcow2", "-o", options, path, "10M")
        done = self.feed(QCOW2, self.stream(path))
        made = self.qemu_img("create", "-f", "qcow2", "-o", "preallocation=metadata", self.root / "empty", "10240K")
        self.assertEqual(done.out.splitlines()[0].partition(", ")[2], made.strip().partition(", ")[2])

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
        self.until_made("create", "-f", "qcow2", *secret, path, "10M")
        self.refused(self.feed(QCOW2, self.stream(path)), "image is encrypted")

    def until_made(self, *words):
        """qemu-img measures the processor for a key, and at times gives up: 'Unable to get accurate CPU usage'."""
        for _ in range(50):
            with contextlib.suppress(subprocess.CalledProcessError):
                return self.qemu_img(*words)
        return self.qemu_img(*words)

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
            self.assertIn(f"{name}', fmt=vmdk size=10485760 compat6=off hwversion=undefined\n", done.out)
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
