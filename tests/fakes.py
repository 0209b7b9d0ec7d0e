"""Stand-ins behind the ports, all in memory: for tests of order, of time, and of every row of a rule."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mtunnel_tx.errors import BackendFailed, NotFound, Refusal, TunnelError, Unauthenticated, WrongState, at_once
from mtunnel_tx.ports.guests import GuestEntry
from mtunnel_tx.ports.lines import Answerer
from mtunnel_tx.ports.machines import Incoming, MachineState
from mtunnel_tx.ports.programs import Program
from mtunnel_tx.pve.guestconf import GuestConfig, parse_guest_config
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.users import parse_user_config
from mtunnel_tx.tunnel.registry import Registry
from mtunnel_tx.tunnel.services import Services, TunnelLimits
from tests.fakestorage import FakeStorage
from tests.stopped import StoppedMachines
from tests.threads import FakeThreads

NODE = "pvetest"
TOKEN = "mig@pve!t1"
USERS = """\
user:mig@pve:1:0:::::
token:mig@pve!t1:0:0::

acl:1:/:mig@pve:Administrator:
"""


class FakeAccess:
    def __init__(self, users: str = USERS) -> None:
        self.users = users

    def authenticate(self, authorization: str | None) -> str:
        return TOKEN

    def rights(self, token: str) -> Rights:
        users = parse_user_config(self.users)
        found = users.find_token(token)
        if found is None or not found[1].enabled:
            raise Unauthenticated("Authentication failed!")
        return Rights(users, token)


class FakeGuests:
    node = NODE

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.configs: dict[int, GuestConfig] = {}
        self.firewalls: dict[int, str] = {}
        self.others: list[GuestEntry] = []
        self.held: set[int] = set()
        self.unwritable: str | None = None

    @asynccontextmanager
    async def locked(self, vmid: int, wait_s: float) -> AsyncIterator[None]:
        assert vmid not in self.held, "the lock is held already: a deadlock in real life"
        self.held.add(vmid)
        try:
            yield
        finally:
            self.held.discard(vmid)

    def read(self, vmid: int) -> GuestConfig:
        if vmid not in self.configs:
            raise NotFound(f"Configuration file 'nodes/{NODE}/qemu-server/{vmid}.conf' does not exist")
        return self.configs[vmid].copy()

    def entries(self) -> list[GuestEntry]:
        own = [GuestEntry(vmid=vmid, node=NODE, kind="qemu", name="") for vmid in self.configs]
        return own + self.others

    def naming(self, volid: str) -> list[GuestEntry]:
        named = [vmid for vmid, conf in self.configs.items() if volid in str(conf.options)]
        return [GuestEntry(vmid=vmid, node=NODE, kind="qemu", name="") for vmid in named]

    async def write(self, vmid: int, conf: GuestConfig) -> None:
        self.events.append(f"write config, lock {conf.lock}")
        self.configs[vmid] = conf.copy()

    async def create(self, vmid: int, conf: GuestConfig) -> None:
        self.events.append("create config")
        if vmid in self.configs:
            raise WrongState("it exists")
        self.configs[vmid] = conf.copy()

    async def remove(self, vmid: int) -> None:
        self.events.append("remove config")
        self.configs.pop(vmid, None)

    async def write_firewall(self, vmid: int, text: str) -> None:
        self.events.append("write firewall")
        self.firewalls[vmid] = text

    async def remove_firewall(self, vmid: int) -> None:
        self.events.append("remove firewall")
        self.firewalls.pop(vmid, None)

    async def tidy(self, vmid: int) -> None:
        self.events.append(f"tidy {vmid}")

    def why_unwritable(self) -> str | None:
        return self.unwritable

    def read_firewall(self, vmid: int) -> str | None:
        return self.firewalls.get(vmid)

    def set(self, vmid: int, text: str) -> None:
        self.configs[vmid] = parse_guest_config(text)


class FakeTask:
    upid = "UPID:pvetest:00000001:00000001:6B035030:qmtunnel:100:mig@pve!t1:"

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.status: str | None = None
        self.warnings = 0

    def line(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings += 1
        self.line(f"WARN: {text}")

    def finish(self, status: str) -> None:
        assert self.status is None, "a task ends once"
        self.status = status


class FakeTasks:
    def __init__(self) -> None:
        self.started: list[FakeTask] = []

    def start(self, task_type: str, vmid: int, token: str) -> FakeTask:
        self.started.append(FakeTask())
        return self.started[-1]

    def go_on(self, upid: str) -> FakeTask:
        return self.start("", 0, "")

    def finish_orphans(self, status: str) -> None:
        self.finished_orphans = status


class FakeJournal:
    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.records: dict[int, list[dict[str, Any]]] = {}

    async def open(self, vmid: int, record: Mapping[str, Any]) -> None:
        self.events.append(f"journal {record['do']}")
        if vmid in self.records:
            raise WrongState("a journal stands")
        self.records[vmid] = [dict(record)]

    async def append(self, vmid: int, record: Mapping[str, Any]) -> None:
        self.events.append(f"journal {record['do']}")
        self.records[vmid].append(dict(record))

    async def remove(self, vmid: int) -> None:
        self.events.append("journal removed")
        del self.records[vmid]

    def read(self, vmid: int) -> list[dict[str, Any]] | None:
        return self.records.get(vmid)

    def standing(self) -> list[int]:
        return sorted(self.records)

    def why_taken(self, vmid: int) -> str | None:
        return f"VM {vmid} waits for 'mtunnel settle {vmid}'" if vmid in self.records else None

    async def tidy(self) -> None:
        self.events.append("tidy journals")


class FakeMachines(StoppedMachines):
    """One VM whose state the test decides."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.now = MachineState(status="off")
        self.incoming: Incoming | None = None
        self.arriving: Deferred[None] = Deferred()
        self.refusal: TunnelError | None = None
        self.pid = 0

    def check(self, conf: GuestConfig, refused: Refusal = at_once, machine: str | None = None) -> None:
        if "watchdog" in conf.options:
            refused("watchdog", TunnelError("watchdog: this host has none"))

    async def check_room(self, conf: GuestConfig, machine: str | None = None) -> None:
        if conf.options.get("memory") == "999999":
            raise BackendFailed("not enough available memory")

    def running(self, vmid: int) -> bool:
        return self.now.status != "off"

    def process(self, vmid: int) -> Program | None:
        return Program(boot="this", pid=self.pid, started=1) if self.running(vmid) else None

    def replace(self, now: MachineState) -> None:
        """Somebody else has started a QEMU under this number."""
        self.pid += 1
        self.now = now

    async def state(self, vmid: int) -> MachineState:
        return self.now

    async def start(self, vmid: int, conf: GuestConfig, incoming: Incoming, report: Any) -> int | None:
        self.events.append("start QEMU")
        if self.refusal is not None:
            raise self.refusal
        self.incoming = incoming
        self.replace(MachineState(status="inmigrate"))
        return None

    async def wait_whole(self, vmid: int) -> None:
        await self.arriving

    def arrive(self) -> None:
        self.now = MachineState(status="paused", whole=True)
        self.arriving.callback(None)

    def arrive_partly(self) -> None:
        """The rest of the memory comes by post-copy."""
        self.now = MachineState(status="paused", partly=True)

    async def check_postcopy(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def resume(self, vmid: int, *, partly: bool = False) -> None:
        self.events.append("cont")
        self.now = MachineState(status="running", whole=not partly, partly=partly)

    async def stop(self, vmid: int) -> None:
        self.events.append("stop QEMU")
        self.now = MachineState(status="off")

    async def stop_nbd(self, vmid: int) -> None:
        if self.now.status == "off":
            raise WrongState(f"VM {vmid} not running")
        self.events.append("stop NBD")


class FakeListening:
    def __init__(self) -> None:
        self.open = True

    async def close(self) -> None:
        self.open = False


class FakeStream:
    bytes_in = 10
    bytes_out = 20

    def __init__(self) -> None:
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


class FakeHost:
    """A registry on fakes; `events` is what happened to the world, in order."""

    def __init__(self, runtime_dir: str) -> None:
        self.events: list[str] = []
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.access = FakeAccess()
        self.guests = FakeGuests(self.events)
        self.storage = FakeStorage(self.events, self.clock)
        self.journal = FakeJournal(self.events)
        self.tasks = FakeTasks()
        self.machines = FakeMachines(self.events)
        self.listening: dict[Path, tuple[Answerer, FakeListening]] = {}
        self.services = Services(
            access=self.access,
            guests=self.guests,
            storage=self.storage,
            hypervisor=self.machines,
            journal=self.journal,
            tasks=self.tasks,
            child_turn=lambda token, vmid: nullcontext(),
            clock=self.clock,
            wall=self.clock.seconds,
            threads=FakeThreads(),
            listen=self._listen,
            bridge_exists=lambda name: name == "vmbr0",
            random_bytes=bytes,
            ticket_key=bytes(32),
            runtime_dir=Path(runtime_dir),
            machine_dir=Path(runtime_dir),
            limits=TunnelLimits(),
        )
        self.registry = Registry(self.services)

    async def _listen(self, path: Path, answerer: Answerer) -> FakeListening:
        self.listening[path] = (answerer, FakeListening())
        return self.listening[path][1]
