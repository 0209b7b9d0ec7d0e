"""One live tunnel: its VM, its sockets, what it made, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.ports.journal import TaskLog
from mtunnel_tx.ports.tunnels import TunnelStatus
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.tunnel.guestkind import GuestKind
from mtunnel_tx.tunnel.imports import ImportJob
from mtunnel_tx.tunnel.ledger import Ledger
from mtunnel_tx.tunnel.ownership import Ownership
from mtunnel_tx.tunnel.services import Services
from mtunnel_tx.tunnel.sockets import SocketTable
from mtunnel_tx.waiting import Task

WRONG_LOCK = "Encountered wrong lock - aborting mtunnel command handling."


class State(Enum):
    """How far a tunnel has come (docs/states.md)."""

    WAITING = "waiting for its source"
    SERVING = "serving"
    LEAVING = "done, waiting for the source to leave"
    ENDING = "being ended"


class Tunnel:
    """What the handlers of one tunnel share. `mark` is the config lock that is ours; None after `unlock`.

    `address` is where the call that opened it came from.
    """

    def __init__(self, services: Services, kind: GuestKind, ledger: Ledger, task: TaskLog) -> None:
        self.services = services
        self.kind = kind
        self.vmid = vmid = ledger.owed.vmid
        self.token = token = ledger.owed.token
        self.task = task
        self.address = ""
        self.state = State.WAITING
        self.mark: str | None = "create"
        self.since = services.clock.seconds()
        self.warnings = 0
        self.ledger = ledger
        self.own = Ownership(services.storage, ledger, task)
        folders = (services.runtime_dir, services.machine_dir)
        self.sockets = SocketTable(kind.layout, vmid, token, folders, services.limits.streams_per_tunnel)
        self.disk_import: ImportJob | None = None
        self.drives: dict[str, str] = {}
        self.watch: Task | None = None

    @property
    def rights(self) -> Rights:
        """What the token may do now; asked anew each time."""
        return self.services.access.rights(self.token)

    @property
    def leaving(self) -> bool:
        """`quit` was answered: exit mode."""
        return self.state is State.LEAVING

    def warn(self, text: str) -> None:
        """A line in the task log that also shows in the task's end status."""
        self.warnings += 1
        self.task.line(f"WARN: {text}")

    def check_mark(self, conf: GuestConfig) -> None:
        """Raises: TunnelError: somebody else changed the config's lock."""
        if self.mark is not None and conf.lock != self.mark:
            raise TunnelError(WRONG_LOCK)

    def status(self) -> TunnelStatus:
        """One line for `mtunnel status`."""
        bytes_in, bytes_out = self.sockets.traffic()
        return TunnelStatus(
            vmid=self.vmid,
            token=self.token,
            upid=self.task.upid,
            state=self.state.value,
            since=self.since,
            streams=len(self.sockets.routes),
            bytes_in=bytes_in,
            bytes_out=bytes_out,
        )


@dataclass(frozen=True, slots=True)
class Guest:
    """A tunnel and its VM's config as it was read for this command."""

    tunnel: Tunnel
    conf: GuestConfig


def marked(conf: GuestConfig, lock: str | None) -> GuestConfig:
    """The same config under another lock, or none."""
    copy = conf.copy()
    copy.options.pop("lock", None)
    if lock is not None:
        copy.options["lock"] = lock
    return copy
