"""The limits that a VM's disks and its memory get."""

from types import SimpleNamespace

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.pve.guestconf import parse_guest_config
from mtunnel_tx.pve.maps import parse_map
from mtunnel_tx.pve.storagecfg import parse_storage_config
from mtunnel_tx.source.order import Order
from mtunnel_tx.source.pace import Pace, agree
from mtunnel_tx.source.qemu.live import wants_trim
from tests.source.case import SourceCase

STORAGES = "dir: fast\n\tpath /a\n\ndir: slow\n\tpath /b\n\tbwlimit migration=500\n"
KIB = 1024


class FakeTunnel:
    def __init__(self, limits):
        self.limits = limits
        self.asked = []

    async def bandwidth_limit(self, storage, override):
        self.asked.append((storage, override))
        return self.limits.get(storage)


class PaceTests(SynchronousTestCase):
    def agree(self, conf="", limits=None, datacenter=None, **order):
        self.tunnel = FakeTunnel(limits or {})
        entries = parse_storage_config(STORAGES)
        storage = SimpleNamespace(config=lambda: entries, datacenter_bwlimit=lambda: datacenter)
        disks = [disk("scsi0", "fast"), disk("scsi1", "slow")]
        plan = SimpleNamespace(conf=parse_guest_config(conf), disks=disks)
        asked = Order(vmid=100, target_vmid=200, storages=parse_map("fast:tank,slow:pool"), **order)
        return Deferred.fromCoroutine(agree(asked, plan, storage, self.tunnel))

    def test_each_volume_is_asked_about(self):
        pace = self.successResultOf(self.agree())
        self.assertEqual(self.tunnel.asked, [("tank", None), ("pool", None)])
        self.assertEqual(pace, Pace(disks={"scsi0": 0, "scsi1": 500 * KIB}, memory_bytes_s=0, downtime_ms=100))

    def test_the_smaller_one_holds(self):
        pace = self.successResultOf(self.agree(limits={"tank": "2048", "pool": 600}))
        self.assertEqual(pace.disks, {"scsi0": 2048 * KIB, "scsi1": 500 * KIB})

    def test_the_order_comes_before_our_files(self):
        pace = self.successResultOf(self.agree(limits={"tank": 100}, datacenter="migration=7", bwlimit_kib_s=900))
        self.assertEqual(pace.disks, {"scsi0": 100 * KIB, "scsi1": 900 * KIB})
        self.assertEqual(pace.memory_bytes_s, 900 * KIB)

    def test_memory(self):
        for conf, datacenter, most in (
            ("migrate_speed: 3\n", None, 3072),
            ("migrate_speed: 3\n", "migration=4000", 3072),
            ("migrate_speed: 3\n", "migration=1000", 1000),
            ("migrate_speed: 0\n", "default=1000", 1000),
        ):
            pace = self.successResultOf(self.agree(conf, datacenter=datacenter))
            self.assertEqual(pace.memory_bytes_s, most * KIB, (conf, datacenter))

    def test_downtime(self):
        for conf, downtime_ms in (("", 100), ("migrate_downtime: 0.7\n", 700), ("migrate_downtime: 0\n", 1)):
            self.assertEqual(self.successResultOf(self.agree(conf)).downtime_ms, downtime_ms)

    def test_no_limit_at_all(self):
        self.failureResultOf(self.agree(limits={"tank": {}, "pool": "fast"}), BackendFailed)

    def test_trim(self):
        for agent, wanted in (
            ("", False),
            ("agent: 1\n", False),
            ("agent: enabled=0,fstrim_cloned_disks=1\n", False),
            ("agent: 1,fstrim_cloned_disks=1\n", True),
        ):
            self.assertIs(wants_trim(parse_guest_config(agent)), wanted)


def disk(label, storage):
    return SimpleNamespace(label=label, volid=SimpleNamespace(storage=storage))


class LimitsTest(SourceCase):
    def setUp(self):
        super().setUp()
        self.conf_file.write_text("scsi0: local:100/vm-100-disk-0.raw,size=1M\n")

    async def took_s(self, **changes):
        began = reactor.seconds()
        await self.migrate(**changes)
        return reactor.seconds() - began

    async def test_the_override_is_sent_and_holds(self):
        self.assertGreater(await self.took_s(bwlimit_kib_s=1024), 0.9)
        self.assertEqual(self.target.named("bwlimit")[0]["bwlimit"], 1024)

    async def test_the_targets_limit_holds(self):
        self.target.replies["bwlimit"] = {"bwlimit": "1024"}
        self.assertGreater(await self.took_s(bwlimit_kib_s=4096), 0.9)

    async def test_our_own_limit_holds(self):
        self.storage.entries = type(self.storage)(reactor, self.folder, "\tbwlimit migration=1024").entries
        self.assertGreater(await self.took_s(), 0.9)
        self.assertIsNone(self.target.named("bwlimit")[0]["bwlimit"])
