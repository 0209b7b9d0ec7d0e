"""`mtunnel vm import`: real images of every kind, appliances, libvirt; and what must not be followed."""

import hashlib
import io
import os
import shutil
import struct
import tarfile
from pathlib import Path

from twisted.trial.unittest import SkipTest

from tests.cli.vmcase import ActCase
from tests.guest.ticker import ticker
from tests.guests.samples import LIBVIRT, VMWARE
from tests.patience import wait_for
from tests.processes import run_program, started_process

DISK_BYTES = 4 << 20
CONTENT = ticker().ljust(1 << 20, b"\x55").ljust(DISK_BYTES, b"\0")


class ImportCase(ActCase):
    def setUp(self):
        super().setUp()
        self.raw = self.folder / "disk.raw"
        self.raw.write_bytes(CONTENT)

    def image(self, name, *words):
        """An image with the disk's content, made by qemu-img. Returns: its path."""
        file = self.folder / name
        run_program(["qemu-img", "convert", "-f", "raw", *words, self.raw, file])
        return file

    def content(self, volid):
        """What a guest reads of a volume, which is to be of format qcow2 or raw."""
        file = self.images / volid.partition(":")[2]
        flat = self.folder / "flat"
        run_program(["qemu-img", "convert", "-f", file.suffix[1:], "-O", "raw", file, flat])
        return flat.read_bytes()

    def assert_imported(self, made, key="scsi0"):
        self.assertEqual(self.content(made["volumes"][key]), CONTENT)
        self.assert_nothing_stands()

    async def assert_refused(self, reason, *words):
        self.assertIn(reason, await self.refusal("import", *words))
        self.assert_nothing_is_left()


class Images(ImportCase):
    async def test_a_cd_is_no_disk(self):
        iso = self.folder / "debian.iso"
        iso.write_bytes(CONTENT)
        hint = f"mtunnel vm create NAME --disk 20G --iso {iso}"
        await self.assert_refused(f"{iso}: is a CD image, to install from: {hint}", iso)
        self.assert_imported(await self.act("import", iso, "--image-format", "raw"))

    async def test_firmware_and_tpm(self):
        """Of an image that does not start with a BIOS."""
        if not Path("/usr/share/OVMF/OVMF_VARS_4M.fd").exists():
            raise SkipTest("no OVMF here: UEFI IS NOT TESTED")
        made = await self.act("import", self.raw, "--uefi", "--tpm")
        self.assert_imported(made)
        options = self.conf().options
        self.assertEqual((options["bios"], options["efidisk0"].partition(",")[2]), ("ovmf", "efitype=4m,size=528K"))
        await self.act("import", self.raw, "--secure-boot", "--vmid", "101")
        options = self.conf(101).options
        self.assertEqual((options["machine"], "pre-enrolled-keys=1" in options["efidisk0"]), ("q35", True))

    async def test_every_format(self):
        kinds = {
            "a.qcow2": ["-O", "qcow2", "-c"],
            "b.vmdk": ["-O", "vmdk"],
            "c.vmdk": ["-O", "vmdk", "-o", "subformat=streamOptimized"],
            "d.vmdk": ["-O", "vmdk", "-o", "subformat=monolithicFlat"],
            "e.vmdk": ["-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"],
            "f.vdi": ["-O", "vdi"],
            "g.vhdx": ["-O", "vhdx"],
            "h.vhd": ["-O", "vpc", "-o", "subformat=fixed,force_size=on"],
            "i.img": ["-O", "qcow2"],
        }
        for number, (name, words) in enumerate(kinds.items(), 100):
            made = await self.act("import", self.image(name, *words))
            self.assertEqual((made["vmid"], made["name"]), (number, name[0]))
            self.assert_imported(made)
            drive = f"disks:{number}/vm-{number}-disk-0.qcow2,discard=on,size=4M"
            self.assertEqual(self.conf(number).options["scsi0"], drive)

    async def test_a_raw_one_that_starts_as_another_kind(self):
        """A guest may write what it likes into its own disk."""
        self.raw.write_bytes(b"QFI\xfb" + CONTENT[4:])
        made = await self.act("import", self.raw, "--format", "raw", "--bus", "virtio", "--name", "web")
        self.assertEqual(made["volumes"], {"virtio0": "disks:100/vm-100-disk-0.raw"})
        self.assertEqual(self.content("disks:100/vm-100-disk-0.raw"), self.raw.read_bytes())
        self.assertEqual(self.conf().options["boot"], "order=virtio0;net0")

    async def test_holes_stay_holes(self):
        with self.raw.open("r+b") as file:
            file.truncate(256 << 20)
        made = await self.act("import", self.raw, "--format", "raw")
        file = self.images / made["volumes"]["scsi0"].partition(":")[2]
        self.assertEqual(file.stat().st_size, 256 << 20)
        self.assertLess(file.stat().st_blocks * 512, 8 << 20)

    async def test_what_the_command_line_says_instead(self):
        words = ["--memory", "64M", "--cores", "3", "--net", "none", "--ostype", "win10", "--set", "onboot=1"]
        await self.act("import", self.raw, *words)
        options = self.conf().options
        expected = {"memory": "64", "cores": "3", "ostype": "win10", "onboot": "1", "boot": "order=scsi0"}
        self.assertEqual({key: options[key] for key in expected}, expected)
        self.assertNotIn("net0", options)

    async def test_snapshots_are_named(self):
        image = self.image("a.qcow2", "-O", "qcow2")
        run_program(["qemu-img", "snapshot", "-c", "before", image])
        self.assert_imported(await self.act("import", image))
        self.assertEqual(self.notes, [f"{image}: its snapshots are left out: before"])

    async def test_it_boots(self):
        image = self.image("a.vmdk", "-O", "vmdk")
        await self.act("import", image, "--memory", "32", "--set", "vga=serial0", "--start")
        self.assertEqual((await self.act("status", "a"))["status"], "running")
        await self.act("stop", "a")


