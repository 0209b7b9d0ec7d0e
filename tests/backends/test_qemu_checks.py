"""What a host's QEMU cannot run is refused before it is started, and nothing that a config says becomes an option."""

from pathlib import Path

from twisted.internet import reactor

from mtunnel_tx.backends.host import HostFacts
from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.pve.guestconf import parse_guest_config
from tests.backends.qemucase import QemuCase, guest


class Checking(QemuCase):
    async def test_what_this_host_cannot_run_is_named(self):
        machines = self.host().machines
        await machines.prepare()
        for line, text in (
            ("machine: pc-i440fx-99.0", "machine: this host's QEMU does not know machine type 'pc-i440fx-99.0'"),
            ("hostpci0: mapping=gpu", "hostpci0: hardware of one host cannot move to another"),
            ("args: -S", "args: arguments for QEMU are not taken from another host"),
            ("net0: virtio,tag=7", "net0: VLANs (tag) need a bridge"),
            ("sockets: 4\ncores: 64", "cores: there are 255 processors at most"),
            ("memory: 64\nsockets: 3\nnuma: 1", "numa: 64 MiB cannot be shared evenly between 3 sockets"),
            (
                "agent: 1,type=isa\n" + "\n".join(f"serial{number}: socket" for number in range(4)),
                "agent: there are four ISA serial ports, and all have their use",
            ),
        ):
            with self.assertRaises(TunnelError) as caught:
                machines.check(parse_guest_config(f"{line}\n"))
            self.assertEqual(caught.exception.text, text)
        machines.check(parse_guest_config("machine: pc-i440fx-7.0+pve0\n"))

    async def test_all_that_it_cannot_run_at_once(self):
        machines = self.host().machines
        await machines.prepare()
        conf = parse_guest_config("machine: q35\ncpu: nosuch\nhostpci0: mapping=gpu\nnet0: virtio,tag=7\nargs: -S\n")
        found = []
        machines.check(conf, lambda key, error: found.append((key, error.text)), "pc-q35-99.0")
        self.assertEqual([key for key, _ in found], ["args", "hostpci0", "net0", "cpu", "machine"])
        self.assertIn("pc-q35-99.0", found[-1][1])
        self.assertEqual(len(conf.options), 5)

    async def test_room_for_a_start(self):
        machines = self.host().machines
        await machines.prepare()
        await machines.check_room(parse_guest_config("memory: 64\n"))
        error = await self.fails(BackendFailed, machines.check_room(parse_guest_config("memory: 4000000\n")))
        self.assertIn("not enough available memory: 4000128 MiB needed", error.text)
        error = await self.fails(TunnelError, machines.check_room(parse_guest_config("net0: virtio,bridge=nosuch\n")))
        self.assertIn("nosuch", error.text)

    async def test_before_qemu_was_asked_machine_types_pass(self):
        conf = parse_guest_config("machine: pc-i440fx-99.0\n")
        nobody = HostFacts(reactor, {"PATH": "/nonexistent"})
        machines = self.host(facts=nobody).machines
        await machines.prepare()
        machines.check(conf)
        error = await self.fails(BackendFailed, machines.local_start(100, conf, self.report))
        self.assertIn("qemu-system-x86_64", error.text)

    async def test_hostile_values_are_refused(self):
        """A file on disk may hold anything: nothing of it becomes an option of QEMU's."""
        host = self.host()
        volid = host.volumes.make("a.raw")
        for line in (
            "name: a,process=b",
            "cpu: host,-device=x",
            "cpu: kvm64 -device x",
            "machine: pc,accel=tcg",
            "machine: type=pc-i440fx-7.2.dump",
            "smbios1: uuid=x,,file=/etc/passwd",
            "vmgenid: auto,x=y",
            "rng0: source=/etc/shadow",
            'net0: virtio=BC:24:11:00:00:01,bridge="x',
            "net0: virtio=BC:24:11:00:00:01,id=net9",
            'scsi1: local:100/"},{"driver":"x.raw,readonly=on',
            "scsi1: /etc/passwd\x01",
            "startdate: now,clock=vm",
            "serial1: /dev/sda",
            "vga: std,id=x",
            "watchdog: model=i6300esb,action=x",
            "numa0: cpus=0-1;x",
            "nosuchkey: 1",
        ):
            work = host.machines.local_start(100, guest(volid, line), self.report)
            error = await self.fails(TunnelError, work)
            key = line.partition(":")[0]
            self.assertIn(key, error.text, line)
            self.assertEqual(host.files(100), [])

    async def test_what_qemu_would_refuse_is_known_before(self):
        """So that a source hears it with `config`, and by the key, not when its disks are there."""
        host = self.host()
        await host.machines.prepare()
        for line in (
            "cpu: Pentium9",
            "cpu: kvm64,flags=+warp",
            "cpu: qemu64,phys-bits=8",
            "vga: cirrus,memory=32",
            "rng0: /dev/urandom,period=0",
            "numa0: cpus=0-7,memory=32\nnuma: 1",
            "numa0: cpus=0,memory=32,hostnodes=0\nnuma: 1",
            "scsi1: local:100/a.raw,mbps=5,mbps_max=1",
            "scsi1: local:100/a.raw,iops_rd=5,iops_rd_max=1",
            "scsi1: local:100/a.raw,queues=1022",
            "scsi1: none",
        ):
            with self.assertRaises(TunnelError) as caught:
                host.machines.check(parse_guest_config(f"memory: 32\n{line}\n"))
            self.assertTrue(caught.exception.text.startswith(f"{line.partition(':')[0]}: "), caught.exception.text)

    async def test_what_qemu_takes_is_not_refused(self):
        host = self.host()
        volid = host.volumes.make("a.raw")
        for text in (
            "cpu: Nehalem,flags=+aes;-vme,phys-bits=40,level=4",
            "cpu: x86-64-v3,flags=+nested-virt",
            "vga: cirrus,memory=8",
            "rng0: /dev/urandom,max_bytes=0,period=0",
            "numa: 1\ncores: 4\nnuma0: cpus=0;2,memory=16\nnuma1: cpus=1;3,memory=16",
            f"scsi1: {volid},mbps=1,mbps_max=1,iops=5,iops_max=9",
            f"scsihw: virtio-scsi-single\nscsi1: {volid},queues=1021",
        ):
            conf = parse_guest_config(f"memory: 32\n{text}\n")
            await host.machines.local_start(100, conf, self.report)
            await host.machines.stop(100)

    async def test_values_that_look_hostile_are_only_values(self):
        """Commas and quotes where they may be go to QEMU as they are."""
        host = self.host()
        volid = host.volumes.make('vm-100-"},{;b-c.raw'.replace(",", ""))
        smbios = "smbios1: base64=1,manufacturer=YSxiPWMsZmlsZT0vZXRjL3Bhc3N3ZA==,serial=Iiwn"
        await host.machines.local_start(100, guest(volid, smbios, "scsi1: none,media=cdrom"), self.report)
        nodes = await host.ask(100, "query-named-block-nodes")
        self.assertIn(volid.rpartition("/")[2], {Path(node["file"]).name for node in nodes})
