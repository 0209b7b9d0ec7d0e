"""Cloud-init drives: made before each start, found by the guest by their label, read by a real ISO reader."""

import shutil

from twisted.trial.unittest import SkipTest

from mtunnel_tx.backends.cloudinit import CloudDrives
from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.guestconf import parse_guest_config
from tests.backends.qemucase import QemuCase, guest, reactor, ticker
from tests.processes import run_program

DRIVE_BYTES = 4 << 20


class Drives(QemuCase):
    def setUp(self):
        super().setUp()
        self.makers = frozenset(name for name in ("xorriso", "genisoimage") if shutil.which(name))
        if not self.makers:
            raise SkipTest("neither xorriso nor genisoimage is installed: NO CLOUD-INIT DRIVE IS TESTED")
        self.here = self.host()
        self.images = self.folder / "host" / "images"
        self.drives = CloudDrives(
            reactor, ReactorThreads(reactor, reactor.getThreadPool()), self.here.volumes, self.here.runtime_dir
        )

    def volume(self, name):
        self.images.mkdir(exist_ok=True)
        run_program(["qemu-img", "create", "-q", "-f", name.rpartition(".")[2], str(self.images / name), "4M"])
        return f"ide2: local:100/{name},media=cdrom"

    async def make(self, *lines, programs=None):
        conf = parse_guest_config("\n".join(lines) + "\n")
        await self.drives.make(100, conf, self.makers if programs is None else programs, self.report)

    def read(self, name, path):
        """A file on the drive, read by another program than the one that wrote it."""
        raw = self.images / "raw.iso"
        run_program(["qemu-img", "convert", "-O", "raw", str(self.images / name), str(raw)])
        self.assertEqual(raw.stat().st_size, DRIVE_BYTES)
        self.label = raw.read_bytes()[0x8028:0x8048].decode().strip()
        out = self.images / "out"
        out.unlink(missing_ok=True)
        run_program(["xorriso", "-osirrox", "on", "-indev", str(raw), "-extract", path, str(out)], capture_output=True)
        return out.read_text()

    async def test_in_raw_and_qcow2(self):
        if "xorriso" not in self.makers:
            raise SkipTest("xorriso is not installed")
        for maker in self.makers:
            for name in ("vm-100-cloudinit.raw", "vm-100-cloudinit.qcow2"):
                await self.make(self.volume(name), "ciuser: me", "name: web", programs=frozenset({maker}))
                self.assertIn('"user": "me"', self.read(name, "/user-data"))
                self.assertEqual(self.label, "cidata")
                self.assertIn("local-hostname", self.read(name, "/meta-data"))
        self.assertEqual(list(self.here.runtime_dir.glob("cloudinit-*")), [])

    async def test_config_drive(self):
        name = "vm-100-cloudinit.raw"
        await self.make(self.volume(name), "citype: configdrive2", "net0: virtio=02:00:00:00:00:01")
        self.assertIn("iface eth0 inet dhcp", self.read(name, "/openstack/content/0000"))
        self.assertEqual(self.label, "config-2")

    async def test_snippets(self):
        (self.images).mkdir(exist_ok=True)
        (self.images / "u.yml").write_text("#cloud-config\nruncmd: [ls]\n")
        name = "vm-100-cloudinit.raw"
        await self.make(self.volume(name), "cicustom: user=local:snippets/u.yml")
        self.assertEqual(self.read(name, "/user-data"), "#cloud-config\nruncmd: [ls]\n")

    async def test_snippets_that_are_none(self):
        drive = self.volume("vm-100-cloudinit.raw")
        (self.images / "link.yml").symlink_to("/etc/hostname")
        for volid, reason in (
            ("local:iso/a.iso", "is no snippet"),
            ("gone:snippets/a", "storage 'gone' does not exist"),
            ("local:snippets/link.yml", "symbolic link"),
        ):
            error = await self.fails(TunnelError, self.make(drive, f"cicustom: user={volid}"))
            self.assertIn("cicustom: user: ", error.text)
            self.assertIn(reason, error.text)

    async def test_without_a_program_the_drive_stays(self):
        await self.make(self.volume("vm-100-cloudinit.raw"), programs=frozenset())
        (line,) = self.reports
        self.assertIn("neither xorriso nor genisoimage", line)

    async def test_a_volume_that_is_too_small(self):
        drive = self.volume("vm-100-cloudinit.raw")
        with (self.images / "vm-100-cloudinit.raw").open("r+b") as file:
            file.truncate(4096)
        self.assertIn("ide2: the image needs", (await self.fails(TunnelError, self.make(drive))).text)

    async def test_a_guest_starts_with_it(self):
        drive = self.volume("vm-100-cloudinit.qcow2")
        conf = guest(self.here.volumes.make("a.raw", ticker()), drive, "ciuser: me")
        await self.here.machines.local_start(100, conf, self.report)
        nodes = {node["node-name"]: node for node in await self.here.ask(100, "query-named-block-nodes")}
        self.assertEqual((nodes["drive-ide2"]["drv"], nodes["drive-ide2"]["ro"]), ("qcow2", True))
        before = (self.images / "vm-100-cloudinit.qcow2").read_bytes()
        error = await self.fails(TunnelError, self.here.machines.local_start(100, conf, self.report))
        self.assertEqual(error.text, "VM 100 already running")
        self.assertEqual((self.images / "vm-100-cloudinit.qcow2").read_bytes(), before)