class Refused(ImportCase):
    async def test_what_is_no_image(self):
        await self.assert_refused("there is no such file", self.folder / "none.qcow2")
        await self.assert_refused("is neither a file nor a block device", "/dev/null")
        os.mkfifo(self.folder / "pipe.raw")
        await self.assert_refused("is neither a file nor a block device", self.folder / "pipe.raw")
        wrong = self.folder / "wrong.qcow2"
        wrong.write_bytes(CONTENT)
        await self.assert_refused("wrong.qcow2: is no qcow2 image", wrong)
        self.image("a.vmdk", "-O", "vmdk").rename(wrong)
        await self.assert_refused("wrong.qcow2: is no qcow2 image, but vmdk", wrong)
        empty = self.folder / "empty.raw"
        empty.touch()
        await self.assert_refused("empty.raw: is empty", empty)

    async def test_what_needs_other_files(self):
        secret = self.folder / "secret"
        secret.write_bytes(CONTENT)
        overlay = self.folder / "o.qcow2"
        backed = ["-b", secret, "-F", "raw"]
        run_program(["qemu-img", "create", "-q", "-f", "qcow2", *backed, overlay])
        await self.assert_refused(f"image has a backing file '{secret}'", overlay)
        data = ["-o", f"data_file={self.folder}/d.raw", overlay, "4M"]
        run_program(["qemu-img", "create", "-q", "-f", "qcow2", *data])
        await self.assert_refused("image has an external data file", overlay)
        # Its header says that it is encrypted; to make one takes qemu-img a benchmark of this machine.
        locked = self.image("l.qcow2", "-O", "qcow2")
        with locked.open("r+b") as file:
            file.seek(32)
            file.write(struct.pack(">I", 2))
        await self.assert_refused("image is encrypted", locked)

    async def test_a_vmdk_that_names_files_elsewhere(self):
        (self.folder / "sub").mkdir()
        (self.folder / "sub" / "x.raw").write_bytes(CONTENT)
        (self.folder / "link.raw").symlink_to("/etc/passwd")
        inner = self.folder / "inner.vmdk"
        inner.write_bytes(struct.pack("<4sIIQ", b"KDMV", 1, 3, 0).ljust(DISK_BYTES, b"\0"))
        for kind, name in (
            ("FLAT", "/etc/passwd"),
            ("FLAT", "sub/x.raw"),
            ("FLAT", "link.raw"),
            ("FLAT", "nbd:localhost:1"),
            ("FLAT", ".."),
            ("SPARSE", "inner.vmdk"),
            ("SPARSE", "disk.raw"),
            ("VMFSRAW", "disk.raw"),
        ):
            text = f'# Disk DescriptorFile\nversion=1\nCID=1\ncreateType="x"\nRW 8192 {kind} "{name}" 0\n'
            (self.folder / "evil.vmdk").write_text(text)
            await self.assert_refused(f"'{name}'", self.folder / "evil.vmdk")
        (self.folder / "evil.vmdk").write_text('# Disk DescriptorFile\nparentFileNameHint="disk.vmdk"\n')
        await self.assert_refused("image has a backing file", self.folder / "evil.vmdk")

    async def test_a_difference_of_a_vhd(self):
        image = self.image("a.vhd", "-O", "vpc")
        with image.open("r+b") as file:
            file.seek(60)
            file.write(struct.pack(">I", 4))
        await self.assert_refused("image has a backing file", image)

    async def test_one_that_is_in_use(self):
        """Its program writes into it: what was read would be neither of before nor of after."""
        image = self.image("a.qcow2", "-O", "qcow2")
        words = ["qemu-nbd", "-f", "qcow2", "-k", str(self.folder / "nbd"), "--persistent", str(image)]
        process = started_process(self.addCleanup, words)
        wait_for("qemu-nbd", lambda: (self.folder / "nbd").exists() or process.poll() is not None)
        await self.assert_refused("Failed to get shared", image)


