"""QEMU's command line: Proxmox's names and places, nobody's options; and QEMU takes what it is given."""

import json
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.cmdline import StartPlan, command_line
from mtunnel_tx.backends.devices import read_host_mtus
from mtunnel_tx.backends.drives import VolumeFile, volumes
from mtunnel_tx.backends.host import QemuHost, check_room
from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.pve.guestconf import GuestConfig, parse_guest_config
from mtunnel_tx.pve.hardware import read_hardware, resolve_machine
from tests.backends.qemucase import FACTS, QemuCase

NEWEST = {"pc-i440fx-7.2", "pc-q35-7.2"}
HOST = QemuHost(
    machines=frozenset({*NEWEST, "pc-i440fx-4.1", "pc-i440fx-6.1", "pc-i440fx-7.0", "pc-i440fx-9.2", "pc-i440fx-10.1"}),
    cpus=frozenset({"kvm64", "qemu64", "max", "host"}),
    cpu_flags=frozenset({"aes", "pcid", "lahf-lm", "sep", "sse4-1", "svm"}),
    has_kvm=False,
    has_vhost_net=False,
    roms=frozenset({"efi-virtio.rom"}),
    nesting="svm",
)


def setup(text, host=HOST, **more):
    hardware = read_hardware(parse_guest_config(text), local=True)
    known = NEWEST if hardware.machine.version is None else HOST.machines
    hardware = replace(hardware, machine=hardware.machine.resolved(known))
    files = {
        key: VolumeFile(path=f"/images/{drive.volume.rpartition('/')[2]}", is_device=False, direct=True)
        for key, drive in volumes(hardware)
    }
    given = {"vmid": 100, "hardware": hardware, "host": host, "runtime_dir": Path("/run/m"), "files": files}
    return StartPlan(**{**given, **more})


def line(text, **more):
    return command_line(setup(text, **more))


def option(argv, name):
    """Every value of an option."""
    return [argv[index + 1] for index, word in enumerate(argv) if word == name]


def device(argv, id):
    found = [json.loads(value) for value in option(argv, "-device")]
    return next(values for values in found if values.get("id") == id)


def node(argv, name):
    nodes = [json.loads(value) for value in option(argv, "-blockdev")]
    return next(values for values in nodes if values["node-name"] == name)


