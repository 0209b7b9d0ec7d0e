"""alloc, free, path, list, status."""

from mtunnel_tx.pvesm.main import COMMANDS
from tests.pvesm.programs import MIB, PvesmCase


class VolumeCase(PvesmCase):
    def alloc(self, *words):
        return self.pvesm("alloc", *words)

    def fails(self, text, *words, code=255):
        done = self.pvesm(*words)
        self.assertEqual((done.code, done.out), (code, ""))
        self.assertIn(text, done.err)


class AllocTests(VolumeCase):
    def created(self, wanted, *words):
        done = self.alloc("local", "100", *words)
        self.assertEqual((done.code, done.err), (0, ""))
        self.assertEqual(done.out.splitlines()[1:], [f"successfully created 'local:100/{wanted}'"])
        return done.out.splitlines()[0]

    def test_names_and_formats(self):
        self.created("vm-100-disk-0.qcow2", "", "10240", "-format", "qcow2")
        self.created("vm-100-disk-1.raw", "", "10M")
        self.created("vm-100-disk-2.vmdk", "", "1G", "--format=vmdk")
        self.created("vm-100-disk-7.qcow2", "vm-100-disk-7.qcow2", "1M")
        self.created("vm-100-disk-3.raw", "", "4", "-format", "raw")
        self.assertEqual((self.images / "100/vm-100-disk-3.raw").stat().st_size, 4096)

    def test_formatting_line(self):
        line = self.created("vm-100-disk-0.raw", "", "10240")
        self.assertEqual(
            line, f"Formatting '{self.images}/100/vm-100-disk-0.raw', fmt=raw size=10485760 preallocation=off"
        )

    def test_vmdk_bears_its_own_name(self):
        self.created("vm-100-disk-0.vmdk", "", "1M", "-format", "vmdk")
        self.assertIn(b'SPARSE "vm-100-disk-0.vmdk"', (self.images / "100/vm-100-disk-0.vmdk").read_bytes())

    def test_preallocation(self):
        self.assertEqual(self.alloc("eager", "100", "", "1M").code, 0)
        self.assertGreaterEqual((self.root / "eager/images/100/vm-100-disk-0.raw").stat().st_blocks * 512, MIB)
        self.fails("no space left on storage 'eager'", "alloc", "eager", "100", "", "900000G")

    def test_refusals_leave_nothing(self):
        self.fails("storage 'nosuch' does not exist", "alloc", "nosuch", "100", "", "1M")
        self.fails("unsupported format 'subvol'", "alloc", "local", "100", "", "1M", "-format", "subvol")
        self.fails("unable to parse volume filename 'x'", "alloc", "local", "100", "x", "1M", "-format", "raw")
        self.fails(
            "different storage formats (raw != qcow2)", "alloc", "local", "100", "a.qcow2", "1M", "-format", "raw"
        )
        self.fails("illegal name 'a.subvol' - wrong extension", "alloc", "local", "100", "a.subvol", "1M")
        self.fails("refusing an image of 0 bytes", "alloc", "local", "100", "", "0")
        self.fails("type check ('integer') failed - got 'abc'", "alloc", "local", "abc", "", "1M", code=2)
        self.fails("does not look like a valid VM ID", "alloc", "local", "99", "", "1M", code=2)
        self.fails("size: value does not match the regex pattern", "alloc", "local", "100", "", "1.5G", code=2)
        self.assertEqual(self.tree(), [])

    def test_a_taken_name(self):
        self.created("vm-100-disk-0.raw", "vm-100-disk-0.raw", "1M")
        self.fails("vm-100-disk-0.raw' already exists", "alloc", "local", "100", "vm-100-disk-0.raw", "1M")


