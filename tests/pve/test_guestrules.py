"""Rules over a whole config."""

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.guestconf import parse_guest_config
from mtunnel_tx.pve.guestrules import (
    boot_order,
    check_consistency,
    fill_macs,
    is_template,
    iter_drives,
    iter_volumes,
    require_options,
    set_sizes,
    update_line,
)
from mtunnel_tx.pve.nic import format_nic, parse_nic


class Consistency(SynchronousTestCase):
    def assert_refused(self, text: str, reason: str) -> None:
        error = self.assertRaises(TunnelError, check_consistency, parse_guest_config(text))
        self.assertEqual(error.line, reason)

    def test_what_fits(self) -> None:
        for text in (
            "",
            "memory: 512\nballoon: 512\n",
            "boot: order=scsi0;net0\nscsi0: local:100/vm-100-disk-0.raw,format=raw\nnet0: virtio\n",
            "boot:  \n",
            "boot: cdn\n",
            "scsi0: lvm:vm-100-disk-0,format=qcow2\n",
            "scsi0: /srv/a.raw,format=qcow2\n",
            "ide2: local:iso/a.iso,media=cdrom\n",
        ):
            check_consistency(parse_guest_config(text))

    def test_what_does_not(self) -> None:
        too_much = "balloon value too large (must be smaller than assigned memory)"
        self.assert_refused("memory: 512\nballoon: 513\n", too_much)
        self.assert_refused("balloon: 513\n", too_much)
        self.assert_refused("boot: order=scsi0\n", "invalid bootorder: device 'scsi0' does not exist'")
        self.assert_refused(
            "scsi0: local:100/vm-100-disk-0.qcow2,format=raw\n",
            "drive 'scsi0' - volume 'local:100/vm-100-disk-0.qcow2' - 'format=raw' option different"
            " from storage format 'qcow2'",
        )
        self.assert_refused(
            "ide2: local:iso/a.iso\n",
            "400 Parameter verification failed.\nide2: explicit 'media=cdrom' is required for iso images",
        )

    def test_files_that_no_one_checked(self) -> None:
        self.assert_refused("scsi0: ?\n", "unable to parse value of 'scsi0'")
        self.assert_refused("boot: ?\n", "unable to parse value of 'boot'")
        self.assert_refused("memory: ?\n", "unable to parse value of 'memory'")
        self.assertRaises(TunnelError, fill_macs, parse_guest_config("net0: ?\n"), bytes)

    def test_no_options(self) -> None:
        for text in ("", "meta: creation-qemu=9.0\nvmgenid: 1\nlock: create\n", "[special:cloudinit]\na: 1\n"):
            error = self.assertRaises(TunnelError, require_options, parse_guest_config(text))
            self.assertEqual(error.text, "no options specified")
        require_options(parse_guest_config("cores: 1\n"))
        require_options(parse_guest_config("#only a description\n"))


class Facts(SynchronousTestCase):
    def test_drives_and_volumes(self) -> None:
        conf = parse_guest_config(
            "name: x\nscsi1: l1:a\nide2: none,media=cdrom\nunused0: l1:b\nvmstate: l1:s\n"
            "scsi0: l1:100/base-1-x.raw/2/c.raw\n"
        )
        self.assertEqual([key for key, _ in iter_drives(conf)], ["ide2", "scsi0", "scsi1", "unused0"])
        self.assertEqual(
            list(iter_volumes(conf)),
            [("scsi0", "l1:100/base-1-x.raw/2/c.raw"), ("scsi1", "l1:a"), ("unused0", "l1:b"), ("vmstate", "l1:s")],
        )

    def test_templates(self) -> None:
        self.assertTrue(is_template(parse_guest_config("template: yes\n")))
        self.assertFalse(is_template(parse_guest_config("template: 0\n")))
        self.assertFalse(is_template(parse_guest_config("template: ?\n")))

    def test_boot_order(self) -> None:
        self.assertEqual(boot_order(parse_guest_config("boot: order=scsi0;ide2\n")), ("scsi0", "ide2"))
        self.assertEqual(boot_order(parse_guest_config("boot: cd\n")), ())


class Completion(SynchronousTestCase):
    def test_macs(self) -> None:
        conf = parse_guest_config("net0: virtio,bridge=vmbr0\nnet1: firewall=1,model=e1000,macaddr=BC:24:11:00:00:01\n")
        filled = fill_macs(conf, lambda count: bytes(range(0xAA, 0xAA + count)))
        self.assertEqual(
            filled.options,
            {"net0": "virtio=BC:24:11:AA:AB:AC,bridge=vmbr0", "net1": "e1000=BC:24:11:00:00:01,firewall=1"},
        )
        self.assertEqual(conf.options["net0"], "virtio,bridge=vmbr0")

    def test_nics_are_written_as_proxmox_does(self) -> None:
        text = "virtio=BC:24:11:00:00:01,bridge=vmbr0,firewall=1,tag=5"
        self.assertEqual(format_nic(parse_nic(text)), text)
        self.assertEqual(format_nic(parse_nic("virtio,tag=5")), "virtio,tag=5")

    def test_sizes(self) -> None:
        conf = parse_guest_config(
            "scsi0: size=1G,file=l1:a\nscsi1: l1:b,size=5\nide2: none\nide0: cdrom,size=4M\nunused0: l1:c\n"
        )
        self.assertEqual(
            set_sizes(conf, {"scsi0": 32 << 30, "ide2": 5, "unused0": 7}).options,
            {
                "scsi0": "l1:a,size=32G",
                "scsi1": "l1:b",
                "ide2": "none,media=cdrom",
                "ide0": "cdrom,media=cdrom",
                "unused0": "l1:c",
            },
        )

    def test_update_line(self) -> None:
        conf = parse_guest_config(
            "#two\n#lines\nmemory: 512\ncipassword: secret\ncores: 1\nlock: migrate\nmeta: m\nvmgenid: 1\n"
        )
        self.assertEqual(
            update_line(100, conf), "update VM 100: -cipassword <hidden> -cores 1 -description two?lines -memory 512"
        )
