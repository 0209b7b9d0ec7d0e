"""Journals that a daemon of version 1 left (`version1/`, recorded with it), found by this one."""

from __future__ import annotations

import shutil
from pathlib import Path

from mtunnel_tx.backends.journal import FileJournal
from mtunnel_tx.ports.machines import MachineState
from tests.fakes import FakeHost
from tests.threads import FakeThreads
from tests.tunnel.case import TunnelCase

RECORDED = Path(__file__).parent / "version1"
VOLID = "local:100/vm-100-disk-0.raw"
OFF = MachineState(status="off")
PAUSED, RUNNING = (MachineState(status=status, whole=True) for status in ("paused", "running"))


class Version1Tests(TunnelCase):
    def found(self, name: str, machine: MachineState = OFF, lock: str = "migrate") -> tuple[FakeHost, Path]:
        """A host whose last daemon left this journal. Returns: the host, and the journal's file."""
        host, state = FakeHost(self.mktemp()), Path(self.mktemp())
        file = state / "journal" / "100.jsonl"
        file.parent.mkdir(parents=True)
        shutil.copy(RECORDED / f"{name}.jsonl", file)
        object.__setattr__(host.services, "journal", FileJournal(FakeThreads(), state))  # type: ignore[arg-type]
        host.guests.set(100, f"lock: {lock}\n" + "memory: 512\n" * (lock == "migrate"))
        host.guests.firewalls[100] = "[OPTIONS]\n"
        host.storage.sizes[VOLID] = 1 << 30
        host.machines.now = machine
        self.now(host.registry.recover())
        return host, file

    def left(self, host: FakeHost) -> tuple[set[int], set[str]]:
        return set(host.guests.configs), set(host.storage.sizes)

    def test_rolled_back(self) -> None:
        incoming = MachineState(status="inmigrate")
        for name, machine, lock in (
            ("importing", OFF, "create"),
            ("configured", OFF, "migrate"),
            ("started", OFF, "migrate"),
            ("started", incoming, "migrate"),
            ("undo", OFF, "migrate"),
        ):
            host, file = self.found(name, machine, lock)
            self.assertEqual((self.left(host), host.registry.held), ((set(), set()), {}), name)
            self.assertEqual((file.exists(), host.machines.now), (False, OFF), name)

    def test_a_claim_alone(self) -> None:
        """The volume is somebody else's."""
        host, file = self.found("claimed", lock="create")
        self.assertEqual((self.left(host), file.exists()), ((set(), {VOLID}), False))

    def test_firewall(self) -> None:
        self.assertEqual(self.found("configured")[0].guests.firewalls, {})
        self.assertEqual(set(self.found("started")[0].guests.firewalls), {100})

    def test_kept(self) -> None:
        for name, machine in (("ran", RUNNING), ("runs", PAUSED), ("runs", OFF), ("ours", OFF), ("unlocked", OFF)):
            host, file = self.found(name, machine)
            self.assertEqual((self.left(host), host.registry.held), (({100}, {VOLID}), {}), name)
            # The lock that is there after `unlocked` is somebody else's.
            lock = "migrate" if name == "unlocked" else None
            self.assertEqual((host.guests.configs[100].lock, file.exists()), (lock, False), name)

    def test_held(self) -> None:
        for name, machine, reason in (
            ("ran", OFF, "was told to run here and is off"),
            ("ran", PAUSED, "was told to run here and is paused"),
            ("whole", OFF, "has its whole state here and is off"),
            ("whole", PAUSED, "has its whole state here and is paused"),
            ("started", PAUSED, "has its whole state here and is paused"),
        ):
            host, file = self.found(name, machine)
            self.assertEqual((self.left(host), host.guests.configs[100].lock), (({100}, {VOLID}), "migrate"), name)
            self.assertIn(reason, host.registry.held[100])
            self.assertEqual(file.read_text(), (RECORDED / f"{name}.jsonl").read_text() + '{"do":"held"}\n')

    def test_settled(self) -> None:
        host, file = self.found("whole", PAUSED)
        self.assertEqual(self.now(host.registry.settle(100, discard=False)), [VOLID])
        self.assertEqual((host.machines.now.status, host.guests.configs[100].lock), ("running", None))
        host, file = self.found("whole", PAUSED)
        self.assertEqual(self.now(host.registry.settle(100, discard=True)), [])
        self.assertEqual((self.left(host), file.exists()), ((set(), set()), False))

    def test_what_this_version_adds_is_understood_too(self) -> None:
        """A recovery of this version was interrupted."""
        host, file = self.found("whole", PAUSED)
        with file.open("a") as journal:
            journal.write('{"do":"rolling_back"}\n')
        self.now(host.registry.recover())
        self.assertEqual((self.left(host), file.exists()), ((set(), set()), False))