class Appliances(ImportCase):
    def setUp(self):
        super().setUp()
        self.vmdk = self.image("web-disk1.vmdk", "-O", "vmdk", "-o", "subformat=streamOptimized")
        self.parts = {"web.ovf": VMWARE.encode(), "web-disk1.vmdk": self.vmdk.read_bytes(), "tools.iso": b"CD"}

    def ova(self, parts=None, kind=tarfile.REGTYPE):
        """An archive of these parts. Returns: its path."""
        file = self.folder / "web.ova"
        with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as archive:
            for name, content in (parts or self.parts).items():
                member = tarfile.TarInfo(name)
                member.size, member.type = len(content), kind if name.endswith("vmdk") else tarfile.REGTYPE
                archive.addfile(member, io.BytesIO(content))
        return file

    def manifest(self, algorithm="sha256"):
        lines = [
            f"{algorithm.upper()}({name})= {hashlib.new(algorithm, content).hexdigest()}\n"
            for name, content in self.parts.items()
        ]
        return "".join(lines).encode()

    async def test_an_ova(self):
        for algorithm in ("sha1", "sha256"):
            parts = {**self.parts, "web.mf": self.manifest(algorithm)}
            made = await self.act("import", self.ova(parts), "--bridge", "VM Network=br0", "--set", "bios=seabios")
            self.assert_imported(made)
        options = self.conf().options
        self.assertEqual(options["scsi1"], "disks:100/vm-100-disk-1.qcow2,discard=on,size=1G")
        self.assertEqual((options["cores"], options["sockets"], options["memory"]), ("2", "2", "1024"))
        self.assertEqual((options["scsihw"], options["ide0"]), ("pvscsi", "none,media=cdrom"))
        self.assertRegex(options["net0"], "^vmxnet3=BC:24:11:.*,bridge=br0$")
        self.assertIn("CD image 'tools.iso' is left out: its drive is empty", self.notes)
        self.assertIn("'VMCI device' (resource type 1) is left out", self.notes)

    async def test_firmware(self):
        if not Path("/usr/share/OVMF/OVMF_VARS_4M.fd").exists():
            raise SkipTest("no OVMF here: UEFI IS NOT TESTED")
        made = await self.act("import", self.ova())
        self.assert_imported(made)
        options = self.conf().options
        self.assertEqual(options["bios"], "ovmf")
        self.assertEqual(options["efidisk0"], "disks:100/vm-100-disk-2.qcow2,efitype=4m,size=528K")
        template = Path("/usr/share/OVMF/OVMF_VARS_4M.fd").read_bytes()
        self.assertEqual(self.content("disks:100/vm-100-disk-2.qcow2"), template)

    async def test_an_ovf_with_its_files_beside_it(self):
        for name, content in {**self.parts, "web.mf": self.manifest()}.items():
            (self.folder / name).write_bytes(content)
        self.assert_imported(await self.act("import", self.folder / "web.ovf", "--set", "bios=seabios"))

    async def test_what_is_no_whole_appliance(self):
        parts = dict(self.parts)
        wrong = {**parts, "web.mf": self.manifest().replace(b"= ", b"= 00")}
        await self.assert_refused("is not what the manifest says", self.ova(wrong))
        missing = {name: content for name, content in parts.items() if name != "web-disk1.vmdk"}
        await self.assert_refused("web.ova: there is no 'web-disk1.vmdk'", self.ova(missing))
        await self.assert_refused("there is no OVF in it", self.ova({"a.vmdk": b""}))
        await self.assert_refused("'../web-disk1.vmdk' is no plain file", self.ova({"../web-disk1.vmdk": b""}))
        await self.assert_refused("is no plain file", self.ova(kind=tarfile.SYMTYPE))
        await self.assert_refused("has several files '*.ovf'", self.ova({**parts, "b.ovf": b""}))
        await self.assert_refused("two with one name", self.doubled())
        cut = self.folder / "cut.ova"
        cut.write_bytes(self.ova().read_bytes()[:20000])
        await self.assert_refused("cut.ova", cut)
        cut.write_bytes(b"garbage" * 1000)
        await self.assert_refused("is no OVA, which is a tar archive", cut)

    def doubled(self):
        file = self.ova()
        with tarfile.open(file, "a") as archive:
            archive.addfile(tarfile.TarInfo("web.ovf"))
        return file


