"""The seams between the control path and the world, as typing protocols.

`tunnel/` and `source/` know these; `backends/` and `net/` fill them in; `tap` and `cli` join both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.storagecfg import StorageEntry

T = TypeVar("T")
P = ParamSpec("P")

Report = Callable[[str], None]
"""Takes one line of a child's output, without its line feed."""


class Timer(Protocol):
    """A call that waits for its time (IDelayedCall)."""

    def cancel(self) -> Any: ...

    def active(self) -> Any: ...


class Clock(Protocol):
    """Time in seconds since the epoch, and later calls (IReactorTime)."""

    def seconds(self) -> float: ...

    def callLater(self, delay: float, callable: Callable[..., Any], /, *args: Any) -> Any: ...  # noqa: N802


class Threads(Protocol):
    """Where work runs that takes a while; everything else goes on meanwhile."""

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...


class Access(Protocol):
    """Users, tokens and what they may do; files are read again when they changed."""

    def authenticate(self, authorization: str | None) -> str:
        """Returns: the full token id, e.g. `mig@pve!t1`. Raises: Unauthenticated."""

    def rights(self, token: str) -> Rights:
        """What the token may do now. Raises: Unauthenticated: it is gone, expired or disabled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestEntry:
    """One guest of the cluster: `kind` is `qemu` or `lxc`, `name` may be empty."""

    vmid: int
    node: str
    kind: str
    name: str


class Guests(Protocol):
    """Guest configs of this node under `pve_dir`, their locks and firewall files."""

    node: str

    def locked(self, vmid: int, wait_s: float) -> AbstractAsyncContextManager[None]:
        """Hold the flock that every other program uses too. Raises: TimedOut: `can't lock file 'F' - got timeout`."""

    def read(self, vmid: int) -> GuestConfig:
        """Raises: NotFound: `Configuration file 'nodes/NODE/qemu-server/V.conf' does not exist`."""

    def entries(self) -> list[GuestEntry]:
        """Every guest of every node, containers included."""

    def naming(self, volid: str) -> list[GuestEntry]:
        """The guests, of any node, whose config names this volume anywhere."""

    async def write(self, vmid: int, conf: GuestConfig) -> None:
        """Replace the config atomically, file and folder fsynced."""

    async def create(self, vmid: int, conf: GuestConfig) -> None:
        """Write a config that must not exist yet (O_EXCL). Raises: WrongState."""

    async def remove(self, vmid: int) -> None:
        """Delete the config; success where there is none."""

    async def write_firewall(self, vmid: int, text: str) -> None: ...

    async def remove_firewall(self, vmid: int) -> None: ...

    def read_firewall(self, vmid: int) -> str | None: ...

    async def tidy(self, vmid: int) -> None:
        """Remove what a crash left in the middle of writing one of this guest's files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One line of `pvesm list`; `vmid` is None for what belongs to no guest."""

    volid: str
    format: str
    content: str
    size_bytes: int
    vmid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """Arguments of `pvesm import`; `socket` is the UNIX socket file the child shall listen on."""

    volid: str
    stream_format: str
    socket: Path
    with_snapshots: bool
    allow_rename: bool
    snapshot: str | None = None
    delete_snapshot: str | None = None


class Child(Protocol):
    """A running program whose output is read line by line (stdout and stderr on one pipe, in order)."""

    pid: int

    async def next_line(self, wait_s: float) -> str | None:
        """The next output line with its LF (a last line may lack it); None: nothing came in time, or it has ended."""

    def exhausted(self) -> bool:
        """It has ended and every line was taken."""

    async def ended(self) -> int:
        """Wait for the end. Returns: exit code, or minus the signal's number."""

    async def kill(self) -> None:
        """SIGKILL to its whole session, and wait until it is gone; nothing where it has ended."""