class ParameterTests(VolumeCase):
    def refused(self, reason, *words, code=2):
        """The whole of what is said: a reason of a format brings a line feed of its own."""
        done = self.pvesm(*words)
        usage = COMMANDS[words[0]].syntax.usage
        text = f"400 Parameter verification failed.\n{reason}\n{usage}\n"
        self.assertEqual((done.code, done.out, done.err), (code, "", text))

    def test_formats(self):
        vmid, storage = "value does not look like a valid VM ID", "storage ID 'st!' contains illegal characters"
        self.refused(f"vmid: invalid format - {vmid}\n", "alloc", "local", "+100", "", "1M")
        self.refused(f"storage: invalid format - {storage}\n", "list", "st!")
        self.refused("content: invalid format - invalid content type 'disks'\n", "list", "local", "-content", "disks")
        self.refused("volume: invalid format - unable to parse volume ID 'local'\n", "path", "local")
        enumeration = "value 'qed' does not have a value in the enumeration 'raw, qcow2, subvol, vmdk'"
        self.refused(f"format: {enumeration}", "alloc", "local", "100", "", "1M", "-format", "qed")
        pattern = "snapshot: value does not match the regex pattern"
        self.refused(pattern, "import", "local:100/a.raw", "raw+size", "-", "-snapshot", "s" * 41)

    def test_delay(self):
        for delay, reason in (
            ("x", "type check ('integer') failed - got 'x'"),
            ("0", "value must have a minimum value of 1"),
            ("31", "value must have a maximum value of 30"),
        ):
            self.refused(f"delay: {reason}", "free", "local:100/vm-100-disk-0.raw", "-delay", delay)
        self.assertEqual(self.pvesm("free", "local:100/vm-100-disk-0.raw", "-delay", "5").code, 0)

    def test_what_only_the_command_finds_out(self):
        """The usage line is there, too."""
        self.refused("volume: no storage specified - incomplete volume ID", "free", "100/a.raw", code=255)
        mismatch = "volume: storage ID mismatch (local != tank)\n"
        self.refused(mismatch, "free", "local:100/a.raw", "-storage", "tank", code=255)
        formats = "format: different storage formats (raw != qcow2)"
        self.refused(formats, "alloc", "local", "100", "a.qcow2", "1M", "-format", "raw", code=255)


class FreeTests(VolumeCase):
    def setUp(self):
        super().setUp()
        self.folder = self.images / "100"
        self.folder.mkdir(parents=True)
        self.first = self.folder / "vm-100-disk-0.raw"
        self.first.touch()

    def test_the_last_one_takes_the_folder(self):
        (self.folder / "vm-100-disk-1.raw").touch()
        done = self.pvesm("free", "local:100/vm-100-disk-0.raw")
        self.assertEqual((done.code, done.out), (0, "Removed volume 'local:100/vm-100-disk-0.raw'\n"))
        self.assertEqual(self.tree(), ["images/100", "images/100/vm-100-disk-1.raw"])
        self.pvesm("free", "local:100/vm-100-disk-1.raw")
        self.assertEqual(self.tree(), [])

    def test_two_storages(self):
        volid = "local:100/vm-100-disk-0.raw"
        self.fails("volume: storage ID mismatch (local != tank)", "free", volid, "-storage", "tank")
        self.assertTrue(self.first.exists())
        self.assertEqual(self.pvesm("free", volid, "-storage", "local").code, 0)

    def test_nothing_there(self):
        for volid in ("local:100/vm-100-disk-5.raw", "local:555/vm-555-disk-5.raw"):
            done = self.pvesm("free", volid)
            self.assertEqual(done.code, 0)
            self.assertIn("does not exist", done.err)

    def test_links_are_not_followed(self):
        (self.root / "precious").write_text("x")
        (self.folder / "vm-100-disk-1.raw").symlink_to(self.root / "precious")
        (self.images / "101").symlink_to(self.folder)
        self.assertEqual(self.pvesm("free", "local:100/vm-100-disk-1.raw").code, 0)
        self.assertTrue((self.root / "precious").exists())
        self.fails("unable to open directory", "free", "local:101/vm-100-disk-0.raw")
        self.assertTrue(self.first.exists())

    def test_iso(self):
        iso = self.root / "local/template/iso/my disk.iso"
        iso.parent.mkdir(parents=True)
        iso.touch()
        self.assertEqual(self.pvesm("free", "local:iso/my disk.iso").code, 0)
        self.assertFalse(iso.exists())

    def test_bases_with_clones_stay(self):
        base = self.folder / "base-100-disk-0.qcow2"
        self.qemu_img("create", "-f", "qcow2", base, "1M")
        (self.images / "101").mkdir()
        clone = self.images / "101/vm-101-disk-0.qcow2"
        self.qemu_img("create", "-f", "qcow2", "-b", "../100/base-100-disk-0.qcow2", "-F", "qcow2", clone, "1M")
        self.fails("is still in use by linked clones", "free", "local:100/base-100-disk-0.qcow2")
        self.assertIn("local:100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2 ", self.pvesm("list", "local").out)
        volid = "local:100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2"
        self.assertEqual(self.pvesm("free", volid).code, 0)
        self.assertEqual(self.pvesm("free", "local:100/base-100-disk-0.qcow2").code, 0)

    def test_traversal(self):
        self.fails("unable to parse volume filename", "free", "local:100/../../x.raw")
        self.fails("unable to parse directory volume name", "free", "local:../x")


