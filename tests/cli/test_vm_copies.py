"""`mtunnel vm clone` and `destroy`."""

import fcntl
import os
import pty
import signal
import termios

from mtunnel_tx.pve.nic import parse_nic
from tests.cli.slowness import Slowness
from tests.cli.vmcase import CONF, NOBODY, ActCase, VmCase
from tests.patience import wait_for
from tests.processes import run_program, started_process

MAC = "BC:24:11:00:00:01"
MORE = f"""\
net0: virtio={MAC},bridge=br0
onboot: 1
smbios1: uuid=11111111-2222-3333-4444-555555555555,serial=7
vmgenid: 11111111-2222-3333-4444-555555555555
unused0: disks:100/vm-100-disk-9.raw
ide2: disks:iso/a.iso,media=cdrom
parent: before

[before]
memory: 16
snaptime: 1
"""


class Clone(ActCase):
    async def test_a_copy_with_an_identity_of_its_own(self):
        self.add_ticker(conf=CONF + MORE)
        made = await self.act("clone", "100", "copy")
        self.assertEqual(made, {"vmid": 101, "name": "copy", "volumes": {"scsi0": "disks:101/vm-101-disk-0.raw"}})
        one, other = (self.images / f"{vmid}/vm-{vmid}-disk-0.raw" for vmid in (100, 101))
        self.assertEqual(one.read_bytes(), other.read_bytes())
        conf = self.conf(101)
        self.assertEqual((conf.sections, conf.lock), ({}, None))
        self.assertEqual(conf.options["ide2"], "disks:iso/a.iso,media=cdrom")
        self.assertEqual(conf.options.keys() & {"onboot", "unused0", "parent"}, set())
        self.assertNotEqual(parse_nic(conf.options["net0"])["macaddr"], MAC)
        self.assertEqual(conf.options["smbios1"], f"serial=7,uuid={conf.options['vmgenid']}")
        self.assertNotEqual(conf.options["vmgenid"], self.conf().options["vmgenid"])
        self.assert_nothing_stands()

    async def test_it_starts(self):
        self.add_ticker()
        await self.act("clone", "100", "copy", "--start")
        self.assertEqual((await self.act("status", "copy"))["status"], "running")
        await self.act("stop", "copy")

    async def test_one_that_was_moved_away(self):
        """The clone is another VM, and may start; that there are two of these disks then is said."""
        self.add_ticker(conf=f"{CONF}moved: to b as VM 200 on 2026-10-01 12:00 UTC\n")
        await self.act("clone", "100", "copy")
        self.assertEqual(self.notes, [
            "VM 100 was moved to b as VM 200 on 2026-10-01 12:00 UTC: "
            "this makes a second VM of the disks, as they were when it left"
        ])  # fmt: skip
        self.assertNotIn("moved", self.conf(101).options)

    async def test_elsewhere_and_otherwise(self):
        self.add_ticker()
        made = await self.act("clone", "ticker", "copy", "--format", "qcow2", "--vmid", "200")
        self.assertEqual(made["volumes"], {"scsi0": "disks:200/vm-200-disk-0.qcow2"})
        flat = self.folder / "flat"
        run_program(["qemu-img", "convert", "-O", "raw", self.images / "200/vm-200-disk-0.qcow2", flat])
        self.assertEqual(flat.read_bytes(), (self.images / "100/vm-100-disk-0.raw").read_bytes())

    async def test_what_fails_leaves_nothing(self):
        self.add_ticker()
        self.assertEqual(await self.refusal("clone", "100", "copy", "--vmid", "100"), BUSY)
        self.assertIn("does not exist", await self.refusal("clone", "100", "copy", "--storage", "none"))
        (self.guests / "100.conf").write_text(CONF + "scsi1: disks:100/vm-100-disk-1.raw\n")
        self.assertIn("scsi1: there is no volume", await self.refusal("clone", "100", "copy"))
        os.truncate(self.images / "100/vm-100-disk-0.raw", 0)
        self.assertEqual([file.name for file in self.guests.iterdir()], ["100.conf"])
        self.assertEqual(self.files(), ["images/100/vm-100-disk-0.raw"])
        self.assert_nothing_stands()

    async def test_one_that_runs(self):
        self.add_ticker()
        await self.act("start", "100")
        self.assertIn("VM 100 runs", await self.refusal("clone", "100", "copy"))
        await self.act("stop", "100")


BUSY = f"VM 100 is being changed by another command: vm clone, pid {os.getpid()}"


