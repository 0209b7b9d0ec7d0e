"""Disks that become images of another format at the target."""

from twisted.internet.defer import Deferred

from mtunnel_tx.pve.imagefile import ImageFacts
from mtunnel_tx.source.survey import Obstructed
from tests.source.case import CONF, SourceCase

STORAGES = ("GET", "/nodes/localhost/storage")
DIGEST = ("GET", "/nodes/pvetest/qemu/300/mtunneldigest")
OURS = {"version": "9.2.0", "release": "9.2", "repoid": "mtunnel-tx-1.0"}
WITH = "local:100/vm-100-disk-1.qcow2"


class ConvertingCase(SourceCase):
    def setUp(self):
        super().setUp()
        self.offer("dir", converts=1)

    def offer(self, type, **more):
        self.target.http[STORAGES] = [{"storage": "tank", "content": "images", "type": type, **more}]

    async def check(self, **changes):
        """Returns: what stands in the way; what each disk becomes."""
        try:
            report = await Deferred.fromCoroutine(self.migration(**changes).check())
        except Obstructed as error:
            return list(error.obstacles)
        self.remarks = report.remarks
        disks = [row.disk for row in report.disks]
        return {disk.label: (disk.becomes, disk.streams, disk.with_snapshots) for disk in disks}


class PlanTests(ConvertingCase):
    async def test_as_it_is(self):
        kept = {"scsi0": ("raw", ("raw+size",), False), "virtio1": ("qcow2", ("qcow2+size",), True)}
        self.assertEqual(await self.check(), kept)
        self.assertEqual(await self.check(target_format=None), kept)

    async def test_all_of_one_kind(self):
        for format in ("raw", "qcow2"):
            found = await self.check(target_format=format)
            changed = "virtio1" if format == "raw" else "scsi0"
            self.assertEqual(found[changed], (format, ("raw+size",), False))
            self.assertEqual({becomes for becomes, *_ in found.values()}, {format})

    async def test_a_storage_that_has_no_such_images(self):
        """Raw is what every storage has; Proxmox takes that too."""
        self.offer("lvmthin")
        self.assertEqual((await self.check())["virtio1"], ("raw", ("raw+size",), False))
        self.assertEqual(self.remarks, ("virtio1: becomes raw there, from qcow2",))
        only = [f"target: {key} cannot be qcow2: storage 'tank' has only raw" for key in ("scsi0", "virtio1")]
        self.assertEqual(await self.check(target_format="qcow2"), only)

    async def test_a_program_that_does_not_convert(self):
        self.offer("dir")
        why = "the program there makes no qcow2 of a raw stream; only mtunnel-tx's own does"
        reason = f"target: scsi0 cannot go to storage 'tank': {why}"
        self.assertEqual(await self.check(target_format="qcow2"), [reason])
        self.assertEqual((await self.check(target_format="raw"))["virtio1"][0], "raw")

    async def test_what_is_inside_is_lost_by_name(self):
        self.storage.facts[WITH] = ImageFacts(format="qcow2", size_bytes=0, snapshots=("a", "b"), bitmaps=("c",))
        self.assertEqual((await self.check())["virtio1"][0], "qcow2")
        reason = "virtio1: the {} in its image would be lost where it becomes raw: {}; --drop-snapshots lets them go"
        told = [reason.format("snapshots", "a, b"), reason.format("bitmaps", "c")]
        self.assertEqual(await self.check(target_format="raw"), told)
        self.assertEqual((await self.check(target_format="raw", drop_snapshots=True))["virtio1"][0], "raw")

    async def test_what_is_no_disk_of_the_guest_stays(self):
        self.storage.add("100/vm-100-cloudinit.raw", bytes(4096))
        self.storage.add("100/vm-100-disk-5.raw", bytes(4096))
        more = "ide2: local:100/vm-100-cloudinit.raw,media=cdrom\ntpmstate0: local:100/vm-100-disk-5.raw\n"
        self.conf_file.write_text(CONF + more)
        found = await self.check(target_format="qcow2")
        self.assertEqual((found["ide2"][0], found["tpmstate0"][0], found["scsi0"][0]), ("raw", "raw", "qcow2"))


class SentTests(ConvertingCase):
    def imports(self):
        return [command for command in self.target.commands if command["cmd"] == "disk-import"]

    async def test_a_conversion_is_asked_for(self):
        await self.migrate(target_format="qcow2")
        first, second = self.imports()
        sent = {name: first[name] for name in ("volname", "format", "export_formats", "with_snapshots", "convert")}
        asked = {"volname": "vm-300-disk-0", "format": "qcow2", "export_formats": "raw+size", "with_snapshots": 0}
        self.assertEqual(sent, {**asked, "convert": 1})
        self.assertNotIn("convert", second)

    async def test_proxmox_sees_a_raw_disk(self):
        self.offer("lvmthin")
        await self.migrate()
        names = [(command["volname"], command["format"]) for command in self.imports()]
        self.assertEqual(names, [("vm-300-disk-0.raw", "raw"), ("vm-300-disk-1", "raw")])
        self.assertFalse(any("convert" in command for command in self.imports()))
        exported = [(volid, stream, whole) for _, volid, stream, whole in self.storage.children]
        self.assertEqual(exported[1], (WITH, "raw+size", False))

    async def test_the_content_is_compared(self):
        self.target.http["GET", "/version"] = OURS
        asked = []

        def digest(query):
            asked.append(query)
            return {"sha256": self.digests[query["volume"]]}

        self.target.http[DIGEST] = digest
        self.digests = {
            "tank:300/vm-300-disk-0.raw": await self.storage.digest("local:100/vm-100-disk-0.raw"),
            "tank:300/vm-300-disk-1": await self.storage.digest(WITH, content=True),
        }
        await self.migrate(target_format="raw", delete=True)
        self.assertEqual([query.get("content") for query in asked], [None, "1"])
        self.assertIn("virtio1: SHA-256 of its content agrees", self.watcher.said)
        self.assertFalse(self.conf_file.exists())