class ListTests(VolumeCase):
    def setUp(self):
        super().setUp()
        for vmid in (100, 101):
            (self.images / str(vmid)).mkdir(parents=True)
        self.qcow2("local/images/100/vm-100-disk-0.qcow2", size_bytes=3 * MIB)
        (self.images / "101/vm-101-disk-0.raw").write_bytes(bytes(1024))
        (self.images / "101/vm-101-disk-1.qcow2").write_bytes(b"broken")
        (self.images / "101/notes.txt").touch()
        self.iso = self.root / "local/template/iso"
        self.iso.mkdir(parents=True)
        (self.iso / "my disk.iso").write_bytes(b"12345")

    def lines(self, *options):
        done = self.pvesm("list", "local", *options)
        self.assertEqual((done.code, done.err), (0, ""))
        head, *lines = done.out.splitlines()
        self.assertEqual(head.split(), ["Volid", "Format", "Type", "Size", "VMID"])
        return [" ".join(line.split()) for line in lines]

    def test_all(self):
        self.assertEqual(
            self.lines(),
            [
                "local:100/vm-100-disk-0.qcow2 qcow2 images 3145728 100",
                "local:101/vm-101-disk-0.raw raw images 1024 101",
                "local:101/vm-101-disk-1.qcow2 qcow2 images 6 101",
                "local:iso/my disk.iso iso iso 5",
            ],
        )

    def test_links_are_no_volumes(self):
        """What they lead to is no volume of this storage."""
        before = self.lines()
        secret = self.root / "secret.raw"
        secret.write_bytes(b"1")
        for link in ("vm-101-disk-5.raw", "vm-101-disk-6.qcow2", "subvol-101-disk-7.subvol"):
            (self.images / "101" / link).symlink_to(self.root if link.endswith("subvol") else secret)
        (self.images / "102").symlink_to(self.images / "101")
        (self.iso / "other.iso").symlink_to(secret)
        self.assertEqual(self.lines(), before)

    def test_the_very_table(self):
        """As wide as it has to be; what belongs to a guest comes first, the rest by format."""
        for name in ("snippets/a.yaml", "dump/vzdump-qemu-101-x.vma.zst", "dump/any.tar"):
            path = self.root / "local" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"1")
        self.assertEqual(
            self.pvesm("list", "local").out.splitlines(),
            [
                "Volid                                  Format  Type         Size VMID",
                "local:100/vm-100-disk-0.qcow2          qcow2   images    3145728 100",
                "local:101/vm-101-disk-0.raw            raw     images       1024 101",
                "local:101/vm-101-disk-1.qcow2          qcow2   images          6 101",
                "local:backup/vzdump-qemu-101-x.vma.zst vma.zst backup          1 101",
                "local:iso/my disk.iso                  iso     iso             5",
                "local:snippets/a.yaml                  snippet snippets        1",
                "local:backup/any.tar                   tar     backup          1",
            ],
        )
        self.assertEqual(self.pvesm("list", "local", "-vmid", "300").out, "Volid Format  Type      Size VMID\n")

    def test_one_guest(self):
        self.assertEqual(self.lines("--vmid", "100"), ["local:100/vm-100-disk-0.qcow2 qcow2 images 3145728 100"])
        self.assertEqual(self.lines("--vmid=300"), [])

    def test_one_kind(self):
        self.assertEqual(self.lines("-content", "iso"), ["local:iso/my disk.iso iso iso 5"])

    def test_storage_checks(self):
        self.fails("storage 'off' is disabled", "list", "off")
        self.fails("storage 'nosuch' does not exist", "list", "nosuch")


