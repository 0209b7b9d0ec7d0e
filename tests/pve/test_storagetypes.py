"""The table of storage types, and how two of them agree on a stream."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.pve.storagetypes import (
    STORAGE_TYPES,
    STREAM_FORMATS,
    Layout,
    Offer,
    StorageType,
    describe_mismatch,
    match_offers,
)
from mtunnel_tx.pve.volume import find_owner

NAMES = st.sampled_from(sorted(STORAGE_TYPES))
IMAGES = st.sampled_from(["raw", "qcow2", "vmdk", "subvol"])


class TableTests(SynchronousTestCase):
    def test_every_row_is_consistent(self):
        for name, row in STORAGE_TYPES.items():
            with self.subTest(name):
                streams = {stream for streams in row.exports.values() for stream in streams} | set(row.imports)
                self.assertLessEqual(streams, STREAM_FORMATS.keys())
                self.assertLessEqual(row.exports.keys(), set(row.formats))
                for stream in row.imports:
                    self.assertTrue(set(STREAM_FORMATS[stream].images) & set(row.formats), stream)
                self.assertTrue(row.formats)

    def test_what_holds_images_can_be_read(self):
        """Of every format but those that a row leaves out."""
        for name, row in STORAGE_TYPES.items():
            if "images" in row.content and name != "iscsidirect":
                self.assertEqual(row.exports.keys(), set(row.formats), name)

    def test_files(self):
        files = {name for name, row in STORAGE_TYPES.items() if row.layout is Layout.FILES}
        self.assertEqual(files, {"dir", "nfs", "cifs", "glusterfs", "cephfs"})


class MatchTests(SynchronousTestCase):
    @given(NAMES, NAMES, IMAGES, st.booleans())
    def test_both_sides_agree_or_the_refusal_names_both(self, source, target, image, with_snapshots):
        offers = STORAGE_TYPES[source].offers(image)
        found = match_offers(offers, STORAGE_TYPES[target], with_snapshots=with_snapshots)
        if found is None:
            text = describe_mismatch(offers, source, target)
            self.assertIn(f"storage type {target} ", text)
            self.assertIn(f"storage type {source} ", text)
            self.assertFalse(
                [offer for offer in offers if STORAGE_TYPES[target].takes(offer, with_snapshots=with_snapshots)]
            )
        else:
            self.assertEqual(found.image, image)
            self.assertIn(found.stream, STORAGE_TYPES[source].exports[image])
            self.assertIn(found.stream, STORAGE_TYPES[target].imports)
            self.assertTrue(STREAM_FORMATS[found.stream].fits(with_snapshots=with_snapshots))

    def test_files_take_what_files_send(self):
        files = [row for row in STORAGE_TYPES.values() if row.layout is Layout.FILES and row.imports]
        for source, target in product(files, files):
            for image in ("raw", "qcow2", "vmdk"):
                found = match_offers(source.offers(image), target, with_snapshots=image != "raw")
                self.assertEqual(found, Offer(f"{image}+sparse", image))

    def test_every_sparse_stream_stands_for_a_dense_one(self):
        """Whoever offers the one offers the other behind it: the target may be Proxmox."""
        for name, row in STORAGE_TYPES.items():
            for streams in (row.imports, *row.exports.values()):
                for place, stream in enumerate(streams):
                    dense = STREAM_FORMATS[stream].dense
                    self.assertTrue(dense is None or dense in streams[place:], (name, stream))
        for stream in STREAM_FORMATS.values():
            if stream.dense is not None:
                other = STREAM_FORMATS[stream.dense]
                self.assertEqual((stream.images, stream.plain, stream.whole), (other.images, other.plain, other.whole))

    def test_raw_goes_between_files_and_blocks(self):
        for source, target in (("dir", "lvmthin"), ("lvmthin", "dir"), ("rbd", "btrfs"), ("nfs", "lvm")):
            found = match_offers(STORAGE_TYPES[source].offers("raw"), STORAGE_TYPES[target], with_snapshots=False)
            self.assertEqual(found, Offer("raw+size", "raw"))

    def test_the_order_is_that_of_the_offers(self):
        target = StorageType(formats=("raw",), imports=("raw+size", "zfs"))
        offers = [Offer("zfs", "raw"), Offer("raw+size", "raw")]
        self.assertEqual(match_offers(offers, target, with_snapshots=False), offers[0])
        self.assertEqual(match_offers(offers[::-1], target, with_snapshots=False), offers[1])

    def test_a_stream_becomes_only_its_own_images(self):
        for pair in (("raw+size", "qcow2"), ("qcow2+size", "raw"), ("tar+size", "raw"), ("x", "raw")):
            for with_snapshots in (False, True):
                found = match_offers([Offer(*pair)], STORAGE_TYPES["dir"], with_snapshots=with_snapshots)
                self.assertIsNone(found, pair)

    def test_another_image_travels_as_a_raw_disk(self):
        for source, image, target, wanted in (
            ("dir", "qcow2", "lvmthin", "raw"),
            ("dir", "vmdk", "dir", "raw"),
            ("lvmthin", "raw", "dir", "qcow2"),
            ("nfs", "qcow2", "dir", "vmdk"),
        ):
            offers = STORAGE_TYPES[source].offers(image, wanted)
            self.assertEqual({(offer.stream.partition("+")[0], offer.image) for offer in offers}, {("raw", wanted)})
            for converts in (False, True):
                found = match_offers(offers, STORAGE_TYPES[target], with_snapshots=False, converts=converts)
                self.assertEqual(found is not None, converts or wanted == "raw", (source, target, converts))
        for wanted in ("qcow2", "vmdk"):
            found = match_offers([Offer("raw+size", wanted)], STORAGE_TYPES["lvm"], with_snapshots=False, converts=True)
            self.assertIsNone(found)

    def test_a_refusal(self):
        text = describe_mismatch(STORAGE_TYPES["dir"].offers("qcow2"), "dir", "lvmthin")
        self.assertEqual(
            text, "storage type lvmthin does not take qcow2 as qcow2+size, which is all that storage type dir can send"
        )


class OwnerTests(SynchronousTestCase):
    def owner(self, type, name):
        found = find_owner(StorageEntry("s", type, {"path": "/s"}), name)
        return found.content, found.vmid, found.named

    def test_files(self):
        self.assertEqual(self.owner("dir", "100/vm-100-disk-0.raw"), ("images", 100, {100}))
        self.assertEqual(self.owner("dir", "100/odd.raw"), ("images", 100, set()))
        self.assertEqual(self.owner("nfs", "101/vm-100-disk-0.raw"), ("images", 101, {100}))
        self.assertEqual(self.owner("dir", "99/odd.raw/100/vm-100-disk-0.raw"), ("images", 100, {99, 100}))
        self.assertEqual(self.owner("dir", "iso/vm-100-x.iso"), ("iso", None, set()))

    def test_blocks(self):
        self.assertEqual(self.owner("lvmthin", "vm-100-disk-0"), ("images", 100, {100}))
        self.assertEqual(self.owner("zfspool", "base-99-disk-0/vm-100-disk-0"), ("images", 100, {99, 100}))
        self.assertEqual(self.owner("zfspool", "basevol-99-disk-0/subvol-100-disk-0"), ("images", 100, {99, 100}))
        self.assertEqual(self.owner("iscsi", "0.0.1.scsi-36"), ("images", None, set()))

    def test_foreign(self):
        entry = StorageEntry("s", "zfspool", {})
        for name, foreign in (
            ("vm-100-disk-0", False),
            ("vm-101-disk-0", True),
            ("base-99-disk-0/vm-100-disk-0", True),
            ("odd", True),
        ):
            self.assertEqual(find_owner(entry, name).is_foreign(100), foreign, name)
