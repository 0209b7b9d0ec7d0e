"""What is read of an OVF and of a libvirt definition, and what is said of the rest."""

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import BadRequest
from mtunnel_tx.guests.blueprint import BlueprintDisk
from mtunnel_tx.guests.libvirt import read_domain
from mtunnel_tx.guests.ovf import read_ovf
from mtunnel_tx.guests.xmltree import DEEPEST, parse_xml
from tests.guests.samples import LIBVIRT, VIRTUALBOX, VMWARE

BOMB = """\
<!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;&lol;&lol;&lol;&lol;&lol;&lol;&lol;">]>
<Envelope>&lol2;</Envelope>"""
FOREIGN = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>'


class Xml(SynchronousTestCase):
    def refused(self, text):
        return self.assertRaises(BadRequest, parse_xml, text.encode(), "the OVF").text

    def test_entities_are_refused(self):
        for text in (BOMB, FOREIGN, '<!DOCTYPE html SYSTEM "http://h/x.dtd"><html/>'):
            self.assertEqual(self.refused(text), "the OVF: XML with a document type is not taken")

    def test_bounds(self):
        self.assertIn("levels", self.refused("<a>" * (DEEPEST + 1)))
        self.assertIn("elements", self.refused(f"<a>{'<b/>' * 100_001}</a>"))
        self.assertIn("is no XML", self.refused("<a>"))
        self.assertIn("is no XML", self.refused("garbage"))


class Ovf(SynchronousTestCase):
    def read(self, text, bridges=None):
        return read_ovf(text.encode(), bridges or {})

    def refused(self, old, new):
        self.assertIn(old, VMWARE)
        return self.assertRaises(BadRequest, self.read, VMWARE.replace(old, new)).text

    def test_vmware(self):
        blueprint = self.read(VMWARE, {"VM Network": "br0"})
        expected = {
            "name": "Web-Server-1",
            "ostype": "l26",
            "bios": "ovmf",
            "cores": "2",
            "sockets": "2",
            "memory": "1024",
            "scsihw": "pvscsi",
            "net0": "vmxnet3,bridge=br0",
            "boot": "order=scsi0;ide0;net0",
            "description": "Made by hand",
        }
        self.assertEqual(dict(blueprint.options), expected)
        disks = (
            BlueprintDisk(key="scsi0", size_bytes=4 << 20, image="web-disk1.vmdk"),
            BlueprintDisk(key="scsi1", size_bytes=1 << 30),
        )
        self.assertEqual((blueprint.disks, dict(blueprint.isos)), (disks, {"ide0": "tools.iso"}))
        notes = ("section 'ProductSection' is left out", "'VMCI device' (resource type 1) is left out")
        self.assertEqual(blueprint.notes, notes)

    def test_virtualbox(self):
        blueprint = self.read(VIRTUALBOX, {"": "br1"})
        expected = {
            "name": "old-box",
            "ostype": "win7",
            "cores": "2",
            "sockets": "1",
            "memory": "512",
            "ide0": "none,media=cdrom",
            "net0": "e1000,bridge=br1",
            "boot": "order=sata0;net0",
        }
        self.assertEqual(dict(blueprint.options), expected)
        self.assertEqual(blueprint.disks, (BlueprintDisk(key="sata0", size_bytes=4 << 20, image="old-disk001.vmdk"),))
        self.assertEqual(
            blueprint.notes,
            (
                "SCSI controller 'LsiLogic' has no like here: its disks are on SATA",
                "network card 'AmazingNic' is e1000 here",
                "network 'NAT' is bridge br1 here",
                "'sound' (resource type 35) is left out",
            ),
        )

    def test_a_network_without_a_bridge(self):
        blueprint = self.read(VMWARE)
        self.assertEqual(blueprint.options["net0"], "vmxnet3")
        self.assertIn("network 'VM Network' is that of the host here", blueprint.notes)

    def test_what_cannot_be_understood_is_refused_by_name(self):
        cases = {
            ("ovf:/disk/vmdisk1", "ovf:/disk/other"): "the OVF has no disk 'ovf:/disk/other'",
            ('ovf:fileRef="file1"', 'ovf:fileRef="nofile"'): "the OVF lists no file 'nofile'",
            ('ovf:size="65536"', 'ovf:compression="gzip"'): "'web-disk1.vmdk' is compressed or in pieces, which is not"
            " taken",
            ('ovf:fileRef="file1"', 'ovf:parentRef="x"'): "disk 'vmdisk1' stands on another one, which is not taken",
            ("byte * 2^20</rasd", "furlongs</rasd"): "the OVF counts in 'furlongs', which is not understood",
            (">1024<", ">-1<"): "the OVF has no number where an amount of memory should be: '-1'",
            (">2</vmw", ">3</vmw"): "the OVF has 4 processors, 3 on each socket",
            ("<VirtualSystem ", "<VirtualSystem><Name>2</Name></VirtualSystem><VirtualSystem "): "the OVF does not"
            " describe one VM alone",
        }
        for (old, new), reason in cases.items():
            self.assertEqual(self.refused(old, new), reason)
        self.assertEqual(
            self.assertRaises(BadRequest, self.read, "<x/>").text, "the OVF does not describe one VM alone"
        )

    def test_huge_numbers_take_no_time(self):
        self.assertEqual(self.read(VMWARE.replace("byte * 2^20</rasd", "byte * 10^99</rasd")).options["cores"], "2")


