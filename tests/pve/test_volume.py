import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.storagecfg import parse_storage_config
from mtunnel_tx.pve.volume import VolumeId, next_disk_name, parse_dir_volume, parse_volume_id

GOLDEN = Path(__file__).parent.parent / "golden" / "pvesm.jsonl"
STORAGE = parse_storage_config("dir: local\n path /srv\n")["local"]
ENDINGS = st.sampled_from([".raw", ".qcow2", ".vmdk", ".subvol", ".img", ""])
PIECES = st.text(st.sampled_from("abz019.-_/\\ \t\n\0é\u2028\ud800:~"), max_size=12)


class VolumeIdTest(SynchronousTestCase):
    def test_parts(self):
        for text, storage, name in (
            ("local:100/vm-100-disk-0.raw", "local", "100/vm-100-disk-0.raw"),
            ("Lv-1.x_y:vm-1", "Lv-1.x_y", "vm-1"),
            ("a1:b:c d", "a1", "b:c d"),
        ):
            volume = parse_volume_id(text)
            self.assertEqual(volume, VolumeId(storage, name))
            self.assertEqual(str(volume), text)

    def test_refused(self):
        for text in (
            "",
            "local",
            "local:",
            ":x",
            "l:x",
            "1l:x",
            "lo cal:x",
            "local-:x",
            "/dev/sda",
            "local:a\nb",
            "local:\0",
        ):
            error = self.assertRaises(TunnelError, parse_volume_id, text)
            self.assertEqual(error.text, f"unable to parse volume ID '{text}'")


class DirVolumeTest(SynchronousTestCase):
    def test_images(self):
        volume = parse_dir_volume("100/vm-100-disk-0.qcow2")
        self.assertEqual((volume.content, volume.vmid, volume.base), ("images", 100, None))
        self.assertEqual((volume.name, volume.format), ("vm-100-disk-0.qcow2", "qcow2"))
        self.assertEqual(volume.file(STORAGE), "/srv/images/100/vm-100-disk-0.qcow2")
        self.assertFalse(volume.is_base)
        self.assertTrue(parse_dir_volume("9/base-9-disk-0.raw").is_base)
        self.assertEqual(parse_dir_volume("100/any.thing.vmdk").format, "vmdk")

    def test_linked_clone(self):
        volume = parse_dir_volume("9/base-9-disk-0.raw/100/vm-100-disk-1.qcow2")
        self.assertEqual((volume.vmid, volume.base), (100, "9/base-9-disk-0.raw"))
        self.assertEqual(volume.file(STORAGE), "/srv/images/100/vm-100-disk-1.qcow2")

    def test_many_parts(self):
        """They would take for ever if the parts of a clone's name could be told in many ways."""
        with self.assertRaises(TunnelError):
            parse_dir_volume("1/" * 20_000 + " x")

    def test_others(self):
        for name, file, vmid, format in (
            ("iso/debian 12.ISO", "template/iso/debian 12.ISO", None, "raw"),
            ("vztmpl/a.tar.zst", "template/cache/a.tar.zst", None, "raw"),
            ("backup/vzdump-qemu-100-2024.vma.zst", "dump/vzdump-qemu-100-2024.vma.zst", 100, "raw"),
            ("backup/mine.tgz", "dump/mine.tgz", None, "raw"),
            ("snippets/hook.sh", "snippets/hook.sh", None, "raw"),
            ("import/a.ova", "import/a.ova", None, "ova"),
            ("rootdir/104", "private/104", 104, "subvol"),
        ):
            volume = parse_dir_volume(name)
            self.assertEqual((volume.content, volume.vmid, volume.format), (name.split("/")[0], vmid, format))
            self.assertEqual(volume.file(STORAGE), f"/srv/{file}")

    def test_bad_file_names(self):
        for name, shown in (
            ("100/../../x.raw", "../../x.raw"),
            ("100/..", ".."),
            ("100/x.img", "x.img"),
            ("100/.raw", ".raw"),
            ("100/a/b.raw", "a/b.raw"),
            ("100/../5/x.raw", ".."),
            ("100/x.raw/5/../../../etc/x.raw", "../../../etc/x.raw"),
            ("100/x.RAW", "x.RAW"),
        ):
            error = self.assertRaises(TunnelError, parse_dir_volume, name)
            self.assertEqual(error.text, f"unable to parse volume filename '{shown}'")

    def test_bad_names(self):
        for name in (
            "", "100", "100/", "100/foo bar.raw", "vm-100-disk-0.raw", "/100/x.raw", "../100/x.raw", "100/a\0.raw",
            "0100/x.raw", "0/x.raw", "1" * 10 + "/x.raw", "٣/x.raw", "100/a\n.raw", "100/x.raw\n", "100/\ud800.raw",
            "100/\x85.raw", "iso/../x.iso", "iso/x.raw", "snippets/..", "snippets/.", "snippets/a/b", "rootdir/x",
            "cats/x", "backup/x.zip", "100/\x1b[2J.raw",
        ):  # fmt: skip
            error = self.assertRaises(TunnelError, parse_dir_volume, name)
            self.assertEqual(error.text, f"unable to parse directory volume name '{name}'")

    @settings(deadline=None, max_examples=100)
    @given(st.builds("{}/{}{}".format, st.sampled_from(["100", "iso", "snippets", "..", "5/a.raw/6"]), PIECES, ENDINGS))
    def test_never_leaves_the_storage(self, name):
        try:
            file = parse_dir_volume(name).file(STORAGE)
        except TunnelError:
            return
        self.assertTrue(file.startswith("/srv/"))
        self.assertNotIn("..", file.split("/"))
        self.assertNotIn("", file.split("/")[1:])
        self.assertNotRegex(file, r"[\x00-\x1f\ud800-\udfff]")

    def test_recordings(self):
        refusals = [
            (row["argv"][2], row["stderr"].strip())
            for row in map(json.loads, GOLDEN.read_text().splitlines())
            if row["stderr"].startswith("unable to parse")
        ]
        self.assertEqual(len(refusals), 2)
        for volid, text in refusals:
            error = self.assertRaises(TunnelError, parse_dir_volume, parse_volume_id(volid).name)
            self.assertEqual(error.text, text)


class NextNameTest(SynchronousTestCase):
    def test_first_free_in_every_format(self):
        taken = ["vm-100-disk-0.raw", "vm-100-disk-1.qcow2", "vm-100-disk-3.raw", "vm-1001-disk-2.raw", "other.raw"]
        self.assertEqual(next_disk_name(100, taken, "raw"), "vm-100-disk-2.raw")
        self.assertEqual(next_disk_name(100, [], "qcow2"), "vm-100-disk-0.qcow2")
        self.assertEqual(next_disk_name(100, ["base-100-disk-0.raw"], "raw"), "vm-100-disk-1.raw")
        self.assertEqual(next_disk_name(100, ["vm-100-disk-01.raw", "vm-100-disk-10.raw"], "raw"), "vm-100-disk-0.raw")

    @settings(deadline=None)
    @given(st.sets(st.integers(0, 30)))
    def test_is_free(self, numbers):
        name = next_disk_name(7, [f"vm-7-disk-{number}.raw" for number in numbers], "raw")
        number = int(name.removesuffix(".raw").rpartition("-")[2])
        self.assertNotIn(number, numbers)
        self.assertEqual(set(range(number)) - numbers, set())
