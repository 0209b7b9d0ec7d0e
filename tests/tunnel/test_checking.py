"""A look at a VM that would come: everything that its commands would refuse, at once, and nothing is made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.pve.findings import MOST_FINDINGS
from mtunnel_tx.wire.checkrequest import CHECK
from tests.fakes import TOKEN
from tests.tunnel.case import TunnelCase

HERE = "far:100/vm-100-disk-0.raw"
DISK = {
    "key": "scsi0",
    "volume": HERE,
    "size": 1 << 30,
    "written": 1 << 20,
    "volname": "vm-100-disk-0.raw",
    "format": "raw",
    "export_formats": "raw+sparse,raw+size",
    "storage": "local",
    "allow_rename": 1,
}
CLOUD = {
    **DISK,
    "key": "ide2",
    "volume": "far:100/vm-100-cloudinit.qcow2",
    "volname": "vm-100-cloudinit.qcow2",
    "format": "qcow2",
    "export_formats": "qcow2+size",
    "with_snapshots": 1,
    "allow_rename": 0,
}
CONF = f"memory: 512\nname: web\nscsi0: {HERE},size=1G\n"


class CheckCase(TunnelCase):
    def answer(self, conf: str = CONF, disks: Any = (DISK,), **more: Any) -> dict[str, Any]:
        call = CHECK.read({"node": "localhost", "vmid": 100, "conf": conf, "disks": list(disks), **more})
        before = list(self.events)
        answer: dict[str, Any] = self.now(self.registry.check(call, TOKEN))
        self.assertEqual(self.events, before, "nothing is made")
        return answer

    def found(self, conf: str = CONF, disks: Any = (DISK,), **more: Any) -> list[tuple[str, str, str, str]]:
        fields = ("severity", "about", "name", "text")
        return [tuple(each[field] for field in fields) for each in self.answer(conf, disks, **more)["findings"]]


class CheckTests(CheckCase):
    def test_nothing_in_the_way(self) -> None:
        answer = self.answer(storages="local", bridges="vmbr0")
        row = {"key": "scsi0", "storage": "local", "format": "raw", "stream": "raw+size", "free": None}
        self.assertEqual(answer, {"findings": [], "disks": [row]})

    def test_everything_at_once(self) -> None:
        self.fake.guests.set(100, "memory: 1\n")
        conf = CONF + (
            "args: -S\naffinity: 0-3\nhookscript: local:snippets/x.pl\ntags: prüf\nnewkey: 1\n?\nballoon: 1024\n"
            "boot: order=scsi7\nvmstatestorage: nosuch\nide2: local:iso/x.iso,media=cdrom\nscsi3: /dev/sda\n"
        )
        found = self.found(conf, [{**DISK, "storage": "off"}], storages="local,nosuch", bridges="vmbr7")
        self.assertEqual(
            [(severity, about, name, text.partition(" - ")[0]) for severity, about, name, text in found],
            [
                ("refuse", "vm", "", "VM 100 already exists on node 'pvetest'"),
                ("refuse", "storage", "nosuch", "storage 'nosuch' does not exist"),
                ("refuse", "storage", "off", "storage 'off' is disabled"),
                ("refuse", "bridge", "vmbr7", "bridge 'vmbr7' does not exist"),
                ("refuse", "key", "tags", "vm 100"),
                ("refuse", "key", "newkey", "vm 100"),
                ("refuse", "vm", "", "vm 100"),
                ("refuse", "key", "affinity", "only root can set 'affinity' config"),
                ("refuse", "key", "args", "only root can set 'args' config"),
                ("refuse", "key", "hookscript", "only root can set 'hookscript' config"),
                ("refuse", "key", "vmstatestorage", "storage 'nosuch' does not exist"),
                ("refuse", "key", "balloon", "balloon value too large (must be smaller than assigned memory)"),
                ("refuse", "key", "boot", "invalid bootorder: device 'scsi7' does not exist'"),
                ("refuse", "disk", "ide2", "volume 'local:iso/x.iso' does not exist"),
                ("refuse", "disk", "scsi3", "Only root can pass arbitrary filesystem paths."),
            ],
        )

    def test_config_says_the_first_of_them(self) -> None:
        """One place: what is found beforehand is what the command itself says."""
        conf = f"{CONF.replace(f'scsi0: {HERE},size=1G', 'onboot: 1')}args: -S\nhookscript: local:snippets/x.pl\n"
        first, second = (text for *_, text in self.found(conf, ()))
        self.connect()
        self.assertIn(first, self.msg(cmd="config", conf=conf))
        conf = conf.replace("args: -S\n", "")
        self.assertIn(second, self.msg(cmd="config", conf=conf))

    def test_who_may_not_set_a_script_learns_not_which_there_are(self) -> None:
        """Alike in the check and in the command, whether there is such a script or not."""
        conf = f"{CONF}hookscript: local:snippets/x.pl\n"
        told = [("refuse", "key", "hookscript", "only root can set 'hookscript' config")]
        self.assertEqual(self.found(conf), told)
        self.fake.storage.sizes["local:snippets/x.pl"] = 1
        self.assertEqual(self.found(conf), told)
        self.connect()
        self.assertIn("only root can set 'hookscript' config", self.msg(cmd="config", conf=conf))

    def test_what_is_too_long_is_not_read(self) -> None:
        most = self.fake.services.limits.config_bytes
        found = self.found(f"nonsense\n{'x' * most}\n", ())
        self.assertEqual([text for *_, text in found], [f"vm 100 - config is longer than {most} bytes"])
        found = self.found(**{"firewall-config": "nonsense\n" + "x" * most})
        self.assertEqual([text for *_, text in found], [f"vm 100 - firewall config is longer than {most} bytes"])

    def test_post_copy(self) -> None:
        self.fake.machines.refusal = BackendFailed("no post-copy here: x")
        self.assertEqual(self.found(online=1), [])
        self.assertEqual(self.found(online=1, postcopy=1), [("refuse", "vm", "", "no post-copy here: x")])

    def test_a_vmid_that_waits_to_be_settled(self) -> None:
        self.fake.journal.records[100] = []
        self.assertEqual(self.found(), [("refuse", "vm", "", "VM 100 waits for 'mtunnel settle 100'")])

    def test_a_live_tunnel_has_the_vmid(self) -> None:
        self.open()
        self.assertEqual(self.found(), [("refuse", "vm", "", "VM 100 already exists on node 'pvetest'")])

    def test_findings_are_bounded(self) -> None:
        found = self.found("".join(f"newkey{index}: 1\n" for index in range(1000)), ())
        self.assertEqual(len(found), MOST_FINDINGS + 1)
        self.assertIn("more are not listed", found[-1][3])

    def test_long_lines_are_cut(self) -> None:
        for line in ("?" * 100_000, f"{'a' * 100_000}: 1"):
            ((_, _, name, text),) = self.found(f"{CONF}{line}\n")
            self.assertLess(len(name) + len(text), 1100)

    def test_children_wait_for_their_turn(self) -> None:
        turns: list[str] = []

        @asynccontextmanager
        async def turn(token: str, vmid: int | None) -> AsyncIterator[None]:
            turns.append("take")
            yield
            turns.append("give")

        self.patch(self.fake.storage, "size_bytes", self._size(turns))
        object.__setattr__(self.fake.services, "child_turn", turn)
        self.found(f"{CONF}ide2: local:iso/x.iso,media=cdrom\n")
        self.assertEqual(turns, ["take", "look", "give", *["take", "give"] * 2])

    def _size(self, turns: list[str]) -> Any:
        async def size_bytes(_volid: str) -> int:
            turns.append("look")
            return 512

        return size_bytes

    def test_firewall_rules_that_may_not_be_set(self) -> None:
        role = "role:most:VM.Allocate,VM.Config.Memory,VM.Config.Options,VM.Config.Disk,Datastore.AllocateSpace:\n"
        users = self.fake.access.users
        self.fake.access.users = users.replace("acl:1:/:mig@pve:Administrator:", f"{role}acl:1:/:mig@pve:most:")
        found = self.found(**{"firewall-config": "[OPTIONS]\nenable: 1\n"})
        text = "403 Permission check failed (/vms/100, VM.Config.Network)"
        self.assertEqual(found, [("refuse", "key", "firewall", text)])


class HostTests(CheckCase):
    """What this host's QEMU cannot run."""

    def test_a_vm_that_runs(self) -> None:
        text = "watchdog: this host has none"
        conf = f"{CONF}watchdog: ib700\n"
        self.assertEqual(self.found(conf, online=True), [("refuse", "key", "watchdog", text)])

    def test_a_vm_that_is_off_need_not_run_here(self) -> None:
        conf = f"{CONF}watchdog: ib700\n"
        self.assertEqual([severity for severity, *_ in self.found(conf)], ["warn"])

    def test_unless_it_is_to_be_deleted_there(self) -> None:
        conf = f"{CONF}watchdog: ib700\n"
        self.assertEqual([severity for severity, *_ in self.found(conf, delete=True)], ["refuse"])

    def test_memory_is_for_a_vm_that_runs(self) -> None:
        conf = CONF.replace("512", "999999")
        self.assertEqual(self.found(conf), [])
        self.assertEqual(self.found(conf, online=True), [("refuse", "vm", "", "not enough available memory")])


