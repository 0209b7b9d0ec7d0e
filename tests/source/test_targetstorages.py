"""What the target's storages tell before anything is sent."""

from twisted.internet.defer import Deferred

from mtunnel_tx.pve.maps import SAME_NAMES, parse_map
from mtunnel_tx.source.survey import Obstructed
from tests.source.case import QCOW2, SourceCase

STORAGES = ("GET", "/nodes/localhost/storage")
CONTENT = ("GET", "/nodes/localhost/storage/tank/content")
OURS = {"version": "9.2.0", "release": "9.2", "repoid": "mtunnel-tx-1.0"}
LEFT = "storage 'tank' has volumes of VM 300, which no VM has: "


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

    async def test_disks_are_told(self):
        """They take another name beside what is there."""
        self.leave("vm-300-disk-0.raw", "vm-300-cloudinit.raw")
        self.assertEqual(await self.obstacles(), [])
        said = f"target: {LEFT}tank:300/vm-300-cloudinit.raw, tank:300/vm-300-disk-0.raw"
        self.assertIn(said, self.watcher.said)

    async def test_a_cloudinit_drive_in_the_way(self):
        self.add_cloudinit()
        self.leave("vm-300-disk-0.raw", "vm-300-cloudinit.qcow2")
        (reason,) = await self.obstacles()
        volumes = "tank:300/vm-300-cloudinit.qcow2, tank:300/vm-300-disk-0.raw"
        self.assertEqual(reason, f"target: {LEFT}{volumes}; remove tank:300/vm-300-cloudinit.qcow2 first")

    async def test_our_own_makes_that_anew(self):
        self.add_cloudinit()
        self.leave("vm-300-cloudinit.qcow2")
        self.target.http["GET", "/version"] = OURS
        self.assertEqual(await self.obstacles(), [])
        self.assertIn(f"target: {LEFT}tank:300/vm-300-cloudinit.qcow2", self.watcher.said)

    async def test_what_a_peer_says_is_clean(self):
        self.leave("a\x1b[2J")
        await self.obstacles()
        self.assertIn(f"target: {LEFT}tank:300/a?[2J", self.watcher.said)