class Places(SynchronousTestCase):
    """The addresses that a Proxmox node gives its devices."""

    def test_controllers_and_disks(self):
        for hardware, key, controller, place in (
            ("", "scsi0", ("scsihw0", "lsi", "pci.0", "0x5"), {"bus": "scsihw0.0", "scsi-id": 0}),
            ("lsi", "scsi9", ("scsihw1", "lsi", "pci.0", "0x6"), {"bus": "scsihw1.0", "scsi-id": 2}),
            ("lsi", "scsi16", ("scsihw2", "lsi", "pci.4", "0x1"), {"bus": "scsihw2.0", "scsi-id": 2}),
            ("pvscsi", "scsi9", ("scsihw0", "pvscsi", "pci.0", "0x5"), {"bus": "scsihw0.0", "scsi-id": 9}),
            ("megasas", "scsi9", ("scsihw0", "megasas", "pci.0", "0x5"), {"bus": "scsihw0.0", "scsi-id": 0, "lun": 9}),
            ("virtio-scsi-pci", "scsi30", ("scsihw0", "virtio-scsi-pci", "pci.0", "0x5"), {"channel": 0, "lun": 30}),
            ("virtio-scsi-single", "scsi9", ("virtioscsi9", "virtio-scsi-pci", "pci.3", "0xa"), {"lun": 9}),
            ("", "sata3", ("ahci0", "ahci", "pci.0", "0x7"), {"bus": "ahci0.3"}),
            ("", "virtio0", None, {"bus": "pci.0", "addr": "0xa"}),
            ("", "virtio6", None, {"bus": "pci.2", "addr": "0x1"}),
            ("", "virtio15", None, {"bus": "pci.2", "addr": "0xa"}),
            ("", "ide3", None, {"bus": "ide.1", "unit": 1}),
        ):
            text = f"{key}: local:100/a.raw\n" + (f"scsihw: {hardware}\n" if hardware else "")
            argv = line(text)
            found = device(argv, key)
            self.assertEqual({name: found[name] for name in place}, place, key)
            self.assertEqual(found["drive"], f"drive-{key}")
            self.assertEqual(node(argv, f"drive-{key}")["driver"], "raw")
            if controller:
                id, driver, bus, addr = controller
                values = device(argv, id)
                self.assertEqual((values["driver"], values["bus"], values["addr"]), (driver, bus, addr))

    def test_q35_has_its_own(self):
        argv = line("machine: q35\nide1: local:100/a.raw\nvga: virtio\n")
        self.assertEqual((device(argv, "ide1")["bus"], device(argv, "ide1")["unit"]), ("ide.2", 0))
        self.assertEqual(device(argv, "vga")["bus"], "pcie.0")
        self.assertEqual(device(argv, "tablet")["bus"], "ehci.0")
        self.assertEqual(device(argv, "pci.0")["addr"], "1.0")
        self.assertIn("type=pc-q35-7.2,accel=tcg", option(argv, "-machine"))

    def test_the_rest(self):
        argv = line(
            "net0: virtio=A2:C0:43:77:08:A0\nnet5: e1000=A2:C0:43:77:08:A1\nnet6: virtio=A2:C0:43:77:08:A2\n"
            "rng0: source=/dev/urandom\nagent: 1\nwatchdog: i6300esb\n"
        )
        for id, bus, addr in (
            ("net0", "pci.0", "0x12"),
            ("net5", "pci.0", "0x17"),
            ("net6", "pci.1", "0x1"),
            ("qga0", "pci.0", "0x8"),
            ("balloon0", "pci.0", "0x3"),
            ("vga", "pci.0", "0x2"),
            ("uhci", "pci.0", "0x1.0x2"),
        ):
            self.assertEqual((device(argv, id)["bus"], device(argv, id)["addr"]), (bus, addr), id)
        self.assertIn('"rng":"rng0","max-bytes":1024,"period":1000', " ".join(argv))
        self.assertIn('{"driver":"i6300esb","bus":"pci.0","addr":"0x4"}', argv)

    def test_what_changed_with_the_machine_version(self):
        net = "net0: virtio=A2:C0:43:77:08:A0,queues=2\nostype: l26\n"
        old, middle, newer, newest = (
            line(f"{net}machine: pc-i440fx-{version}\n") for version in ("6.1+pve0", "7.0", "9.2+pve1", "10.1")
        )
        self.assertNotIn("free-page-reporting", device(old, "balloon0"))
        self.assertIs(device(middle, "balloon0")["free-page-reporting"], True)
        self.assertNotIn("packed", device(middle, "net0"))
        self.assertEqual(device(middle, "net0")["vectors"], 6)
        self.assertEqual((device(newer, "net0")["packed"], device(newer, "net0")["rx_queue_size"]), (True, 1024))
        self.assertNotIn("PIIX4_PM.disable_s3=1", middle)
        self.assertNotIn("PIIX4_PM.disable_s3=1", line("machine: pc-i440fx-9.2+pve0\n"))
        self.assertIn("PIIX4_PM.disable_s3=1", newer)
        self.assertIn("type=pc-i440fx-9.2,accel=tcg", newer)
        self.assertIn("type=pc-i440fx-10.1,accel=tcg,hpet=off", newest)

    def test_boot_order(self):
        disks = "ide2: none,media=cdrom\nscsi4: local:100/a.raw\nvirtio1: local:100/b.raw\nnet0: virtio\n"
        for boot, expected in (
            ("boot: order=virtio1;net0;ide2\n", {"virtio1": 100, "net0": 101, "ide2": 102, "scsi4": None}),
            ("boot: ndc\nbootdisk: virtio1\n", {"net0": 100, "ide2": 200, "virtio1": 301, "scsi4": None}),
            ("", {"scsi4": 100, "ide2": 200, "net0": 300, "virtio1": None}),
            ("boot:  \n", {"scsi4": None, "ide2": None, "net0": None, "virtio1": None}),
        ):
            argv = line(disks + boot)
            self.assertEqual({key: device(argv, key).get("bootindex") for key in expected}, expected, boot)


