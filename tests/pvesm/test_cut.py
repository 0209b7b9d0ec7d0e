"""Image streams that end too early by less than a cluster: to qemu-img alone they are good images."""

import os

from tests.processes import run_program
from tests.pvesm.importing import ImportCase
from tests.pvesm.programs import MIB, header


class CutTests(ImportCase):
    def setUp(self):
        super().setUp()
        self.raw = self.root / "source.raw"
        self.raw.write_bytes(os.urandom(3 * MIB))

    def target(self, format, number=0):
        return f"local:100/vm-100-disk-{number}.{format}", f"{format}+size"

    def converted(self, format, *options) -> bytes:
        path = self.root / f"source.{format}"
        self.qemu_img("convert", "-f", "raw", "-O", format, *options, self.raw, path)
        return path.read_bytes()

    def test_the_last_data(self):
        for format in ("qcow2", "vmdk"):
            image = self.converted(format)
            for missing in (1, 60000):
                done = self.feed(self.target(format), header(3 * MIB) + image[:-missing])
                self.refused(done, f"image is cut short: it ends at {len(image) - missing} of {len(image)} bytes")

    def test_behind_a_snapshot(self):
        self.converted("qcow2")
        path = self.root / "source.qcow2"
        self.qemu_img("snapshot", "-c", "s1", path)
        self._write(path, 100000, b"later")
        image = path.read_bytes()
        self.refused(self.feed(self.target("qcow2"), header(3 * MIB) + image[:-1]), "image is cut short")
        self.assertEqual(self.feed(self.target("qcow2"), header(3 * MIB) + image).code, 0)

    def test_what_only_a_snapshot_has(self):
        path = self.root / "source.qcow2"
        self.qemu_img("create", "-f", "qcow2", path, "10M")
        self._write(path, 0, b"x" * 65536)
        self.qemu_img("snapshot", "-c", "s1", path)
        run_program(["qemu-io", "-f", "qcow2", "-c", "discard 0 64k", path], capture_output=True)
        image = path.read_bytes()
        self.refused(self.feed(self.target("qcow2"), header(10 * MIB) + image[:-1]), "image is cut short")
        self.assertEqual(self.feed(self.target("qcow2"), header(10 * MIB) + image).code, 0)

    def test_compressed_data(self):
        self.raw.write_bytes(b"".join(b"%d\n" % number for number in range(3 * MIB))[: 3 * MIB])
        image = self.converted("qcow2", "-c")
        whole = len(image.rstrip(b"\0"))
        for count in (whole - 20, whole - 600):
            self.refused(self.feed(self.target("qcow2"), header(3 * MIB) + image[:count]), "image is cut short")
        self.assertEqual(self.feed(self.target("qcow2"), header(3 * MIB) + image[:whole]).code, 0)

    def test_compressed_vmdk(self):
        self.raw.write_bytes(b"".join(b"%d\n" % number for number in range(3 * MIB))[: 3 * MIB])
        image = self.converted("vmdk", "-o", "subformat=streamOptimized")
        whole = len(image.rstrip(b"\0"))
        for count in (whole - 1, whole - 20, whole - 600):
            self.refused(
                self.feed(self.target("vmdk"), header(3 * MIB) + image[:count]), "compressed data cannot be read"
            )
        self.assertEqual(self.feed(self.target("vmdk"), header(3 * MIB) + image).code, 0)

    def test_good_images_whose_last_cluster_is_short(self):
        self.raw.write_bytes(os.urandom(3 * MIB - 65024))
        kinds = ("preallocation=metadata", "preallocation=falloc", "cluster_size=2M", "extended_l2=on", "compat=0.10")
        for number, options in enumerate([*(("-o", kind) for kind in kinds), ("-c",)]):
            image = self.converted("qcow2", *options)
            done = self.feed(self.target("qcow2", number), header(3 * MIB - 65024) + image)
            self.assertEqual((done.code, done.err), (0, ""), options)
            self.assertEqual(self.stored(f"vm-100-disk-{number}.qcow2"), image)
