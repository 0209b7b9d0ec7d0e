from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.pve.guestconf import parse_guest_config
from mtunnel_tx.pve.storagecfg import parse_storage_config
from mtunnel_tx.source.inventory import custom_cpu, find_disks, find_obstacles
from mtunnel_tx.source.qemu.live import is_online

STORAGES = parse_storage_config(
    "dir: local\n\tpath /srv\n\nlvmthin: thin\n\tthinpool data\n\nzfspool: tank\n\tpool tank\n\nbtrfs: b\n\tpath /b\n"
)


def disks(text, vmid=100):
    return find_disks(vmid, parse_guest_config(text), STORAGES)


def obstacles(text):
    return list(find_obstacles(100, parse_guest_config(text)))


class DisksTest(SynchronousTestCase):
    def test_every_kind_of_drive(self):
        found, reasons = disks(
            "scsi0: local:100/vm-100-disk-0.raw,size=1G\n"
            "virtio1: local:100/vm-100-disk-1.qcow2\n"
            "efidisk0: thin:vm-100-disk-2,size=4M\n"
            "sata0: tank:vm-100-disk-3\n"
            "ide2: local:100/vm-100-cloudinit.qcow2,media=cdrom\n"
            "unused0: local:100/odd.vmdk\n"
            "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0\n"
        )
        self.assertEqual(reasons, [])
        self.assertEqual(
            [(d.label, d.name, d.format, ",".join(d.streams), d.with_snapshots, d.is_cloudinit) for d in found],
            [
                ("efidisk0", "vm-100-disk-2", "raw", "raw+size", False, False),
                ("ide2", "vm-100-cloudinit.qcow2", "qcow2", "qcow2+sparse,qcow2+size", True, True),
                ("sata0", "vm-100-disk-3", "raw", "zfs", False, False),
                ("scsi0", "vm-100-disk-0.raw", "raw", "raw+sparse,raw+size", False, False),
                ("unused0", "odd.vmdk", "vmdk", "vmdk+sparse,vmdk+size", True, False),
                ("virtio1", "vm-100-disk-1.qcow2", "qcow2", "qcow2+sparse,qcow2+size", True, False),
            ],
        )

    def test_numbers_are_numbers(self):
        """31 disks get their numbers at the target in the order in which their owner counts them."""
        keys = [*(f"scsi{number}" for number in range(31)), "virtio0", "virtio10"]
        lines = [f"{key}: local:100/vm-100-disk-{number}.raw\n" for number, key in enumerate(keys)]
        found, _ = disks("".join(sorted(lines)))
        self.assertEqual([disk.label for disk in found], keys)

    def test_names_at_the_target(self):
        found, _ = disks("scsi0: local:100/vm-100-disk-0.raw\nunused0: local:100/odd.vmdk\n")
        self.assertEqual([d.name_for(100, 300) for d in found], ["vm-300-disk-0.raw", "odd.vmdk"])

    def test_a_volume_named_twice_goes_once(self):
        found, reasons = disks("scsi0: local:100/vm-100-disk-0.raw\nscsi1: local:100/vm-100-disk-0.raw\n")
        self.assertEqual([d.keys for d in found], [("scsi0", "scsi1")])
        self.assertEqual(reasons, [])

    def test_the_state_of_a_tpm_is_exported_also_while_the_vm_runs(self):
        text = "scsi0: local:100/vm-100-disk-0.raw\ntpmstate0: local:100/vm-100-disk-1.raw,size=4M,version=v2.0\n"
        found, reasons = disks(text)
        self.assertEqual(reasons, [])
        self.assertEqual([is_online(parse_guest_config(text), disk) for disk in found], [True, False])

    def test_empty_drives(self):
        self.assertEqual(disks("ide2: none,media=cdrom\nide0: cdrom,media=cdrom\n"), ([], []))

    def test_what_cannot_be_sent(self):
        cases = {
            "ide2: local:iso/debian.iso,media=cdrom": "the CD-ROM drive holds 'local:iso/debian.iso'",
            "scsi0: /dev/sdb": "'/dev/sdb' is a path of this host",
            "scsi0: local:99/base-99-disk-0.raw/100/vm-100-disk-0.qcow2": "is a linked clone",
            "scsi0: thin:base-99-disk-0/vm-100-disk-0": "is a linked clone",
            "scsi0: local:101/vm-101-disk-0.raw": "belongs to VM 101",
            "scsi0: thin:vm-101-disk-0": "belongs to VM 101",
            "scsi0: gone:100/vm-100-disk-0.raw": "storage 'gone' does not exist",
            "scsi0: local:100/base-100-disk-0.raw": "is a base image",
            "scsi0: local:32": "has not been allocated yet",
            "scsi0: local:100/vm-100-disk-0.txt": "unable to parse volume filename",
            "scsi0: local:100/vm-100-disk-0.raw,bogus=1": "cannot be read: ",
        }
        for line, reason in cases.items():
            found, reasons = disks(line + "\n")
            self.assertEqual(found, [], line)
            self.assertEqual(len(reasons), 1, line)
            self.assertTrue(reasons[0].startswith(line.partition(":")[0] + ": "), reasons)
            self.assertIn(reason, reasons[0])

    def test_all_reasons_at_once(self):
        _, reasons = disks("scsi0: /dev/sdb\nscsi1: local:101/vm-101-disk-0.raw\nide2: local:iso/x.iso,media=cdrom\n")
        self.assertEqual(len(reasons), 3)


class ObstaclesTest(SynchronousTestCase):
    def test_nothing(self):
        self.assertEqual(obstacles("name: x\nusb0: spice\nserial0: socket\nnet0: virtio,bridge=vmbr0\n"), [])

    def test_each(self):
        self.assertEqual(obstacles("lock: backup\n"), ["VM 100 is locked (backup)"])
        self.assertEqual(obstacles("template: 1\n"), ["VM 100 is a template"])
        self.assertEqual(obstacles("[old]\nmemory: 1\n\n[older]\nmemory: 1\n"), ["VM 100 has snapshots: old, older"])
        self.assertEqual(obstacles("[PENDING]\nmemory: 1\n"), ["VM 100 has pending changes: memory"])
        self.assertEqual(obstacles("[special:cloudinit]\nmemory: 1\n"), [])

    def test_lines_that_are_no_settings(self):
        self.assertEqual(obstacles("name: x\ngarbage\n"), ["VM 100: line 2 of its config is no setting: garbage"])

    def test_devices_of_the_host(self):
        for line in (
            "hostpci0: 0000:01:00.0", "hostpci1: mapping=gpu", "usb0: host=1234:5678", "usb1: mapping=stick",
            "serial0: /dev/ttyS0", "parallel0: /dev/parport0", "virtiofs0: share", "ivshmem: size=1",
        ):  # fmt: skip
            reasons = obstacles(line + "\n")
            self.assertEqual(len(reasons), 1, line)
            self.assertIn("of this host cannot move", reasons[0])

    def test_text_is_clean(self):
        self.assertEqual(obstacles("lock: a\x1b[31m\n"), ["VM 100 is locked (a?[31m)"])


class CpuTest(SynchronousTestCase):
    def test_custom_models(self):
        for value, name in {"custom-a,flags=+aes": "a", "cputype=custom-b": "b", "host": None}.items():
            self.assertEqual(custom_cpu(parse_guest_config(f"cpu: {value}\n")), name)
        self.assertIsNone(custom_cpu(parse_guest_config("cores: 1\n")))