class Drives(SynchronousTestCase):
    def test_formats_are_always_said(self):
        for name, driver in (("a.raw", "raw"), ("a.qcow2", "qcow2"), ("a.vmdk", "vmdk"), ("a", "raw")):
            argv = line(f"scsi0: local:100/{name}\n")
            self.assertEqual(node(argv, "drive-scsi0")["driver"], driver)
            self.assertEqual(node(argv, "drive-scsi0")["file"]["driver"], "file")

    def test_a_backing_file_only_where_the_name_has_it(self):
        self.assertIsNone(node(line("scsi0: local:100/a.qcow2\n"), "drive-scsi0")["backing"])
        clone = line("scsi0: local:9/base-9-disk-0.qcow2/100/vm-100-disk-0.qcow2\n")
        self.assertNotIn("backing", node(clone, "drive-scsi0"))

    def test_caches(self):
        for cache, direct, no_flush, write in (
            ("", True, False, "on"),
            (",cache=writeback", False, False, "on"),
            (",cache=writethrough", False, False, "off"),
            (",cache=directsync", True, False, "off"),
            (",cache=unsafe", False, True, "on"),
            (",aio=native,cache=writeback", False, False, "on"),
        ):
            argv = line(f"scsi0: local:100/a.raw{cache}\n")
            found = node(argv, "drive-scsi0")
            self.assertEqual(found["file"]["cache"], {"direct": direct, "no-flush": no_flush}, cache)
            self.assertEqual(device(argv, "scsi0")["write-cache"], write)
            self.assertEqual(found["file"]["aio"], "threads")
        self.assertEqual(node(line("scsi0: local:100/a.raw,aio=native\n"), "drive-scsi0")["file"]["aio"], "native")

    def test_limits(self):
        argv = line("scsi0: local:100/a.raw,mbps_rd=1.5,iops=100,iops_max=200,iops_max_length=3\n")
        (group,) = [json.loads(value) for value in option(argv, "-object")]
        limits = {"bps-read": 1572864, "iops-total": 100, "iops-total-max": 200, "iops-total-max-length": 3}
        self.assertEqual(group["limits"], limits)
        self.assertEqual(node(argv, "drive-scsi0")["throttle-group"], group["id"])

    def test_discard_and_zeroes(self):
        for options, discard, zeroes in (("", "ignore", "on"), (",discard=on", "unmap", "unmap")):
            found = node(line(f"scsi0: local:100/a.raw{options}\n"), "drive-scsi0")
            self.assertEqual((found["discard"], found["detect-zeroes"]), (discard, zeroes))

    def test_a_cdrom_is_read_only_and_raw(self):
        found = node(line("ide2: local:iso/a.qcow2,media=cdrom\n"), "drive-ide2")
        self.assertEqual((found["driver"], found["read-only"]), ("raw", True))

    def test_other_formats_are_refused(self):
        with self.assertRaises(TunnelError) as caught:
            line("scsi0: local:vm-100-disk-0,format=qed\n")
        self.assertEqual(caught.exception.text, "scsi0: format qed cannot be run here")


