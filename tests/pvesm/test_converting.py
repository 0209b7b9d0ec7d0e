"""Images that change their format on the way: raw streams in between, and nothing but the guest's data."""

from tests.pvesm.importing import ImportCase
from tests.pvesm.programs import MIB, header

SIZE = 10 * MIB
EDGES = b"begin" + bytes(3 * MIB) + b"middle" + bytes(SIZE - 3 * MIB - 14) + b"end"
CONVERT = ("-convert", "1")


class ConvertedTests(ImportCase):
    def make(self, name, payload=None, stream="raw+size"):
        payload = header(len(EDGES)) + EDGES if payload is None else payload
        return self.pvesm("import", f"local:100/{name}", stream, "-", *CONVERT, given=payload)

    def content(self, name) -> bytes:
        """What a guest reads."""
        flat = self.root / "flat"
        self.qemu_img("convert", "-O", "raw", self.images / "100" / name, flat)
        return flat.read_bytes()

    def test_a_raw_disk_becomes_any_image(self):
        for format in ("qcow2", "vmdk", "raw"):
            name = f"vm-100-disk-0.{format}"
            done = self.make(name)
            self.assertEqual((done.code, done.err), (0, ""))
            self.assertIn(f"successfully imported 'local:100/{name}'", done.out)
            self.assertIn(f"file format: {format}\n", self.qemu_img("info", self.images / "100" / name))
            self.assertEqual(self.content(name), EDGES)
            if format != "raw":
                self.assertIn("No errors were found", self.qemu_img("check", self.images / "100" / name))

    def test_holes_stay_holes(self):
        self.make("vm-100-disk-0.qcow2", header(SIZE) + bytes(SIZE))
        self.assertLess((self.images / "100/vm-100-disk-0.qcow2").stat().st_blocks * 512, MIB)

    def test_an_odd_size_is_rounded_up(self):
        done = self.make("vm-100-disk-0.qcow2", header(1500) + b"x" * 1500)
        self.assertIn("size 1500 is not aligned to granularity 1024, rounding up to 2048", done.out)
        self.assertEqual(self.content("vm-100-disk-0.qcow2"), b"x" * 1500 + bytes(548))

    def test_what_is_cut_short_leaves_nothing(self):
        done = self.make("vm-100-disk-0.qcow2", header(SIZE) + EDGES[:-1])
        self.refused(done, f"import: stream ended after {SIZE - 1} of {SIZE} bytes")

    def test_a_disk_that_is_full_leaves_nothing(self):
        self.mount_small("3m")
        done = self.make("vm-100-disk-0.vmdk", header(SIZE) + b"x" * SIZE)
        self.refused(done, "qemu-nbd cannot write at ")
        self.assertIn("No space left on device", done.err)

    def test_only_raw_streams_change(self):
        for stream, name in (("qcow2+size", "x.raw"), ("vmdk+size", "x.qcow2")):
            done = self.pvesm("import", f"local:100/{name}", stream, "-", "-with-snapshots", "1", *CONVERT)
            self.refused(done, f"cannot import format {stream} into a file of format {name[2:]}")

    def test_an_image_is_sent_as_what_its_guest_reads(self):
        """Sparse, both ways; without the snapshots."""
        for format in ("qcow2", "vmdk"):
            self.make(f"vm-100-disk-0.{format}")
            out = self.root / "stream"
            done = self.pvesm("export", f"local:100/vm-100-disk-0.{format}", "raw+sparse", out)
            self.assertEqual((done.code, done.err), (0, ""))
            self.assertLess(out.stat().st_size, MIB)
            for other in ("raw", "qcow2", "vmdk"):
                name = f"vm-100-{format}.{other}"
                self.assertEqual(self.make(name, out.read_bytes(), "raw+sparse").code, 0)
                self.assertEqual(self.content(name), EDGES)

    def test_a_preallocated_image_is_sparse_too(self):
        image = self.qcow2(snapshots=())
        (self.images / "100").mkdir(parents=True)
        image.rename(self.images / "100/vm-100-disk-0.qcow2")
        out = self.root / "stream"
        self.pvesm("export", "local:100/vm-100-disk-0.qcow2", "raw+sparse", out)
        self.assertLess(out.stat().st_size, MIB)