class PathTests(VolumeCase):
    def test_path(self):
        self.assertEqual(
            self.pvesm("path", "local:100/vm-100-disk-0.raw").out, f"{self.images}/100/vm-100-disk-0.raw\n"
        )
        self.assertEqual(self.pvesm("path", "local:iso/a.iso").out, f"{self.root}/local/template/iso/a.iso\n")

    def test_errors(self):
        self.fails("unable to parse volume ID 'x'", "path", "x", code=2)
        self.fails("mtunnel-pvesm drives type 'dir' only", "path", "tank:vm-100-disk-0")


class StatusTests(VolumeCase):
    def test_all_of_this_node(self):
        done = self.pvesm("status")
        head, *lines = done.out.splitlines()
        self.assertEqual(head.split(), ["Name", "Type", "Status", "Total", "Used", "Available", "%"])
        states = {line.split()[0]: line.split()[2] for line in lines}
        self.assertEqual(
            states,
            {
                "absent": "inactive",
                "eager": "active",
                "local": "active",
                "nodisks": "active",
                "off": "disabled",
                "tank": "inactive",
                "unmounted": "inactive",
            },
        )

    def test_one(self):
        lines = self.pvesm("status", "-storage", "local").out.splitlines()
        self.assertEqual(len(lines), 2)
        total, used, free = map(int, lines[1].split()[3:6])
        self.assertTrue(0 < free <= total)
        self.assertTrue(0 < used <= total)

    def test_some(self):
        def names(*options):
            return [line.split()[0] for line in self.pvesm("status", *options).out.splitlines()[1:]]

        self.assertEqual(names("-content", "iso"), ["local", "nodisks"])
        self.assertEqual(names("-content", "iso,vztmpl"), ["local", "nodisks"])
        self.assertEqual(names("-content", "images;iso"), ["absent", "eager", "local", "nodisks", "tank", "unmounted"])
        self.assertEqual(names("-enabled", "1"), ["absent", "eager", "local", "nodisks", "tank", "unmounted"])
        self.assertIn("off", names("-enabled", "0"))
        self.fails("content: invalid format - invalid content type 'x'", "status", "-content", "iso,x", code=2)


class ProgramTests(VolumeCase):
    def test_unknown_command(self):
        self.fails("ERROR: unknown command 'pvesm foo'", "foo")
        self.fails("ERROR: no command specified")

    def test_help(self):
        self.assertIn("pvesm import <volume> <format> <filename>", self.pvesm("help").out)

    def test_control_characters_are_cleaned(self):
        done = self.pvesm("free", "\033[31m:x")
        self.assertEqual(done.err, "unable to parse volume ID '?[31m:x'\n")

    def test_no_twisted_for_the_sake_of_speed(self):
        done = self.pvesm("status", env={"PYTHONPROFILEIMPORTTIME": "1"})
        self.assertIn("mtunnel_tx.config", done.err)
        self.assertNotIn("twisted", done.err)