class Strangers(SynchronousTestCase):
    """What a config says never becomes another option."""

    def test_commas_are_doubled(self):
        argv = line("smbios1: base64=1,serial=YSxi,uuid=7b10d7af-b932-4c66-b2c3-3996152ec465\n")
        uuid = "uuid=7b10d7af-b932-4c66-b2c3-3996152ec465"
        self.assertEqual(option(argv, "-smbios"), [f"type=1,serial=a,,b,{uuid}"])
        folder = line("serial0: socket\n", runtime_dir=Path("/run/a,server=off"))
        self.assertIn("socket,id=serial0,path=/run/a,,server=off/100.serial0,server=on,wait=off", folder)

    def test_control_characters_in_smbios(self):
        with self.assertRaises(TunnelError) as caught:
            line("smbios1: base64=1,serial=Igo=\n")
        self.assertEqual(caught.exception.text, "smbios1: a value has control characters")

    def test_own_arguments_come_last(self):
        self.assertEqual(line("args: -device 'a b' -S\n")[-3:], ["-device", "a b", "-S"])

    def test_host_mtus(self):
        self.assertEqual(read_host_mtus("net0=1500,net1=9000"), {"net0": 1500, "net1": 9000})
        self.assertEqual(read_host_mtus(None), {})
        for text in ("net0", "net0=x", "net0=99999", "eth0=1500", "net0=1500,id=1"):
            self.assertRaises(TunnelError, read_host_mtus, text)

    @settings(max_examples=100, deadline=None)
    @given(
        st.dictionaries(
            st.sampled_from(("name", "scsi0", "net0", "cpu", "machine", "smbios1", "vga", "serial0", "rng0", "boot")),
            st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
            min_size=1,
        )
    )
    def test_any_value_is_refused_or_harmless(self, options):
        """The options that come out are those that a config without them has, whatever the values are."""
        conf = GuestConfig(options=options)
        try:
            hardware = read_hardware(conf)
        except TunnelError:
            return
        if hardware.machine.version is not None:
            return
        files = {key: VolumeFile(path="/a", is_device=False, direct=True) for key, _ in volumes(hardware)}
        hardware = replace(hardware, machine=hardware.machine.resolved(NEWEST))
        argv = command_line(StartPlan(vmid=100, hardware=hardware, host=HOST, runtime_dir=Path("/r"), files=files))
        flags = {word for word in argv if word.startswith("-")}
        known = {
            word
            for word in line(
                "scsi0: local:100/a.raw\nserial0: socket\nrng0: /dev/urandom\nnet0: virtio\nsmbios1: serial=a\n"
            )
            if word.startswith("-")
        }
        self.assertLessEqual(flags, known)
        for value in argv:
            self.assertNotIn("\n", value)


class OldMachines(SynchronousTestCase):
    """What the machine version decides, beyond the table of docs/machines.md."""

    def test_random_numbers(self):
        self.assertEqual(option(line("rng0: source=/dev/urandom\nmachine: pc-i440fx-4.1\n"), "-object"), [])

    def test_many_scsi_disks(self):
        text = "scsi14: local:100/a.raw\nmachine: pc-i440fx-{}\n"
        resolve_machine(read_hardware(parse_guest_config(text.format("4.1+pve2"))), HOST.machines)
        with self.assertRaises(TunnelError) as caught:
            resolve_machine(read_hardware(parse_guest_config(text.format("4.1"))), HOST.machines)
        self.assertIn("scsi14: SCSI disks above scsi13 need machine version 4.1+pve2", caught.exception.text)

    def test_linux_has_the_memory_of_all_its_screens_on_one_card(self):
        globals = option(line("vga: qxl3,memory=32\nostype: l26\n"), "-global")
        self.assertIn(f"qxl-vga.ram_size={3 * 4 * 32 << 20}", globals)
        self.assertIn(f"qxl-vga.vram_size={3 * 2 * 32 << 20}", globals)

    def test_sound(self):
        argv = line("audio0: device=intel-hda\n")
        card, micro, duplex = (device(argv, f"audiodev0{part}") for part in ("", "-codec0", "-codec1"))
        self.assertEqual((card["driver"], card["bus"], card["addr"]), ("intel-hda", "pci.2", "0xc"))
        self.assertEqual((micro["driver"], micro["cad"], micro["audiodev"]), ("hda-micro", 0, "spice-backend0"))
        self.assertEqual((duplex["driver"], duplex["bus"]), ("hda-duplex", "audiodev0.0"))
        self.assertEqual(option(argv, "-audiodev"), ["none,id=spice-backend0"])
        self.assertEqual(device(line("audio0: device=AC97,driver=none\n"), "audiodev0")["addr"], "0xc")

    def test_keyboard(self):
        self.assertEqual(option(line("keyboard: de-ch\n"), "-k"), ["de-ch"])
        self.assertEqual(option(line("keyboard: de-ch\nvga: serial0\nserial0: socket\n"), "-k"), [])


