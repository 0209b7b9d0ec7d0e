from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.pve.storagecfg import parse_datacenter_config, parse_storage_config


def parse(text):
    warnings = []
    return parse_storage_config(text, warnings.append), warnings


def entry(*lines, path=" path /srv"):
    found, _ = parse(f"dir: s1\n{path}\n" + "".join(f" {line}\n" for line in lines))
    return found["s1"]


class EntryTest(SynchronousTestCase):
    def test_defaults_of_dir(self):
        storage = entry()
        self.assertEqual((storage.id, storage.type, storage.path), ("s1", "dir", "/srv"))
        self.assertEqual(storage.content, {"images", "rootdir"})
        self.assertEqual(storage.valid_formats, ("raw", "qcow2", "vmdk", "subvol"))
        self.assertEqual(storage.default_format, "raw")
        self.assertTrue(storage.enabled)
        self.assertFalse(storage.shared)
        self.assertIsNone(storage.nodes)
        self.assertIsNone(storage.bwlimit)
        self.assertTrue(storage.on_node("any"))

    def test_values(self):
        storage = entry("content iso,images", "disable", "shared 1", "nodes a,b", "format qcow2", "bwlimit default=5")
        self.assertEqual(storage.content, {"iso", "images"})
        self.assertEqual(storage.nodes, {"a", "b"})
        self.assertEqual((storage.enabled, storage.shared), (False, True))
        self.assertEqual((storage.default_format, storage.bwlimit), ("qcow2", "default=5"))
        self.assertTrue(storage.on_node("a"))
        self.assertFalse(storage.on_node("c"))

    def test_content(self):
        self.assertEqual(entry("content none").content, frozenset())
        self.assertEqual(entry("content images, cats;iso").content, {"images", "iso"})

    def test_folders(self):
        self.assertEqual(entry().folder("images"), "/srv/images")
        self.assertEqual(entry().folder("iso"), "/srv/template/iso")
        self.assertIsNone(entry().folder("cats"))
        moved = entry("content-dirs iso=/isos/,backup=b/c")
        self.assertEqual([moved.folder("iso"), moved.folder("backup")], ["/srv/isos", "/srv/b/c"])
        self.assertEqual(entry(path=" path /").folder("images"), "/images")
        self.assertEqual(entry(path=" path /srv//").path, "/srv")

    def test_mounted(self):
        found, warnings = parse("nfs: share\n server x\n export /y\n content images\n\nlvm: vg\n vgname pve\n")
        self.assertEqual(warnings, [])
        share, group = found.values()
        self.assertEqual(
            (share.path, share.shared, share.valid_formats), ("/mnt/pve/share", True, ("raw", "qcow2", "vmdk"))
        )
        self.assertEqual((group.path, group.shared, group.valid_formats), (None, False, ("raw",)))
        self.assertIsNone(group.folder("images"))

    def test_volume_chains_on_lvm(self):
        found, _ = parse("lvm: vg\n snapshot-as-volume-chain 1\n")
        self.assertEqual(found["vg"].valid_formats, ("raw", "qcow2"))


class SkippedTest(SynchronousTestCase):
    def test_storages(self):
        found, warnings = parse(
            "dir: a\n path /a\n\ncat: s1\n path /a\n\ndir: s2\n\ndir: s3\n path rel\n\ndir: s4\n path /4\n"
        )
        self.assertEqual(list(found), ["s4"])
        self.assertEqual([warning.partition(":")[0] for warning in warnings], ["line 1", "line 4", "line 7", "line 9"])

    def test_keys(self):
        found, warnings = parse("dir: s1\n path /a\n colour red\n disable yes\n format cow\n shared 1\n")
        self.assertEqual(dict(found["s1"].options), {"path": "/a", "shared": "1"})
        self.assertEqual(len(warnings), 3)

    def test_the_same_id_again(self):
        found, warnings = parse("dir: s1\n path /a\n\ndir: s1\n path /b\n")
        self.assertEqual(found["s1"].path, "/b")
        self.assertEqual(len(warnings), 1)

    @settings(deadline=None)
    @given(st.text(st.sampled_from("dir: path/a1\n\t#,=x"), max_size=80))
    def test_any_text(self, text):
        for storage in parse(text)[0].values():
            self.assertTrue(storage.path.startswith("/"))


class DatacenterTest(SynchronousTestCase):
    def test_lines(self):
        text = "#note: x\nkeyboard: de\n\nbwlimit: default=10,migration=5 \nno colon\nUpper: x\nempty:\n"
        self.assertEqual(parse_datacenter_config(text), {"keyboard": "de", "bwlimit": "default=10,migration=5"})
