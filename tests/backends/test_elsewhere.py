"""Volumes that would make QEMU open another file: links, and headers that name one."""

import os
from pathlib import Path

from tests.backends.test_storage import StorageCase
from tests.processes import run_program

DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="monolithicFlat"
RW 8 FLAT "{file}" 0
"""


class ElsewhereCase(StorageCase):
    async def refuses(self, volid, reason):
        self.assertEqual(await self.storage.refers_elsewhere(volid), reason)

    async def takes(self, *volids):
        for volid in volids:
            self.assertIsNone(await self.storage.refers_elsewhere(volid))

    def file(self, name: str) -> Path:
        """A file beside the images of VM 100; the folder is made."""
        path = self.images / "100" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class HeaderTests(ElsewhereCase):
    async def test_images_that_stand_alone(self):
        names = ("vm-100-disk-0.qcow2", "vm-100-disk-1.vmdk", "vm-100-disk-2.raw")
        await self.takes(*map(self.qcow2, names))

    async def test_a_backing_file(self):
        volid = self.qcow2("vm-100-disk-0.qcow2", "-b", "/etc/passwd", "-F", "raw")
        await self.refuses(volid, "image has a backing file '/etc/passwd'")

    async def test_a_data_file(self):
        volid = self.qcow2("vm-100-disk-0.qcow2", "-o", f"data_file={self.root}/data")
        await self.refuses(volid, "image has an external data file")

    async def test_a_vmdk_that_is_text(self):
        self.file("vm-100-disk-0.vmdk").write_text(DESCRIPTOR.format(file="/etc/passwd"))
        await self.refuses("local:100/vm-100-disk-0.vmdk", "image is not in a self-contained vmdk format")

    async def test_the_name_tells_the_format(self):
        """QEMU is told it, too: what looks like another one is data."""
        self.file("vm-100-disk-0.raw").write_text(DESCRIPTOR.format(file="/etc/passwd"))
        await self.takes("local:100/vm-100-disk-0.raw")


class InsideTests(ElsewhereCase):
    """What a qcow2 holds beside its disk."""

    async def test_snapshots_and_bitmaps(self):
        volid = self.qcow2("vm-100-disk-0.qcow2")
        file = str(self.file("vm-100-disk-0.qcow2"))
        facts = await self.storage.image_facts(volid)
        self.assertEqual((facts.format, facts.snapshots, facts.bitmaps), ("qcow2", (), ()))
        for words in (["snapshot", "-c", "before", file], ["bitmap", "--add", file, "b0"]):
            run_program(["qemu-img", *words])
        facts = await self.storage.image_facts(volid)
        self.assertEqual((facts.snapshots, facts.bitmaps, facts.elsewhere), (("before",), ("b0",), None))


class CloneTests(ElsewhereCase):
    def setUp(self):
        super().setUp()
        self.base = self.qcow2("base-100-disk-0.qcow2")

    def clone(self, backing):
        self.qcow2("vm-100-disk-1.qcow2", "-b", backing, "-F", "qcow2", "-u")
        return "local:100/base-100-disk-0.qcow2/100/vm-100-disk-1.qcow2"

    async def test_the_base_that_the_name_has(self):
        await self.takes(self.clone("../100/base-100-disk-0.qcow2"))

    async def test_another_base(self):
        await self.refuses(self.clone("/etc/passwd"), "image has a backing file '/etc/passwd'")

    async def test_without_its_base_in_the_name(self):
        self.clone("../100/base-100-disk-0.qcow2")
        reason = "image has a backing file '../100/base-100-disk-0.qcow2'"
        await self.refuses("local:100/vm-100-disk-1.qcow2", reason)

    async def test_a_base_that_leads_elsewhere(self):
        volid = self.clone("../100/base-100-disk-0.qcow2")
        os.link(self.file("base-100-disk-0.qcow2"), self.root / "other")
        reason = f"base volume '{self.base}': volume is a file with another name beside (a hard link)"
        await self.refuses(volid, reason)


class LinkTests(ElsewhereCase):
    def setUp(self):
        super().setUp()
        self.secret = self.root / "secret"
        self.secret.write_bytes(bytes(4096))

    async def test_a_symbolic_link(self):
        for ending in ("raw", "qcow2"):
            self.file(f"vm-100-disk-0.{ending}").symlink_to(self.secret)
            await self.refuses(f"local:100/vm-100-disk-0.{ending}", "volume is a symbolic link")

    async def test_a_hard_link(self):
        os.link(self.secret, self.file("vm-100-disk-0.raw"))
        await self.refuses("local:100/vm-100-disk-0.raw", "volume is a file with another name beside (a hard link)")

    async def test_the_folder_is_a_link(self):
        outside = self.root / "outside"
        outside.mkdir()
        (outside / "vm-100-disk-0.raw").write_bytes(bytes(512))
        self.images.mkdir(parents=True, exist_ok=True)
        (self.images / "100").symlink_to(outside)
        reason = f"folder '{self.images}/100' is a symbolic link, or no folder"
        await self.refuses("local:100/vm-100-disk-0.raw", reason)

    async def test_what_is_no_file(self):
        os.mkfifo(self.file("vm-100-disk-0.raw"))
        self.file("vm-100-disk-1.raw").mkdir()
        for number in (0, 1):
            await self.refuses(f"local:100/vm-100-disk-{number}.raw", "volume is no regular file")

    async def test_nothing(self):
        self.file("x")
        path = self.images / "100/vm-100-disk-0.raw"
        await self.refuses("local:100/vm-100-disk-0.raw", f"unable to open '{path}': No such file or directory")

    async def test_an_iso(self):
        folder = self.root / "local/template/iso"
        folder.mkdir(parents=True)
        (folder / "good.iso").write_bytes(bytes(2048))
        (folder / "bad.iso").symlink_to(self.secret)
        await self.takes("local:iso/good.iso")
        await self.refuses("local:iso/bad.iso", "volume is a symbolic link")
