"""Before each start: no volume with which QEMU would open another file, and none of a storage that is for others."""

from mtunnel_tx.errors import TunnelError
from tests.backends.qemucase import QemuCase, guest
from tests.processes import run_program


class Volumes(QemuCase):
    async def refused(self, host, volid):
        work = host.machines.local_start(100, guest(volid), self.report)
        error = await self.fails(TunnelError, work)
        self.assertEqual(host.files(100), [])
        return error.text

    def image(self, host, name, *options):
        """An image below the host's folder, made by qemu-img. Returns: its volume id."""
        host.volumes.make("secret.raw", b"somebody else's")
        folder = self.folder / "host" / "images"
        run_program(["qemu-img", "create", "-q", *options, str(folder / name), "4M"], cwd=folder)
        return f"local:100/{name}"

    async def test_an_image_with_a_backing_file(self):
        host = self.host()
        volid = self.image(host, "a.qcow2", "-f", "qcow2", "-b", "secret.raw", "-F", "raw")
        text = await self.refused(host, volid)
        self.assertTrue(text.startswith(f"scsi0: '{volid}' cannot be used: "), text)
        self.assertIn("backing file", text)

    async def test_an_image_with_a_data_file(self):
        host = self.host()
        volid = self.image(host, "a.qcow2", "-f", "qcow2", "-o", "data_file=data.raw,data_file_raw=on")
        self.assertIn("data file", await self.refused(host, volid))

    async def test_links(self):
        host = self.host()
        host.volumes.make("secret.raw")
        folder = self.folder / "host" / "images"
        (folder / "soft.raw").symlink_to(folder / "secret.raw")
        (folder / "hard.raw").hardlink_to(folder / "secret.raw")
        for name in ("soft", "hard"):
            self.assertIn("link", await self.refused(host, f"local:100/{name}.raw"))

    async def test_a_storage_for_other_things(self):
        host = self.host()
        host.volumes.make("a.raw")
        text = await self.refused(host, "isos:100/a.raw")
        self.assertEqual(text, "scsi0: storage 'isos' does not support content-type 'images'")