class Libvirt(SynchronousTestCase):
    def read(self, text=LIBVIRT, bridges=None):
        return read_domain(text.encode(), bridges or {})

    def test_a_domain(self):
        blueprint = self.read()
        expected = {
            "name": "mail-server",
            "description": "Mail",
            "memory": "1024",
            "sockets": "2",
            "cores": "2",
            "machine": "q35",
            "localtime": "1",
            "ostype": "l26",
            "scsihw": "virtio-scsi-pci",
            "sata0": "none,media=cdrom",
            "net0": "virtio=52:54:00:AA:BB:CC,bridge=br7",
            "net1": "e1000e=52:54:00:AA:BB:CD,link_down=1",
            "serial0": "socket",
            "agent": "1",
            "vga": "std",
            "watchdog": "model=i6300esb,action=reset",
            "rng0": "source=/dev/urandom",
            "boot": "order=sata0;virtio0",
        }
        self.assertEqual(dict(blueprint.options), expected)
        self.assertEqual(blueprint.disks, (BlueprintDisk(key="virtio0", image="{folder}/mail.qcow2", format="qcow2"),))
        self.assertEqual(
            set(blueprint.notes),
            {
                "floppy 'fda' on bus 'fdc' is left out",
                "network 'default' is that of the host here",
                "screen 'qxl' is std here",
                "device 'hostdev' is left out",
            },
        )

    def test_a_boot_order_of_its_own(self):
        text = LIBVIRT.replace("<boot dev='cdrom'/><boot dev='hd'/>", "").replace(
            "<source bridge='br7'/>", "<source bridge='br7'/><boot order='1'/>"
        )
        text = text.replace("bus='virtio'/>\n", "bus='virtio'/><boot order='2'/>\n", 1)
        self.assertEqual(self.read(text).options["boot"], "order=net0;virtio0")

    def test_firmware_with_its_variables(self):
        loader = "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>"
        nvram = "<nvram template='x'>/var/lib/libvirt/qemu/nvram/mail_VARS.fd</nvram>"
        blueprint = self.read(LIBVIRT.replace("<boot dev='cdrom'/>", loader + nvram))
        self.assertEqual(blueprint.options["bios"], "ovmf")
        self.assertEqual((blueprint.disks[0].key, blueprint.disks[0].image[-12:]), ("efidisk0", "mail_VARS.fd"))

    def test_what_cannot_be_made_here(self):
        cases = {
            ("type='kvm'", "type='lxc'"): "the libvirt definition is not that of a VM of type kvm or qemu",
            ("arch='x86_64'", "arch='aarch64'"): "the VM is for aarch64 processors",
            ("<source file='{folder}/mail.qcow2'/>", ""): "disk 'vda' of type 'file' is neither a file nor a device of"
            " this host",
            ("type='qcow2'", "type='luks'"): "disk 'vda' has format 'luks', which is not taken",
            (">1048576<", ">much<"): "the libvirt definition has no number where its memory should be: 'much'",
        }
        for (old, new), reason in cases.items():
            self.assertIn(old, LIBVIRT)
            self.assertEqual(self.assertRaises(BadRequest, self.read, LIBVIRT.replace(old, new)).text, reason)
