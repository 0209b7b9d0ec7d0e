"""One live tunnel: its VM, its sockets, what it made, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.ports.journal import TaskLog
from mtunnel_tx.ports.tunnels import TunnelStatus
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.tunnel.claim import Claim
from mtunnel_tx.tunnel.guestkind import GuestKind
from mtunnel_tx.tunnel.imports import ImportJob
from mtunnel_tx.tunnel.ledger import Ledger
from mtunnel_tx.tunnel.services import Services
from mtunnel_tx.tunnel.sockets import SocketTable
from mtunnel_tx.waiting import Task
from mtunnel_tx.wire.socketkinds import COMMANDS, DISK_IMPORT

WRONG_LOCK = "Encountered wrong lock - aborting mtunnel command handling."


class State(Enum):
    """How far a tunnel has come (docs/states.md)."""

    WAITING = "waiting for its source"
    SERVING = "serving"
    LEAVING = "done, waiting for the source to leave"
    ENDING = "being ended"


class Tunnel:
    """What the handlers of one tunnel share; `address` is where the call that opened it came from."""

    def __init__(self, services: Services, kind: GuestKind, ledger: Ledger, task: TaskLog) -> None:
        self.claim = Claim(services, ledger, task)
        self.services = services
        self.kind = kind
        self.vmid = vmid = ledger.owed.vmid
        self.token = token = ledger.owed.token
        self.task = task
        self.address = ""
        self.state = State.WAITING
        self.since = services.clock.seconds()
        self.ledger = ledger
        self.own = self.claim.own
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

    def check_mark(self, conf: GuestConfig) -> None:
        """Raises: TunnelError: somebody else changed the config's lock. After `unlock` no lock is ours."""
        if not self.ledger.owed.handed_over and conf.lock not in self.ledger.owed.marks:
            raise TunnelError(WRONG_LOCK)

    async def end_children(self) -> None:
        """End everything that works for this tunnel but its command connection."""
        if self.disk_import is not None and not self.disk_import.over:
            await self.disk_import.kill()
        self.sockets.abort_streams(but=COMMANDS)
        self.sockets.drop(DISK_IMPORT)

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
