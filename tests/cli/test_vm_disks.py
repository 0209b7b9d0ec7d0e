"""`mtunnel vm disk add, resize, remove`."""

import json

from tests.cli.slowness import Slowness
from tests.cli.vmcase import CONF, ActCase, VmCase
from tests.processes import run_program

OWN = "disks:100/vm-100-disk-0.raw"


class Disks(ActCase):
    def setUp(self):
        super().setUp()
        self.add_ticker()

    def size(self, name):
        """What qemu-img says of a disk."""
        words = ["qemu-img", "info", "-U", "--output=json", self.images / "100" / name]
        return json.loads(run_program(words, capture_output=True).stdout)["virtual-size"]

    async def test_added(self):
        done = await self.act("disk", "add", "100", "--size", "2G")
        volume = "disks:100/vm-100-disk-1.qcow2"
        self.assertEqual(done, {"vmid": 100, "key": "scsi1", "volume": volume, "size_bytes": 2 << 30})
        self.assertEqual(self.conf().options["scsi1"], f"{volume},discard=on,size=2G")
        image = self.folder / "a.raw"
        image.write_bytes(b"content" * 512)
        done = await self.act("disk", "add", "ticker", "--image", image, "--bus", "virtio", "--format", "raw")
        self.assertEqual((done["key"], done["volume"]), ("virtio0", "disks:100/vm-100-disk-2.raw"))
        self.assertEqual((self.images / "100/vm-100-disk-2.raw").read_bytes().rstrip(b"\0"), b"content" * 512)
        self.assert_nothing_stands()

    async def test_the_first_disk_is_what_it_boots_from(self):
        await self.act("create", "web", "--net", "user")
        await self.act("disk", "add", "web", "--size", "1G", "--bus", "sata")
        self.assertEqual(self.conf(101).options["boot"], "order=sata0;net0")

    async def test_larger(self):
        done = await self.act("disk", "resize", "100", "scsi0", "8M")
        self.assertEqual((done["size_bytes"], self.size("vm-100-disk-0.raw")), (8 << 20, 8 << 20))
        await self.act("disk", "resize", "100", "scsi0", "+8M")
        self.assertEqual(self.conf().options["scsi0"], f"{OWN},size=16M")
        reason = "scsi0: has 16M; a disk is never made smaller"
        self.assertEqual(await self.refusal("disk", "resize", "100", "scsi0", "8M"), reason)
        self.assertEqual(await self.refusal("disk", "resize", "100", "scsi5", "8M"), "VM 100 has no drive 'scsi5'")
        self.assert_nothing_stands()

    async def test_larger_while_it_runs(self):
        await self.act("start", "100")
        await self.act("disk", "resize", "100", "scsi0", "16M")
        self.assertEqual((self.size("vm-100-disk-0.raw"), self.conf().options["scsi0"]), (16 << 20, f"{OWN},size=16M"))
        for words in (["add", "100", "--size", "1G"], ["remove", "100", "scsi0", "--yes"]):
            reason = "VM 100 runs; shut it down first: mtunnel vm shutdown 100"
            self.assertEqual(await self.refusal("disk", *words), reason)
        await self.act("stop", "100")
        self.assert_nothing_stands()
        self.assertEqual(self.files(), ["images/100/vm-100-disk-0.raw"])

    async def test_removed(self):
        (self.guests / "100.conf").write_text(CONF + "boot: order=scsi0;net0\nnet0: virtio\n")
        await self.act("disk", "remove", "100", "scsi0", "--keep")
        options = self.conf().options
        self.assertEqual((options["unused0"], options["boot"], "scsi0" in options), (OWN, "order=net0", False))
        await self.act("disk", "remove", "100", "unused0", "--yes")
        self.assertEqual((self.files(), "unused0" in self.conf().options), ([], False))
        self.assert_nothing_stands()

    async def test_one_that_others_need_stays(self):
        (self.guests / "101.conf").write_text(f"scsi1: {OWN}\n")
        await self.act("disk", "remove", "100", "scsi0", "--yes")
        self.assertEqual(self.files(), ["images/100/vm-100-disk-0.raw"])
        (self.guests / "100.conf").write_text(f"{CONF}\n[before]\nscsi0: {OWN}\n")
        reason = "scsi0: snapshot 'before' needs it"
        self.assertEqual(await self.refusal("disk", "remove", "100", "scsi0", "--yes"), reason)

    async def test_what_is_not_its_own_is_not_touched(self):
        (self.guests / "100.conf").write_text(CONF + "ide2: disks:iso/a.iso,media=cdrom\nscsi1: /etc/passwd\n")
        for key in ("ide2", "scsi1"):
            self.assertIn("is no disk of VM 100", await self.refusal("disk", "remove", "100", key, "--yes"))
            self.assertIn("is no disk of VM 100", await self.refusal("disk", "resize", "100", key, "1G"))


class Killed(Slowness, VmCase):
    def setUp(self):
        super().setUp()
        self.add_ticker()

    def test_while_an_image_is_copied(self):
        (self.folder / "a.raw").write_bytes(b"x" * 4096)
        self.slow("/usr/bin/qemu-img", "convert*")
        self.kill_in("disk", "add", "100", "--image", self.folder / "a.raw")
        (row,) = self.said("list")["guests"]
        note = "'vm disk add' was interrupted; clean up after it: mtunnel vm unlock 100"
        self.assertEqual((row["lock"], row["note"]), ("", note))
        self.assertIn("cleaning up", self.said("unlock", "100")["notes"][0])
        self.assertEqual(self.files(), ["images/100/vm-100-disk-0.raw"])
        self.assert_nothing_stands()