class Room(SynchronousTestCase):
    def read(self, **files):
        meminfo = "MemAvailable: 1048576 kB\nCommitLimit: 2097152 kB\nCommitted_AS: 1572864 kB\n"
        given = {"meminfo": meminfo, "sys/vm/overcommit_memory": "0\n", **files}
        return given.__getitem__

    def test_enough(self):
        check_room(512, self.read())

    def test_too_little(self):
        with self.assertRaises(BackendFailed) as caught:
            check_room(1024, self.read())
        self.assertEqual(caught.exception.text, "not enough available memory: 1152 MiB needed, 1024 MiB there")

    def test_no_overcommitment(self):
        with self.assertRaises(BackendFailed) as caught:
            check_room(512, self.read(**{"sys/vm/overcommit_memory": "2\n"}))
        self.assertIn("memory to be committed", caught.exception.text)


class TakenByQemu(QemuCase):
    """QEMU itself takes every kind of device that we build."""

    async def start(self, *lines):
        host = self.host()
        for name in ("a.raw", "b.raw", "c.raw"):
            host.volumes.make(name)
        text = "\n".join(["memory: 32", "freeze: 1", *lines]) + "\n"
        await host.machines.local_start(100, parse_guest_config(text), self.report)
        self.assertEqual((await host.machines.state(100)).status, "prelaunch")
        await host.machines.stop(100)

    async def test_controllers(self):
        disks = ("scsi0: local:100/a.raw", "scsi1: local:100/b.raw,iothread=1,ssd=1", "scsi30: local:100/c.raw")
        for scsihw in ("lsi", "lsi53c810", "pvscsi", "megasas", "virtio-scsi-pci", "virtio-scsi-single"):
            await self.start(*disks, f"scsihw: {scsihw}")

    async def test_disks_with_every_option(self):
        many = "mbps=10,iops_rd=100,iops_rd_max=200,iops_rd_max_length=2,werror=report,rerror=stop,serial=a%20b"
        for key, options in (
            ("scsi0", "wwn=0x1234567890abcdef,vendor=a b,product=c,ssd=1,ro=1"),
            ("virtio7", "iothread=1,discard=on"),
            ("sata2", "ssd=1,wwn=0x1234567890abcdef"),
            ("ide1", "ssd=1,model=old%20disk"),
        ):
            await self.start(f"{key}: local:100/a.raw,{many},{options}", "machine: q35" if key == "ide1" else "")

    async def test_screens(self):
        for vga in ("std,memory=32", "cirrus", "vmware", "virtio,memory=64", "none", "serial1"):
            await self.start(f"vga: {vga}", "serial1: socket")

    async def test_sound(self):
        for card in ("ich9-intel-hda", "intel-hda,driver=none", "AC97"):
            await self.start(f"audio0: device={card}")
        await self.start("audio0: device=ich9-intel-hda,driver=spice", "machine: q35")
        if (await FACTS.ask()).has_spice:
            await self.start("audio0: device=AC97", "vga: qxl")

    async def test_cards(self):
        models = ("virtio", "e1000", "e1000e", "rtl8139", "vmxnet3", "pcnet", "ne2k_pci", "i82551", "e1000-82545em")
        nics = [f"net{index}: {model}=BC:24:11:00:00:0{index}" for index, model in enumerate(models)]
        await self.start(*nics)
        await self.start(*nics, "machine: pc-i440fx-6.2.pxe")

    async def test_everything_else(self):
        await self.start(
            "machine: q35,enable-s3=1,enable-s4=0",
            "agent: 1",
            "rng0: source=/dev/urandom,max_bytes=0",
            "watchdog: model=i6300esb,action=pause",
            "vmgenid: 1",
            "startdate: 2024-02-03T04:05:06",
            "tdf: 1",
            "acpi: 0",
            "reboot: 0",
            "tablet: 0",
            "keyboard: de-ch",
            "sockets: 2",
            "cores: 2",
            "vcpus: 3",
            "numa: 1",
            "cpu: x86-64-v3,phys-bits=40,hidden=1",
            "ostype: win11",
        )
