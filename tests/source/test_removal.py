from twisted.internet.defer import CancelledError, Deferred

from mtunnel_tx.errors import BackendFailed, TunnelError
from tests.source.case import FIREWALL, SourceCase
from tests.source.target import make_reply


class DeleteTest(SourceCase):
    def setUp(self):
        super().setUp()
        self.firewall_file.write_text(FIREWALL)
        self.digests = {}
        self.target.http["GET", "/nodes/pvetest/qemu/300/mtunneldigest"] = self.digest

    def digest(self, query):
        return {"sha256": self.digests[query["volume"]]}

    async def know_digests(self):
        for name in ("disk-0.raw", "disk-1.qcow2"):
            self.digests[f"tank:300/vm-300-{name}"] = await self.storage.digest(f"local:100/vm-100-{name}")

    def ours(self):
        self.target.http["GET", "/version"] = {"repoid": "mtunnel-tx 1.0"}

    def assert_gone(self):
        self.assertFalse(self.conf_file.exists())
        self.assertFalse(self.firewall_file.exists())
        self.assertEqual(self.storage.freed, ["local:100/vm-100-disk-0.raw", "local:100/vm-100-disk-1.qcow2"])

    def assert_kept(self, *, moved=True):
        (self.assert_moved if moved else self.assert_unlocked)()
        self.assertTrue(self.firewall_file.exists())
        self.assertEqual(self.storage.freed, [])

    async def test_to_proxmox(self):
        await self.migrate(delete=True)
        self.assert_gone()
        self.assertNotIn("GET /nodes/pvetest/qemu/300/mtunneldigest", self.target.events)

    async def test_to_our_own_kind(self):
        self.ours()
        await self.know_digests()
        await self.migrate(delete=True)
        self.assert_gone()
        self.assertEqual(
            self.target.events[-5:-1],
            ["unlock", *["GET /nodes/pvetest/qemu/300/mtunneldigest"] * 2, "quit"],
        )

    async def test_without_delete_nobody_asks_for_digests(self):
        self.ours()
        await self.migrate()
        self.assert_kept()
        self.assertNotIn("GET /nodes/pvetest/qemu/300/mtunneldigest", self.target.events)

    async def test_digests_differ(self):
        self.ours()
        await self.know_digests()
        self.digests["tank:300/vm-300-disk-1.qcow2"] = "0" * 64
        with self.assertRaises(BackendFailed) as caught:
            await self.migrate(delete=True)
        self.assertIn("virtio1: the copy at the target has another SHA-256", caught.exception.text)
        self.assert_kept()
        self.assertEqual(self.target.commands[-1], {"cmd": "quit", "cleanup": 0})

    async def test_no_digest(self):
        self.ours()
        self.target.http["GET", "/nodes/pvetest/qemu/300/mtunneldigest"] = make_reply(404, "no such volume")
        with self.assertRaises(TunnelError):
            await self.migrate(delete=True)
        self.assert_kept()

    async def test_not_before_unlock(self):
        self.target.fail["unlock"] = "no"
        with self.assertRaises(TunnelError):
            await self.migrate(delete=True)
        self.assert_kept(moved=False)

    async def test_the_last_word_gets_lost(self):
        """`unlock` was answered, so the VM is the target's: a connection that ends at `quit` changes nothing."""
        self.target.replies["quit"] = Deferred()
        self.target.when("quit").addCallback(lambda _: self.target.command_wire.transport.abortConnection())
        await self.migrate(delete=True)
        self.assert_gone()

    async def test_quit_fails(self):
        self.target.fail["quit"] = "no"
        with self.assertRaises(TunnelError):
            await self.migrate(delete=True)
        self.assert_kept()

    async def test_a_volume_stays(self):
        self.storage.stuck.add("local:100/vm-100-disk-0.raw")
        with self.assertRaises(TunnelError) as caught:
            await self.migrate(delete=True)
        self.assertIn("VM 100 was moved and is VM 300 at 127.0.0.1 now", caught.exception.text)
        self.assertIn("'local:100/vm-100-disk-0.raw' (busy); then run 'mtunnel settle 100'", caught.exception.text)
        self.assertEqual(self.storage.freed, ["local:100/vm-100-disk-1.qcow2"])
        self.assertEqual(self.journal.standing(), [100])

    async def test_a_volume_that_another_vm_uses_stays(self):
        shared = "local:100/vm-100-disk-0.raw"
        self.conf_file.with_name("101.conf").write_text(f"scsi1: {shared},shared=1\n")
        await self.migrate(delete=True)
        self.assertEqual(self.storage.freed, ["local:100/vm-100-disk-1.qcow2"])
        self.assertIn(f"'{shared}' stays here: VM 101 uses it", self.watcher.said)
        self.assertEqual((self.conf_file.exists(), self.journal.standing()), (False, []))

    async def test_interrupted_at_the_hand_over(self):
        """It is the target's; but nothing is deleted after somebody said stop."""
        reached = self.target.when("unlock")
        running = self.migrate(delete=True)
        await reached
        running.cancel()
        with self.assertRaises(CancelledError):
            await running
        self.assertEqual(self.target.commands[-1], {"cmd": "quit", "cleanup": 0})
        self.assert_kept()
