"""`mtunnel vm set, show, forget-move`: keys, what waits for the next start, and drives."""

from mtunnel_tx.pve.guestconf import format_guest_config
from mtunnel_tx.pve.moved import mark_moved
from tests.cli.test_main import run
from tests.cli.vmcase import CONF, NOBODY, ActCase


class Set(ActCase):
    def setUp(self):
        super().setUp()
        self.add_ticker()

    async def test_keys_of_a_vm_that_is_off(self):
        done = await self.act("set", "100", "memory=64", "onboot=yes", "description=one", "--delete", "vga")
        self.assertEqual((done["now"], done["pending"]), (("memory", "onboot", "description", "vga"), ()))
        options = self.conf().options
        self.assertEqual((options["memory"], options["onboot"], "vga" in options), ("64", "1", False))
        self.assertEqual(self.conf().description, "one\n")
        shown = await self.act("show", "ticker")
        self.assertEqual((shown["status"], shown["config"], shown["description"]), ("stopped", dict(options), "one\n"))
        await self.act("set", "100", "--delete", "description")
        self.assertEqual(self.conf().description, "")

    async def test_a_vm_that_runs_keeps_what_it_has_until_its_next_start(self):
        await self.act("start", "100")
        done = await self.act("set", "100", "memory=64", "name=other", "--delete", "vga")
        self.assertEqual((done["now"], done["pending"]), (("name",), ("memory", "vga")))
        conf = self.conf()
        self.assertEqual((conf.options["memory"], conf.options["name"]), ("32", "other"))
        self.assertEqual(conf.pending.options, {"memory": "64", "delete": "vga"})
        self.assertEqual((await self.act("show", "100"))["pending"], {"memory": "64", "delete": "vga"})
        # What is set back waits no more.
        await self.act("set", "100", "memory=32")
        self.assertEqual(self.conf().pending.options, {"delete": "vga"})
        await self.act("set", "100", "memory=48", "vga=serial0")
        self.assertEqual(self.conf().pending.options, {"memory": "48"})
        await self.act("stop", "100")
        await self.act("start", "100")
        self.assertEqual((self.conf().options["memory"], self.conf().pending), ("48", None))
        await self.act("stop", "100")

    def test_options_that_are_keys(self):
        for words, meant in (
            (("--memory", "4G"), "; keys are set as KEY=VALUE: memory=4096"),
            (("--memory=512M",), "; keys are set as KEY=VALUE: memory=512"),
            (("--onboot", "yes"), "; keys are set as KEY=VALUE: onboot=1"),
            (("--colour", "red"), ""),
            (("--delte", "vga"), "; did you mean '--delete'?"),
        ):
            status, _, err = run("vm", "set", "100", *words)
            self.assertEqual(status, 2)
            self.assertTrue(err.endswith(f"unrecognized arguments: {words[0].partition('=')[0]}{meant}\n"), err)

    async def test_what_is_refused_changes_nothing(self):
        before = (self.guests / "100.conf").read_text()
        cases = {
            ("colour=red",): "colour: unknown setting 'colour'",
            ("memory",): "'memory' is not KEY=VALUE",
            ("memory=much",): "memory: format error current: type check ('integer') failed - got 'much'",
            ("lock=migrate",): "lock: cannot be set here",
            ("hostpci0=mapping=gpu",): "hostpci0: hardware of one host cannot move to another",
            ("balloon=64",): "balloon value too large (must be smaller than assigned memory)",
            ("boot=order=scsi7",): "invalid bootorder: device 'scsi7' does not exist'",
            ("--delete", "scsi0"): "scsi0: disks are removed by 'mtunnel vm disk remove'",
            ("--delete", "cores"): "cores: is not set",
            ("--delete", "lock"): "lock: cannot be removed here",
            ("name=a", "--delete", "name"): "name: set and removed at once",
            (): "nothing to set: give KEY=VALUE, or --delete KEY",
            ("scsi1=disks:32",): "scsi1: new disks are made by 'mtunnel vm disk add'",
            ("scsi1=disks:100/no.raw",): "scsi1: there is no volume 'disks:100/no.raw'",
            ("scsi1=disks:100/vm-100-disk-0.raw",): "scsi1: scsi0 has volume 'disks:100/vm-100-disk-0.raw' already",
        }
        for words, reason in cases.items():
            self.assertEqual(await self.refusal("set", "100", *words), reason)
        self.assertEqual((self.guests / "100.conf").read_text(), before)
        (self.guests / "100.conf").write_text(CONF + "lock: backup\n")
        self.assertEqual(await self.refusal("set", "100", "cores=2"), f"VM 100 is locked (backup){NOBODY}")

    async def test_a_config_that_was_wrong_before_may_be_mended(self):
        (self.guests / "100.conf").write_text(CONF + "hostpci0: 00:02.0\ncores: 2\n")
        await self.act("set", "100", "cores=3")
        await self.act("set", "100", "--delete", "hostpci0")
        self.assertEqual(self.conf().options["cores"], "3")

    async def test_drives(self):
        iso = self.folder / "images/template/iso/a.iso"
        iso.parent.mkdir(parents=True)
        iso.write_bytes(b"CD")
        await self.act(
            "set", "100", "ide2=disks:iso/a.iso,media=cdrom", "scsi0=disks:100/vm-100-disk-0.raw,cache=unsafe"
        )
        options = self.conf().options
        self.assertEqual(options["ide2"], "disks:iso/a.iso,media=cdrom")
        self.assertEqual(options["scsi0"], "disks:100/vm-100-disk-0.raw,cache=unsafe,size=4M")
        await self.act("set", "100", "ide2=none,media=cdrom")
        self.assertEqual(self.conf().options["ide2"], "none,media=cdrom")
        await self.act("set", "100", "--delete", "ide2")
        (self.images / "100/vm-100-disk-1.raw").write_bytes(bytes(1 << 20))
        await self.act("set", "100", "scsi0=disks:100/vm-100-disk-1.raw")
        options = self.conf().options
        self.assertEqual(options["scsi0"], "disks:100/vm-100-disk-1.raw,size=1M")
        self.assertEqual(options["unused0"], "disks:100/vm-100-disk-0.raw")
        await self.act("set", "100", "scsi1=disks:100/vm-100-disk-0.raw")
        self.assertNotIn("unused0", self.conf().options)

    async def test_a_disk_of_another_vm(self):
        self.add_ticker(101)
        reason = "scsi1: volume 'disks:101/vm-101-disk-0.raw' does not belong to VM 100"
        self.assertEqual(await self.refusal("set", "100", "scsi1=disks:101/vm-101-disk-0.raw"), reason)

    async def test_nothing_is_lost_of_a_config(self):
        """Sections, comments and lines that nobody understands."""
        text = CONF + "something odd\n\n[before]\nmemory: 16\nsnaptime: 1\n"
        (self.guests / "100.conf").write_text(text)
        await self.act("set", "100", "cores=2")
        self.assertEqual(sorted((self.guests / "100.conf").read_text().split()), sorted((text + "cores: 2").split()))
        self.assertEqual((await self.act("show", "100"))["stray_lines"], ["something odd"])


class Moved(ActCase):
    async def test_the_copy_that_stayed_does_not_start(self):
        self.add_ticker()
        conf = mark_moved(self.conf(), host="target.example", vmid=200, at_s=1_800_000_000)
        (self.guests / "100.conf").write_text(format_guest_config(conf))
        moved = "moved to target.example as VM 200 on 2027-01-15 08:00 UTC"
        self.assertEqual((await self.act("list"))["guests"][0]["note"], moved)
        self.assertEqual((await self.act("status", "100"))["note"], moved)
        self.assertIn(f"VM 100 was {moved}", await self.refusal("start", "100"))
        self.assertEqual((await self.act("start", "--onboot"))["guests"], [])
        await self.act("start", "100", "--force")
        self.assertEqual(self.conf(), conf)
        await self.act("stop", "100")
        await self.act("forget-move", "100")
        self.assertEqual(await self.refusal("forget-move", "100"), "VM 100 was not moved")
        await self.act("start", "100")
        await self.act("stop", "100")
