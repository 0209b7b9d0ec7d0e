"""What the target's storages tell before anything is sent."""

from twisted.internet.defer import Deferred

from mtunnel_tx.pve.maps import SAME_NAMES, parse_map
from mtunnel_tx.source.survey import Obstructed
from tests.source.case import QCOW2, SourceCase

STORAGES = ("GET", "/nodes/localhost/storage")
CONTENT = ("GET", "/nodes/localhost/storage/tank/content")
OURS = {"version": "9.2.0", "release": "9.2", "repoid": "mtunnel-tx-1.0"}
LEFT = "target: storage 'tank' has 'tank:300/{}' of VM 300, which no VM has"
REMOVE = "remove it, or choose another VMID"


class StorageCase(SourceCase):
    async def obstacles(self, **changes):
        try:
            await Deferred.fromCoroutine(self.migration(**changes).check())
        except Obstructed as error:
            return list(error.obstacles)
        return []


class AbsentTests(StorageCase):
    """Three reasons, three texts."""

    async def absent(self):
        reasons = await self.obstacles(storages=parse_map("nowhere"))
        return [reason for reason in reasons if "storage 'nowhere'" in reason]

    async def test_disabled(self):
        for enabled in (0, False, "0"):
            self.target.http[STORAGES] = [{"storage": "nowhere", "content": "images", "enabled": enabled}]
            self.assertEqual(await self.absent(), ["target: storage 'nowhere' is disabled"])

    async def test_not_there(self):
        for privilege in ("Datastore.AllocateSpace", "Datastore.Audit"):
            self.target.http["GET", "/access/permissions"] = {"/storage/nowhere": {privilege: 0}}
            self.assertEqual(await self.absent(), ["target: storage 'nowhere' is not there"])

    async def test_not_for_this_token(self):
        for held in ({}, {"/storage/nowhere": {}}, {"/storage/nowhere": {"VM.Audit": 1}}):
            self.target.http["GET", "/access/permissions"] = held
            self.assertEqual(await self.absent(), ["target: the token may not use storage 'nowhere'"])

    async def test_a_target_that_does_not_tell(self):
        text = "target: storage 'nowhere' is not there, or the token may not use it"
        self.assertEqual(await self.absent(), [text])


class SameNamesTests(StorageCase):
    async def test_nothing_is_named(self):
        self.assertEqual(
            await self.obstacles(storages=SAME_NAMES),
            ["target: storage 'local' is not there, or the token may not use it"],
        )
        self.target.http[STORAGES] = [{"storage": "local", "type": "dir", "content": "images", "enabled": 1}]
        self.assertEqual(await self.obstacles(storages=SAME_NAMES), [])


class SizeTests(StorageCase):
    async def test_half_a_kibibyte(self):
        self.storage.add("100/vm-100-disk-0.raw", bytes(1536))
        reason = "scsi0 has 1536 bytes, but Proxmox makes disks in KiB only: resize it first"
        self.assertEqual(await self.obstacles(), [f"target: {reason}"])
        self.target.http["GET", "/version"] = OURS
        self.assertEqual(await self.obstacles(), [])


class LeftoverTests(StorageCase):
    def leave(self, *names):
        self.target.http[CONTENT] = [{"volid": f"tank:300/{name}"} for name in names]

    def add_cloudinit(self):
        self.storage.add("100/vm-100-cloudinit.qcow2", QCOW2)
        with self.conf_file.open("a") as file:
            file.write("ide2: local:100/vm-100-cloudinit.qcow2,media=cdrom\n")

    async def test_disks_are_in_the_way(self):
        """Somebody may want what is in them, and a VM that is removed takes all volumes of its VMID along."""
        self.leave("vm-300-disk-0.raw", "vm-300-cloudinit.raw")
        self.assertEqual(await self.obstacles(), [f"{LEFT.format('vm-300-disk-0.raw')}: {REMOVE}"])

    async def test_not_those_of_a_vm_that_is_there(self):
        self.leave("vm-300-disk-0.raw")
        self.target.http["GET", "/cluster/resources"] = [{"vmid": 300, "node": "far"}]
        self.assertEqual(await self.obstacles(), ["target: VM 300 already exists on node 'far'"])

    async def test_backups_are_none(self):
        self.target.http[CONTENT] = [{"volid": "tank:backup/vzdump-qemu-300-x.vma", "content": "backup", "vmid": 300}]
        self.assertEqual(await self.obstacles(), [])

    async def test_a_cloudinit_drive_in_the_way(self):
        self.add_cloudinit()
        self.leave("vm-300-cloudinit.qcow2")
        self.assertEqual(await self.obstacles(), [f"{LEFT.format('vm-300-cloudinit.qcow2')}: {REMOVE}"])

    async def test_our_own_makes_that_anew(self):
        self.add_cloudinit()
        self.leave("vm-300-cloudinit.qcow2")
        self.target.http["GET", "/version"] = OURS
        report = await Deferred.fromCoroutine(self.migration().check())
        self.assertEqual(report.remarks, (f"{LEFT.format('vm-300-cloudinit.qcow2')}: it is made anew",))

    async def test_one_that_is_of_no_use(self):
        self.leave("vm-300-cloudinit.raw")
        """A warning, which is said by a command that says nothing else, too."""
        text = f"{LEFT.format('vm-300-cloudinit.raw')}: it stays"
        report = await Deferred.fromCoroutine(self.migration().check())
        self.assertEqual(report.remarks, (text,))
        await self.migrate()
        self.assertEqual(self.watcher.warned, [text])

    async def test_what_a_peer_says_is_clean(self):
        self.leave("a\x1b[2J")
        self.assertEqual(await self.obstacles(), [f"{LEFT.format('a?[2J')}: {REMOVE}"])
