"""The end of a tunnel that no session stands for is told, too: after a crash, and where opening it failed."""

from __future__ import annotations

from mtunnel_tx.errors import BackendFailed, InvalidParameters
from mtunnel_tx.ports.events import TunnelEnded, TunnelEvent, TunnelOpened
from tests.fakes import TOKEN, FakeHost
from tests.tunnel.case import CONFIG, DISK, TunnelCase


class UntendedTests(TunnelCase):
    def setUp(self) -> None:
        super().setUp()
        self.told: list[TunnelEvent] = []

    def restart(self) -> list[TunnelEnded]:
        """Another daemon over the same files. Returns: the ends that it told."""
        after, told = FakeHost(self.mktemp()), []
        after.services.observers.add(told.append)
        after.guests.configs = self.fake.guests.configs
        after.storage.sizes, after.storage.broken = self.fake.storage.sizes, self.fake.storage.broken
        after.journal.records = self.fake.journal.records
        after.clock.advance(60)
        self.now(after.registry.recover())
        opened = [event.tunnel for event in told if isinstance(event, TunnelOpened)]
        ended = [event for event in told if isinstance(event, TunnelEnded)]
        self.assertEqual(opened, [event.tunnel for event in ended])
        return ended

    def test_rolled_back_after_a_crash(self) -> None:
        self.now(self.registry.open(100, TOKEN, (), (), "192.0.2.1"))
        (ended,) = self.restart()
        facts = ended.tunnel
        self.assertEqual((facts.vmid, facts.kind, facts.token, facts.address), (100, "qemu", TOKEN, "192.0.2.1"))
        self.assertEqual((facts.upid, facts.since_s), (self.task.upid, self.fake.clock.seconds()))
        self.assertEqual((ended.outcome, ended.problem), ("rolled back", None))
        self.assertEqual((ended.reason, ended.duration_s), ("the daemon ended before the tunnel did", 60.0))

    def test_one_that_is_held_is_told_once_and_its_end_again(self) -> None:
        self.connect()
        volid = self.ask(**DISK)["volid"]
        self.ask(**CONFIG)
        self.fake.storage.broken.add(volid)
        (ended,) = self.restart()
        self.assertEqual(ended.outcome, "held")
        self.assertIn("cannot free", ended.problem or "")
        self.assertEqual(self.restart(), [])
        self.fake.storage.broken.clear()
        (ended,) = self.restart()
        self.assertEqual((ended.outcome, ended.problem), ("rolled back", None))
        self.assertEqual(self.restart(), [])

    def test_a_journal_that_nobody_understands(self) -> None:
        self.fake.journal.records[100] = [{"do": "claim"}]
        (ended,) = self.restart()
        self.assertEqual((ended.tunnel.vmid, ended.outcome), (100, "held"))
        self.assertIn("damaged record", ended.problem or "")

    def test_an_opening_that_fails_and_cannot_be_undone(self) -> None:
        self.fake.services.observers.add(self.told.append)

        async def refuse(*_: object) -> None:
            raise BackendFailed("no space left")

        self.fake.guests.create = refuse  # type: ignore[method-assign]
        self.fake.journal.remove = refuse  # type: ignore[method-assign]
        self.fails(self.registry.open(100, TOKEN, (), (), "192.0.2.1"), InvalidParameters)
        (ended,) = [event for event in self.told if isinstance(event, TunnelEnded)]
        self.assertEqual((ended.outcome, ended.problem), ("held", "no space left"))
        self.assertEqual((ended.tunnel.address, ended.tunnel.upid), ("192.0.2.1", self.task.upid))
        self.assertEqual(self.task.status, "no space left")