class Storage(Protocol):
    """Volumes, through `pvesm` (Proxmox's or ours) as a child."""

    def config(self) -> Mapping[str, StorageEntry]:
        """storage.cfg, read again when it changed; ids to entries."""

    def datacenter_bwlimit(self) -> str | None:
        """The `bwlimit` value of datacenter.cfg."""

    async def alloc(self, storage: str, vmid: int, size_bytes: int, format: str, report: Report) -> str:
        """Returns: the new volume's id. Raises: BackendFailed."""

    async def free(self, volid: str) -> None:
        """Remove a volume. Raises: BackendFailed."""

    async def volumes(self, storage: str, vmid: int | None = None) -> list[Volume]: ...

    async def path(self, volid: str) -> str:
        """Returns: its path in the file system (or a URL of the storage's own)."""

    async def size_bytes(self, volid: str) -> int | None:
        """Returns: its virtual size; None where there is no such volume."""

    async def refers_elsewhere(self, volid: str) -> str | None:
        """A reason where the image names another file (backing file, data file), else None. Never follows it."""

    async def digest(self, volid: str) -> str:
        """Returns: SHA-256 of the volume's file, hex."""

    async def sync(self, volids: Sequence[str]) -> None:
        """fsync these volumes' files and their folders, off the reactor; skips what is no file."""

    def start_import(self, request: ImportRequest) -> Child: ...

    def start_export(self, volid: str, stream_format: str, *, with_snapshots: bool, stdout: int) -> Child:
        """Write the stream to the file descriptor `stdout`; the lines are its stderr."""

    async def available_bytes(self, storage: str) -> int | None:
        """Free space where it is known (`pvesm status`)."""

    async def end_orphans(self) -> None:
        """End the children of an earlier daemon that work on; none of them makes a volume after that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """How a VM is started that waits for its state from another host.

    `migrate_socket`, `nbd_socket`: UNIX socket files to listen on (None: no NBD server); `exports`: drive key to volume
    id, each exported writable as `drive-KEY`; the rest as the source sent it (protocol.md section 5, `start`).
    """

    migrate_socket: Path
    nbd_socket: Path | None
    exports: Mapping[str, str]
    from_node: str
    machine: str | None = None
    cpu: str | None = None
    nets_host_mtu: str | None = None
    spice_ticket: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """What QEMU says: `status` as in query-status (`inmigrate`, `paused`, `running`, …), `off` where there is none.

    `whole`: query-migrate says completed here. `dirty_end`: where it is off, why it ended (tail of its stderr).
    """

    status: str
    whole: bool = False
    dirty_end: str = ""


class Hypervisor(Protocol):
    """The virtual machines that run on this node."""

    def check(self, conf: GuestConfig) -> None:
        """Raises: TunnelError: naming the key that this host cannot run, or why."""

    def running(self, vmid: int) -> bool:
        """Whether there is a live QEMU process; reads no socket."""

    async def state(self, vmid: int) -> MachineState:
        """Ask QEMU now; `off` where there is none."""

    async def start(self, vmid: int, conf: GuestConfig, incoming: Incoming, report: Report) -> int | None:
        """Start a VM paused, waiting for its state; its sockets listen when this returns.

        Returns: the SPICE port where there is one. Raises: BackendFailed: with QEMU's own reason; nothing is left then.
        """

    async def wait_whole(self, vmid: int) -> None:
        """Wait until the whole state has arrived. Raises: BackendFailed: QEMU ended before, with its reason."""

    async def resume(self, vmid: int) -> None:
        """Running: nothing; paused: run; suspended: wake up; shut down: reset and run.

        Raises: WrongState: `VM N not running`, or its state is not whole yet.
        """

    async def stop(self, vmid: int) -> None:
        """QMP quit, then signals; success where it is off; sockets, pidfile and stderr file go too."""

    async def stop_nbd(self, vmid: int) -> None:
        """Raises: WrongState: `VM N not running`."""

    async def trim(self, vmid: int, report: Report) -> None:
        """Never an error: what stands in the way goes to `report`."""


class TaskLog(Protocol):
    """The task log of one tunnel, in the words of Proxmox's own worker."""

    upid: str

    def line(self, text: str) -> None: ...

    def finish(self, status: str) -> None:
        """`OK`, `WARNINGS: N` or the error; writes the last line `TASK …` and closes."""