class Destroy(ActCase):
    async def test_all_that_is_its_own(self):
        self.add_ticker(conf=CONF + MORE.replace("scsi0", "scsi0"))
        (self.images / "100/vm-100-disk-9.raw").write_bytes(b"x")
        iso = self.folder / "images/template/iso/a.iso"
        iso.parent.mkdir(parents=True)
        iso.write_bytes(b"CD")
        (self.pve / "firewall").mkdir()
        (self.pve / "firewall/100.fw").write_text("[OPTIONS]\n")
        done = await self.act("destroy", "100", "--yes")
        self.assertEqual(done["volumes"], ("disks:100/vm-100-disk-0.raw", "disks:100/vm-100-disk-9.raw"))
        self.assertEqual((list(self.guests.iterdir()), list((self.pve / "firewall").iterdir())), ([], []))
        self.assertEqual(self.files(), ["template/iso/a.iso"])
        self.assert_nothing_stands()

    async def test_a_volume_that_another_vm_names_stays(self):
        self.add_ticker()
        (self.guests / "101.conf").write_text("scsi0: disks:100/vm-100-disk-0.raw,size=4M\n")
        done = await self.act("destroy", "100", "--yes")
        self.assertEqual(done["kept"], ("disks:100/vm-100-disk-0.raw",))
        self.assertEqual(self.files(), ["images/100/vm-100-disk-0.raw"])

    async def test_what_stays(self):
        self.add_ticker()
        for more, reason in (
            ("lock: migrate\n", f"VM 100 is locked (migrate){NOBODY}"),
            ("protection: 1\n", "VM 100 is protected; allow it first: mtunnel vm set 100 protection=0"),
        ):
            (self.guests / "100.conf").write_text(CONF + more)
            self.assertEqual(await self.refusal("destroy", "100", "--yes"), reason)
        (self.guests / "100.conf").write_text(CONF)
        await self.act("start", "100")
        self.assertIn("VM 100 runs", await self.refusal("destroy", "100", "--yes"))
        await self.act("stop", "100")
        self.assertEqual((self.conf().lock, len(self.files())), (None, 1))


class Asked(Slowness, VmCase):
    def setUp(self):
        super().setUp()
        self.add_ticker()

    def test_nobody_to_ask(self):
        self.add_snapshot()
        remove = ("snapshot", "100", "before", "--remove")
        for words in (("destroy", "100"), ("disk", "remove", "100", "scsi0"), ("rollback", "100", "before"), remove):
            self.assertEqual(self.refused(*words), "--yes is needed where nobody can be asked", words)
        self.assertEqual(self.refused("rollback", "100", "none"), "VM 100 has no snapshot 'none'")
        self.assertEqual(self.refused("disk", "remove", "100", "scsi7"), "VM 100 has no drive 'scsi7'")

    def add_snapshot(self):
        with (self.guests / "100.conf").open("a") as file:
            file.write("\n[before]\nscsi0: disks:100/vm-100-disk-0.raw\nsnaptime: 1700000000\n")

    def answer(self, text, *words):
        """Run it at a terminal, type `text` or send a signal. Returns: its exit status, and what was to be seen."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        process = started_process(
            self.addCleanup,
            self.command(*words),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        seen = b""
        while b"[y/N]" not in seen:
            seen += os.read(ours, 1000)
        if isinstance(text, signal.Signals):
            process.send_signal(text)
        else:
            os.write(ours, text)
        wait_for("its end", lambda: process.poll() is not None)
        return process.returncode, seen.decode()

    def test_at_a_terminal(self):
        status, seen = self.answer(b"n\n", "destroy", "100")
        self.assertEqual(status, 1)
        self.assertIn("VM 100 'ticker' is removed for good, with disks:100/vm-100-disk-0.raw.", seen)
        self.assertTrue((self.guests / "100.conf").exists())
        self.assertEqual(self.answer(b"y\n", "destroy", "100")[0], 0)
        self.assert_nothing_is_left()

    def test_what_else_is_lost(self):
        self.add_snapshot()
        disk = self.answer(b"\n", "disk", "remove", "100", "scsi0")
        self.assertEqual(disk[0], 1)
        self.assertIn("scsi0 of VM 100, disks:100/vm-100-disk-0.raw, is removed for good.", disk[1])
        back = self.answer(b"no\n", "rollback", "100", "before")
        self.assertEqual(back[0], 1)
        self.assertIn("the disks of VM 100 since 2023-11-14 22:13:20 UTC is lost.", back[1])

        snapshot = self.answer(b"no\n", *("snapshot", "100", "before", "--remove"))
        self.assertEqual(snapshot[0], 1)
        self.assertIn("The snapshot 'before' of VM 100, of 2023-11-14 22:13:20 UTC, is removed for good.", snapshot[1])

    def test_a_signal_ends_the_question(self):
        for number in (signal.SIGTERM, signal.SIGHUP):
            self.assertEqual(self.answer(number, "destroy", "100")[0], -number)
            self.assertTrue((self.guests / "100.conf").exists())

    def test_ctrl_c_is_a_no(self):
        self.assertEqual(self.answer(b"\x03", "destroy", "100")[0], 1)
        self.assertTrue((self.guests / "100.conf").exists())

    def test_killed_in_the_middle(self):
        """What was begun is finished: half a VM is of no use."""
        slow = self.slow(f"{self.command()[0]} -P -m mtunnel_tx.pvesm", "free*", name="pvesm")
        self.write(f'commands.pvesm = "{slow}"\n')
        self.kill_in("destroy", "100", "--yes")
        (row,) = self.said("list")["guests"]
        self.assertIn("'vm destroy' was interrupted", row["note"])
        self.write()
        self.assertEqual(self.vm("unlock", "100")[0], 0)
        self.assert_nothing_is_left()
