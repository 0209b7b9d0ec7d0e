"""The fold of a journal, and a journal that cannot be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtunnel_tx.errors import BackendFailed, WrongState
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.tunnel.claim import Claim
from mtunnel_tx.tunnel.ending import Ending, end
from mtunnel_tx.tunnel.ledger import Ledger, Owed, fold
from mtunnel_tx.tunnel.recovery import QuietTask
from mtunnel_tx.tunnel.verdict import Verdict
from tests.tunnel.case import CONFIG, DISK, TunnelCase

FULL = "No space left on device"
FIREWALL = {"firewall-config": "[OPTIONS]\nenable: 1\n"}
CLAIM = {"do": "claim", "vmid": 100, "kind": "qemu", "token": "a"}


class FoldTests(TunnelCase):
    def refused(self, *records: Mapping[str, Any]) -> str:
        with self.assertRaises(WrongState) as caught:
            fold(100, records)
        return caught.exception.text

    def test_one_claim_and_first(self) -> None:
        text = "journal of VM 100: it must begin with its claim, and have one only"
        for records in ((), ({"do": "whole"},), (CLAIM, CLAIM), (CLAIM, {"do": "whole"}, CLAIM)):
            self.assertEqual(self.refused(*records), text)

    def test_of_another_vm(self) -> None:
        self.assertEqual(self.refused({**CLAIM, "vmid": 101}), "journal of VM 100: it is that of VM 101")

    def test_sizes(self) -> None:
        making = {"do": "making", "storage": "local"}
        made = {"do": "made", "storage": "local", "volid": "local:1"}
        self.assertEqual(fold(100, (CLAIM, making, made)).sizes_bytes, {})
        self.assertEqual(fold(100, (CLAIM, making, {**made, "size_bytes": 4096})).sizes_bytes, {"local:1": 4096})
        self.assertIn("damaged record 'made'", self.refused(CLAIM, making, {**made, "size_bytes": "x"}))


class FullDiskTests(TunnelCase):
    """`fails` names the records that cannot be written; then there is space again."""

    def setUp(self) -> None:
        super().setUp()
        self.connect()
        self.fails_at: set[str] = set()
        append = self.fake.journal.append

        async def full(vmid: int, record: Mapping[str, Any]) -> None:
            if record["do"] in self.fails_at:
                raise BackendFailed(FULL)
            await append(vmid, record)

        self.fake.journal.append = full  # type: ignore[method-assign]

    def test_configured(self) -> None:
        self.ask(**DISK)
        self.fails_at = {"configured"}
        self.assertEqual(self.msg(**CONFIG), f"failed to handle 'config' command - {FULL}\n")
        self.assertEqual(self.fake.guests.configs[100].options, {"lock": "create"})
        self.assertTrue(self.ask(cmd="version")["success"])
        self.fails_at = set()
        self.assertTrue(self.ask(**CONFIG)["success"])
        self.assertEqual(self.fake.guests.configs[100].lock, "migrate")
        self.assertTrue(self.ask(cmd="unlock")["success"])

    def test_configured_and_the_former_config(self) -> None:
        """Nothing can be written: the new config stands, and may be written again."""
        write = self.fake.guests.write

        async def only_the_new(vmid: int, conf: GuestConfig) -> None:
            if conf.lock == "create":
                raise BackendFailed(FULL)
            await write(vmid, conf)

        self.fake.guests.write = only_the_new  # type: ignore[method-assign]
        self.fails_at = {"configured"}
        self.assertIn(FULL, self.msg(**CONFIG))
        self.assertEqual(self.fake.guests.configs[100].lock, "migrate")
        self.assertTrue(self.ask(cmd="version")["success"])
        self.fails_at = set()
        self.assertTrue(self.ask(**CONFIG)["success"])
        self.assertIn("found lock 'migrate'", self.msg(**CONFIG))

    def test_a_start_needs_a_config_that_is_written_down(self) -> None:
        self.fails_at = {"configured"}
        self.msg(**CONFIG)
        options = {"type": "websocket", "migratedfrom": "a", "remote_node": "b"}
        text = self.msg(cmd="start", start_params={"statefile": "unix"}, migrate_opts=options)
        self.assertIn("VM 100 has no config yet", text)

    def test_rolled_back_all_the_same(self) -> None:
        self.ask(**DISK)
        self.fails_at = {"configured"}
        self.msg(**CONFIG, **FIREWALL)
        self.line.disconnected()
        self.assertEqual((self.fake.storage.sizes, self.fake.guests.configs, self.registry.held), ({}, {}, {}))
        self.assertEqual((self.fake.guests.firewalls, self.fake.journal.records), ({}, {}))

    def test_handed_over(self) -> None:
        self.ask(**CONFIG)
        self.fails_at = {"handed_over"}
        self.assertIn(FULL, self.msg(cmd="unlock"))
        self.assertEqual(self.fake.guests.configs[100].lock, "migrate")
        self.fails_at = set()
        self.assertTrue(self.ask(cmd="unlock")["success"])

    def test_after_the_deed(self) -> None:
        """The lock is gone: that its record is not there is no failure of the command."""
        self.ask(**CONFIG)
        self.fails_at = {"unlocked"}
        self.assertTrue(self.ask(cmd="unlock")["success"])
        self.assertIsNone(self.fake.guests.configs[100].lock)
        self.assertTrue(self.ask(cmd="version")["success"])
        self.assertTrue(self.ask(cmd="quit")["success"])
        self.line.disconnected()
        self.assertEqual((self.fake.journal.records, self.registry.held), ({}, {}))

    def test_rolling_back(self) -> None:
        self.ask(**DISK)
        self.fails_at = {"rolling_back"}
        self.line.disconnected()
        self.assertEqual((len(self.fake.storage.sizes), self.registry.held), (1, {100: FULL}))
        self.fails_at = set()
        self.now(self.registry.settle(100, discard=True))
        self.assertEqual((self.fake.storage.sizes, self.fake.guests.configs), ({}, {}))


class OutcomeTests(TunnelCase):
    def test_words(self) -> None:
        for verdict, word in (
            (Verdict.ROLL_BACK, "rolled back"),
            (Verdict.KEEP, "kept"),
            (Verdict.HOLD, "held"),
            (Verdict.LEAVE, "left as it is"),
        ):
            self.assertEqual(Ending(verdict).outcome, word)
            self.assertEqual(Ending(verdict, "why").outcome, "held")

    def test_after_quit(self) -> None:
        for flag, verdict in (
            ("", Verdict.LEAVE),
            ("handed_over", Verdict.KEEP),
            ("resuming", Verdict.KEEP),
            ("rolling_back", Verdict.ROLL_BACK),
        ):
            owed = Owed(vmid=100, **dict.fromkeys(flag.split(), True))  # type: ignore[arg-type]
            ledger = Ledger(self.fake.journal, owed, stands=False)
            self.assertEqual(self.now(end(Claim(self.fake.services, ledger, QuietTask()))), Ending(verdict))