class Tasks(Protocol):
    """Task logs under the state directory (`tasks/LASTHEXDIGIT-OF-START/UPID`)."""

    def start(self, vmid: int, token: str) -> TaskLog: ...

    def close_orphans(self, status: str) -> None:
        """Finish the logs whose daemon died before it did."""


class Journal(Protocol):
    """One append-only file of JSON lines for a VMID; written before each effect."""

    async def open(self, vmid: int, record: Mapping[str, Any]) -> None:
        """Create the file with its first record (O_EXCL). Raises: WrongState: one stands already."""

    async def append(self, vmid: int, record: Mapping[str, Any]) -> None:
        """Add a record and fsync it, off the reactor."""

    async def close(self, vmid: int) -> None:
        """Delete the file: nothing is owed any more."""

    def read(self, vmid: int) -> list[dict[str, Any]] | None:
        """All whole records; None where there is no journal."""

    def standing(self) -> list[int]:
        """The VMIDs that have a journal."""

    async def tidy(self) -> None:
        """Remove what a crash left in the middle of opening a journal: it announced nothing."""


class Answerer(Protocol):
    """What a command connection talks to: one line in, one reply out, one at a time."""

    async def answer(self, line: bytes) -> bytes:
        """Returns: the reply without its LF. Never raises."""

    def connected(self) -> bool:
        """Returns: False: this tunnel has its command connection already."""

    def disconnected(self) -> None:
        """The connection is over and every line that counts was answered."""


class Listening(Protocol):
    """A listening UNIX socket."""

    async def close(self) -> None:
        """Stop listening, end connections, remove the socket file."""


Listen = Callable[[Path, Answerer], Awaitable[Listening]]
"""Listen for a tunnel's command connection on a UNIX socket (mode 0600)."""


class Stream(Protocol):
    """One websocket's relay, as the tunnel sees it; payload bytes from (`in`) and to (`out`) the peer."""

    @property
    def bytes_in(self) -> int: ...

    @property
    def bytes_out(self) -> int: ...

    def abort(self) -> None:
        """End both sides now."""


class Route(Protocol):
    """Where a websocket leads: a socket of a live tunnel, found by its wire name."""

    file: Path
    vmid: int
    token: str

    def check_room(self) -> None:
        """To be asked before the socket is dialled, whose owner may take one connection only. Raises: WrongState."""

    def opened(self, stream: Stream) -> None:
        """A relay runs from now on. Raises: WrongState (409): the one command connection is there already."""

    async def closed(self, *, orderly: bool) -> None:
        """The relay has ended; to be awaited before the UNIX side is closed when it is not orderly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The answer to the call that opens a tunnel."""

    upid: str
    ticket: str
    socket: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelStatus:
    """A line of `mtunnel status`."""

    vmid: int
    token: str
    upid: str
    state: str
    since: float
    streams: int
    bytes_in: int
    bytes_out: int


class Tunnels(Protocol):
    """All live tunnels: what the HTTP API and the daemon's own door talk to."""

    async def open(
        self, vmid: int, token: str, storages: Sequence[str], bridges: Sequence[str], address: str = ""
    ) -> Opened:
        """Storage and bridge checks, the claim, and a worker that waits for its command connection.

        `address` is the peer's, for the record.
        """

    def route(self, vmid: int, path: str, token: str, ticket: str) -> Route:
        """Check a ticket, then find the socket. Raises: NotFound: no config; Unauthenticated: the ticket."""

    async def digest(self, vmid: int, token: str, volid: str) -> str:
        """SHA-256 of a volume that this token's live tunnel made. Raises: NotFound."""

    def live(self) -> list[TunnelStatus]: ...
