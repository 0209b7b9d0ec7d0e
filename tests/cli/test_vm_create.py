"""`mtunnel vm create`: what is made, what is refused, and that nothing is left of what fails or is interrupted."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SkipTest

from tests.cli.vmcase import ActCase, VmCase
from tests.patience import patience_s, wait_for
from tests.processes import started_process

SLOW = """\
#!/bin/sh
# Stands in front of mtunnel-pvesm: `alloc` of the second disk makes it, then waits, as a slow storage would.
{python} -P -m mtunnel_tx.pvesm "$@" || exit
case "$*" in *disk-1*) [ "$1" != alloc ] || {{ touch {folder}/waiting; exec sleep 60; }};; esac
"""


class Create(ActCase):
    async def test_a_vm_with_all_it_needs(self):
        iso = self.folder / "debian.iso"
        iso.write_bytes(b"CD" * 4096)
        words = ["--memory", "64M", "--cores", "2", "--disk", "20G", "--disk", "512M", "--iso", iso]
        made = await self.act("create", "web", *words, "--net", "bridge=nobridge")
        volumes = {f"scsi{index}": f"disks:100/vm-100-disk-{index}.qcow2" for index in (0, 1)}
        self.assertEqual(made, {"vmid": 100, "name": "web", "volumes": volumes})
        self.assertIn("there is no bridge 'nobridge' on this host", self.notes[0])
        options = self.conf().options
        expected = {
            "name": "web",
            "memory": "64",
            "cores": "2",
            "boot": "order=scsi0;ide2;net0",
            "scsi0": "disks:100/vm-100-disk-0.qcow2,discard=on,size=20G",
            "scsi1": "disks:100/vm-100-disk-1.qcow2,discard=on,size=512M",
            "ide2": "disks:iso/debian.iso,media=cdrom",
            "scsihw": "virtio-scsi-single",
            "serial0": "socket",
        }
        self.assertEqual({key: options[key] for key in expected}, expected)
        self.assertRegex(options["net0"], r"^virtio=BC:24:11:[0-9A-F:]{8},bridge=nobridge$")
        self.assertNotIn("lock", options)
        self.assertEqual((self.folder / "images/template/iso/debian.iso").read_bytes(), iso.read_bytes())
        self.assert_nothing_stands()

    async def test_a_number_whose_way_out_is_not_over(self):
        """What is left to do for the earlier VM would meet the new one."""
        journal = self.folder / "state" / "journal" / "source-100.jsonl"
        journal.parent.mkdir(exist_ok=True)
        journal.write_text("{}\n")
        made = await self.act("create", "web", "--disk", "8M")
        self.assertEqual(made["vmid"], 101)
        reason = "its journal (journal/source-100.jsonl) stands: run 'mtunnel settle 100' first"
        for words in (("create", "new", "--disk", "8M"), ("clone", "101", "new")):
            self.assertIn(reason, await self.refusal(*words, "--vmid", "100"))
        self.assertEqual((self.left_configs(), self.files()), (["101.conf"], ["images/101/vm-101-disk-0.qcow2"]))
        self.assert_nothing_stands()

    async def test_before_there_is_a_storage(self):
        (self.pve / "storage.cfg").unlink()
        reason = "no storage takes images: 'mtunnel init' makes the first one"
        self.assertEqual(await self.refusal("create", "web", "--disk", "8M"), reason)
        (self.pve / "storage.cfg").write_text(f"dir: disks\n\tpath {self.folder}/images\n\tcontent iso\n")
        self.assertEqual(
            await self.refusal("create", "web", "--disk", "8M"), "no storage takes images: see storage.cfg"
        )

    def left_configs(self):
        return sorted(file.name for file in self.guests.iterdir())

    async def test_it_starts(self):
        words = ["--memory", "64M", "--disk", "1G", "--start", "--vmid", "4711", "--format", "raw", "--bus", "virtio"]
        made = await self.act("create", "web", *words)
        self.assertEqual(made["volumes"], {"virtio0": "disks:4711/vm-4711-disk-0.raw"})
        self.assertEqual((await self.act("status", "web"))["status"], "running")
        await self.act("stop", "web")

    async def test_cloud_init(self):
        """Its drive is filled when it starts; a Debian image of the cloud would read it."""
        keys = self.folder / "keys.pub"
        keys.write_text("ssh-ed25519 AAAA me@here\n# another\nssh-ed25519 BBBB you@there\n")
        words = [
            "--disk",
            "1G",
            "--memory",
            "64M",
            "--cloud-init",
            f"user=me,sshkeys={keys},ip=10.0.0.2/24,gw=10.0.0.1",
        ]
        secret = self.folder / "secret"
        secret.write_text("$6$salt$hash\n")
        words[-1] += f",password={secret}"
        made = await self.act("create", "web", *words)
        self.assertEqual(made["volumes"]["scsi1"], "disks:100/vm-100-cloudinit.qcow2")
        options = self.conf().options
        expected = {
            "scsi1": "disks:100/vm-100-cloudinit.qcow2,media=cdrom,size=4M",
            "ciuser": "me",
            "cipassword": "$6$salt$hash",
            "ipconfig0": "ip=10.0.0.2/24,gw=10.0.0.1",
            "sshkeys": "ssh-ed25519%20AAAA%20me%40here%0Assh-ed25519%20BBBB%20you%40there",
        }
        self.assertEqual({key: options[key] for key in expected}, expected)
        await self.act("start", "web")
        await self.act("stop", "web")
        cases = {
            "colour=red": "cloud-init: 'colour' is none of user, sshkeys, password, ip, gw, ip6, gw6, nameserver",
            "sshkeys=/nowhere": "/nowhere: No such file or directory",
            "password=/dev/null": "/dev/null: holds no password",
            f"sshkeys={self.config}x": f"{self.config}x: No such file or directory",
            "ip=somewhere": "ipconfig0: format error ip: invalid format - value does not look like a valid ipv4"
            " network configuration",
        }
        for text, reason in cases.items():
            self.assertEqual(await self.refusal("create", "web2", "--cloud-init", text), reason)

    async def test_firmware_and_tpm(self):
        if not Path("/usr/share/OVMF/OVMF_VARS_4M.ms.fd").exists():
            raise SkipTest("no OVMF here: UEFI IS NOT TESTED")
        await self.act("create", "win", "--disk", "1G", "--secure-boot", "--tpm", "--ostype", "win11")
        options = self.conf().options
        self.assertEqual((options["bios"], options["machine"], options["ostype"]), ("ovmf", "q35", "win11"))
        efi = "disks:100/vm-100-disk-2.qcow2,efitype=4m,pre-enrolled-keys=1,size=528K"
        self.assertEqual(options["efidisk0"], efi)
        self.assertEqual(options["tpmstate0"], "disks:100/vm-100-disk-1.raw,size=4M,version=v2.0")

    async def test_the_next_vmid_is_one_that_nobody_has(self):
        self.add_ticker(100)
        (self.pve / "nodes" / "other" / "lxc").mkdir(parents=True)
        (self.pve / "nodes" / "other" / "lxc" / "101.conf").write_text("")
        self.assertEqual((await self.act("create", "ticker"))["vmid"], 102)
        self.assertEqual(self.notes[-1], "VM 100 has the name 'ticker', too: commands will need the number")
        reason = "VM 100 already exists on node 'here'"
        self.assertEqual(await self.refusal("create", "web", "--vmid", "100", "--disk", "1G"), reason)
        self.assertIn("name: ticker", (self.guests / "100.conf").read_text())
        self.assert_nothing_stands()

    async def test_a_cd_image_that_is_on_a_storage(self):
        folder = self.folder / "images" / "template" / "iso"
        folder.mkdir(parents=True)
        (folder / "a.iso").write_bytes(b"a")
        for text in ("disks:iso/a.iso", folder / "a.iso"):
            vmid = (await self.act("create", "web", "--iso", text))["vmid"]
            self.assertEqual(self.conf(vmid).options["ide2"], "disks:iso/a.iso,media=cdrom")
        other = self.folder / "a.iso"
        other.write_bytes(b"b")
        reason = f"storage 'disks' has another 'a.iso': {folder}/a.iso"
        self.assertEqual(await self.refusal("create", "web", "--iso", other), reason)
        self.assertEqual((folder / "a.iso").read_bytes(), b"a")

    async def test_what_is_refused_leaves_nothing(self):
        (self.folder / "a.txt").touch()
        cases = {
            ("--disk", "0"): "'0' is no size of a disk: up to 1024T, in steps of 1K",
            ("--disk", "much"): "'much' is no size such as 20G or 512M",
            ("--memory", "1X"): "'1X' is no amount of memory such as 2G or 512M",
            ("--cores", "many"): "cores: type check ('integer') failed - got 'many'",
            ("--storage", "nowhere"): "storage 'nowhere' does not exist; there are disks",
            ("--set", "hostpci0=mapping=gpu"): "hostpci0: hardware of one host cannot move to another",
            ("--set", "colour=red"): "colour: unknown setting 'colour'",
            ("--set", "scsi0=disks:1"): "scsi0: cannot be set here",
            ("--iso", "/nowhere.iso"): "/nowhere.iso: there is no such file",
            ("--iso", "disks:iso/no.iso"): "there is no volume 'disks:iso/no.iso'",
            ("--iso", f"{self.folder}/a.txt"): "'a.txt' must end in .iso or .img to be a CD image",
            ("--net", "bridge=a b"): "net0: format error bridge: invalid format - invalid bridge ID 'a b'",
        }
        for words, reason in cases.items():
            self.assertEqual(await self.refusal("create", "web", "--disk", "1G", *words), reason)
            self.assert_nothing_is_left()

    async def test_a_storage_without_room(self):
        storages = f"dir: full\n\tpath {self.folder}/images\n\tcontent images\n\tpreallocation falloc\n"
        (self.pve / "storage.cfg").write_text(storages)
        reason = await self.refusal("create", "web", "--disk", "1M", "--disk", "900T")
        self.assertIn("no space left on storage 'full'", reason)
        self.assert_nothing_is_left()


class Interrupted(VmCase):
    """A storage that takes its time, and a hand that does not wait."""

    def setUp(self):
        super().setUp()
        slow = self.folder / "pvesm"
        slow.write_text(SLOW.format(python=sys.executable, folder=self.folder))
        slow.chmod(0o755)
        self.write(f'commands.pvesm = "{slow}"\n')
        self.iso = self.folder / "a.iso"
        self.iso.write_bytes(b"CD")

    def begin(self):
        """Start to make a VM, and come to the second disk."""
        words = self.command("create", "web", "--disk", "1G", "--disk", "2G", "--iso", self.iso)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = started_process(self.addCleanup, words, **pipes)
        wait_for("the second disk", lambda: (self.folder / "waiting").exists() or process.poll() is not None)
        self.assertIsNone(process.returncode)
        return process

    def test_by_ctrl_c(self):
        process = self.begin()
        row = self.said("list")["guests"][0]
        self.assertEqual((row["lock"], row["note"]), ("create", f"'vm create' works on it, pid {process.pid}"))
        self.assertIn("being changed by another command: vm create, pid", self.refused("start", "100"))
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=patience_s())
        self.assertEqual((*said, process.returncode), ("", "mtunnel vm: interrupted\n", 130))
        self.assert_nothing_is_left()

    def test_by_kill_9(self):
        process = self.begin()
        process.kill()
        process.communicate(timeout=patience_s())
        row = self.said("list")["guests"][0]
        self.assertEqual((row["vmid"], row["lock"]), (100, "create"))
        self.assertEqual(row["note"], "'vm create' was interrupted; clean up after it: mtunnel vm unlock 100")
        # The next one goes elsewhere; whoever wants this VMID, or unlocks it, cleans up first.
        self.write()
        self.assertEqual(self.said("create", "other")["vmid"], 101)
        (self.guests / "101.conf").unlink()
        self.assertIn("'vm create' of VM 100 was interrupted", self.said("unlock", "100")["notes"][0])
        self.assert_nothing_is_left()

    def test_by_kill_9_and_made_again(self):
        process = self.begin()
        process.kill()
        process.communicate(timeout=patience_s())
        self.write()
        self.assertEqual(self.said("create", "web", "--vmid", "100", "--disk", "3G")["vmid"], 100)
        self.assertEqual(self.files(), ["images/100/vm-100-disk-0.qcow2"])
        self.assertTrue(self.conf().options["scsi0"].endswith("size=3G"))
        self.assert_nothing_stands()


class Records(ActCase):
    async def test_killed_at_the_very_end(self):
        """The config was given free: the VM is whole, only the record is to go."""
        made = await self.act("create", "web", "--disk", "1G")
        record = {"version": 1, "vmid": 100, "action": "create", "pid": 1, "owner": "x", "snapshot": "", "files": []}
        record |= {"claim": self.conf().options["vmgenid"], "volumes": list(made["volumes"].values())}
        (self.changes / "100.json").write_text(json.dumps(record))
        await self.act("unlock", "100")
        self.assertEqual(self.conf().options["name"], "web")
        self.assertEqual(self.files(), ["images/100/vm-100-disk-0.qcow2"])
        self.assert_nothing_stands()

    async def test_one_that_nobody_understands(self):
        self.changes.mkdir(parents=True)
        (self.changes / "100.json").write_text("{}")
        (row,) = (await self.act("list"))["guests"]
        self.assertIn("cannot be understood", row["note"])
        self.assertIn("cannot be understood", await self.refusal("create", "web", "--vmid", "100"))
        self.assertTrue((self.changes / "100.json").exists())

    async def test_what_cannot_be_cleaned_up_is_named(self):
        self.changes.mkdir(parents=True)
        record = {"version": 1, "vmid": 100, "action": "create", "pid": 1, "owner": "x", "snapshot": "", "files": []}
        (self.changes / "100.json").write_text(json.dumps({**record, "claim": "", "volumes": ["gone:100/a.raw"]}))
        reason = await self.refusal("unlock", "100")
        self.assertIn("what 'vm create' left of VM 100 cannot be cleaned up: ", reason)
        self.assertIn("storage 'gone' does not exist", reason)
        self.assertTrue((self.changes / "100.json").exists())