class FromLibvirt(ImportCase):
    def setUp(self):
        super().setUp()
        self.image("mail.qcow2", "-O", "qcow2")
        self.xml = self.folder / "mail.xml"
        self.xml.write_text(LIBVIRT.replace("{folder}", str(self.folder)))

    async def test_a_definition(self):
        made = await self.act("import", "--libvirt", self.xml, "--bridge", "br9")
        self.assertEqual((made["name"], made["volumes"]), ("mail-server", {"virtio0": "disks:100/vm-100-disk-0.qcow2"}))
        self.assert_imported(made, "virtio0")
        options = self.conf().options
        self.assertEqual(options["net0"], "virtio=52:54:00:AA:BB:CC,bridge=br7")
        self.assertEqual(options["net1"], "e1000e=52:54:00:AA:BB:CD,bridge=br9,link_down=1")
        self.assertIn("device 'hostdev' is left out", self.notes)

    async def test_a_disk_that_is_not_there(self):
        (self.folder / "mail.qcow2").unlink()
        await self.assert_refused("mail.qcow2: No such file or directory", "--libvirt", self.xml)

    async def test_by_virsh(self):
        """libvirt's own test driver: real virsh, real definitions, no daemon; only the domain's type is not `kvm`."""
        if (virsh := shutil.which("virsh")) is None:
            raise SkipTest("virsh is not installed: IMPORT FROM A REAL LIBVIRT IS NOT TESTED")
        definition = self.xml.read_text().replace("type='kvm'", "type='test'")
        definition = definition.replace("<hostdev mode='subsystem' type='pci'/>", "")
        running = definition.replace("mail server", "running").replace("4dea22b3", "4dea22b4")
        off = "<test:runstate xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>5</test:runstate></domain>"
        node = self.folder / "node.xml"
        node.write_text(f"<node>{definition.replace('</domain>', off)}{running}</node>")
        wrapper = self.folder / "virsh"
        wrapper.write_text(f"#!/bin/bash\nset -o pipefail\n{virsh} \"$@\" | sed \"s/type='test'/type='kvm'/\"\n")
        wrapper.chmod(0o755)
        path = f"{self.folder}:{os.environ['PATH']}"
        self.patch(os, "environ", {**os.environ, "LIBVIRT_DEFAULT_URI": f"test://{node}", "PATH": path})
        self.renew()
        reason = await self.refusal("import", "--libvirt", "running")
        self.assertEqual(reason, "libvirt's VM 'running' is not off, but: running")
        self.assertIn("failed to get domain", await self.refusal("import", "--libvirt", "nobody"))
        made = await self.act("import", "--libvirt", "mail server", "--memory", "64M")
        self.assert_imported(made, "virtio0")
        self.assertEqual(self.conf().options["net0"], "virtio=52:54:00:AA:BB:CC,bridge=br7")