class DiskTests(CheckCase):
    def test_formats(self) -> None:
        disk = {**DISK, "format": "qcow2", "storage": "thin", "export_formats": "qcow2+size", "with_snapshots": 1}
        text = "cannot go to storage 'thin': unsupported format 'qcow2' for storage type lvmthin"
        self.assertEqual(self.found(disks=[disk]), [("refuse", "disk", "scsi0", text)])
        answer = self.answer(disks=[{**disk, "mirrored": True}], online=True)
        self.assertEqual(answer["findings"][0]["text"], "qcow2 becomes raw on storage 'thin'")
        self.assertEqual((answer["findings"][0]["severity"], answer["disks"][0]["format"]), ("change", "raw"))

    def test_an_empty_vmdk_of_an_odd_size(self) -> None:
        """One that a stream fills is made of that; one that is mirrored into is made empty, in KiB."""
        disk = {**DISK, "format": "vmdk", "size": (1 << 20) + 512, "mirrored": True}
        text = "an empty vmdk cannot be made with 1049088 bytes, no multiple of 1024"
        expected = ("refuse", "disk", "scsi0", f"cannot go to storage 'local': {text}")
        self.assertEqual(self.found(disks=[disk], online=True), [expected])
        self.assertEqual(self.found(disks=[{**disk, "size": (1 << 20) + 1024}], online=True), [])

    def test_where_nothing_can_be_written(self) -> None:
        self.fake.guests.unwritable = "nothing can be written in '/pve'"
        self.fake.storage.unwritable["local"] = "'/images/100' is a symbolic link"
        told = [each[3] for each in self.found()]
        self.assertEqual(
            told, ["nothing can be written in '/pve'", "storage 'local': '/images/100' is a symbolic link"]
        )

    def test_room(self) -> None:
        self.fake.storage.free_bytes = 1 << 24
        grow = "storage 'local' may become full: the disks can grow to 1G, 16M available"
        self.assertEqual(self.found(), [("warn", "storage", "local", grow)])
        self.assertEqual(self.answer()["disks"][0]["free"], 1 << 24)
        full = "storage 'local' has no space: {} needed, 16M available"
        self.assertEqual(self.found(strict_space=True), [("refuse", "storage", "local", full.format("1G"))])
        much = {**DISK, "written": 1 << 25}
        self.assertEqual(self.found(disks=[much]), [("refuse", "storage", "local", full.format("32M"))])

    def leave(self, name: str) -> str:
        volid = f"local:100/{name}"
        self.fake.storage.sizes[volid] = 1
        return f"storage 'local' has '{volid}' of VM 100, which no VM has"

    def test_a_leftover_is_named(self) -> None:
        left = self.leave("vm-100-disk-0.raw")
        ((severity, about, name, text),) = self.found()
        self.assertEqual((severity, about, name), ("refuse", "disk", "local:100/vm-100-disk-0.raw"))
        self.assertEqual(text, f"{left}: remove it, or choose another VMID")

    def test_not_those_of_a_vm_that_waits(self) -> None:
        self.leave("vm-100-disk-0.raw")
        self.fake.journal.records[100] = []
        self.assertEqual([each[3] for each in self.found()], ["VM 100 waits for 'mtunnel settle 100'"])

    def test_what_another_vm_names_is_none(self) -> None:
        self.leave("vm-100-disk-0.raw")
        self.fake.guests.set(101, "scsi0: local:100/vm-100-disk-0.raw\n")
        self.assertEqual(self.found(), [])

    def test_a_cloudinit_drive_is_generated(self) -> None:
        left = self.leave("vm-100-cloudinit.qcow2")
        conf = f"{CONF}ide2: {CLOUD['volume']},media=cdrom\n"
        self.assertEqual(
            [each[0::3] for each in self.found(conf, [DISK, CLOUD])], [("change", f"{left}: it is made anew")]
        )
        self.assertEqual([each[0::3] for each in self.found()], [("warn", f"{left}: it stays")])
