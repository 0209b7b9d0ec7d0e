"""One live tunnel: its VM, its sockets, what it made, and how far it has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mtunnel_tx.errors import TunnelError, Unauthenticated
from mtunnel_tx.ports.events import (
    FlowBegan,
    FlowEnded,
    FlowParked,
    FlowResumed,
    PhaseReached,
    TunnelEvent,
    TunnelFacts,
    TunnelPhase,
)
from mtunnel_tx.ports.journal import TaskLog
from mtunnel_tx.ports.tunnels import TunnelStatus
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.tunnel.claim import Claim
from mtunnel_tx.tunnel.guestkind import GuestKind
from mtunnel_tx.tunnel.imports import ImportJob
from mtunnel_tx.tunnel.ledger import Ledger
from mtunnel_tx.tunnel.parking import Parking
from mtunnel_tx.tunnel.services import Services
from mtunnel_tx.tunnel.sockets import SocketRoute, SocketTable
from mtunnel_tx.waiting import OwnedWork, Task
from mtunnel_tx.wire.socketkinds import DISK_IMPORT

WRONG_LOCK = "Encountered wrong lock - aborting mtunnel command handling."


_PHASES = {
    "making": TunnelPhase.DISKS,
    "configured": TunnelPhase.CONFIGURED,
    "starting": TunnelPhase.STARTING,
    "whole": TunnelPhase.WHOLE,
    "resumed": TunnelPhase.RESUMED,
    "handed_over": TunnelPhase.HANDED_OVER,
    "rolling_back": TunnelPhase.ROLLING_BACK,
}
"""The phases that begin with a record of the journal."""


class State(Enum):
    """What a tunnel takes: no command yet, commands, none any more (docs/states.md); the value is the phase."""

    WAITING = TunnelPhase.WAITING
    SERVING = TunnelPhase.SERVING
    LEAVING = TunnelPhase.LEAVING
    ENDING = TunnelPhase.ENDING


class Tunnel:
    """What the handlers of one tunnel share.

    Args: address: where the call that opened it came from. since_s: when that was; None: now.
    """

    def __init__(
        self, services: Services, kind: GuestKind, ledger: Ledger, task: TaskLog, address: str,
        since_s: float | None = None,
    ) -> None:  # fmt: skip
        self.claim = Claim(services, ledger, task)
        self.services = services
        self.kind = kind
        self.vmid = vmid = ledger.owed.vmid
        self.token = token = ledger.owed.token
        self.task = task
        self.ledger = ledger
        self.own = self.claim.own
        folders = (services.runtime_dir, services.machine_dir)
        self.sockets = SocketTable(kind.layout, vmid, token, folders, services.limits.streams_per_tunnel)
        self.facts = TunnelFacts(
            vmid=vmid,
            kind=kind.layout.word,
            token=token,
            address=address,
            upid=task.upid,
            since_s=services.wall() if since_s is None else since_s,
            traffic=self.sockets.traffic,
        )
        self._state = State.WAITING
        self._phase = TunnelPhase.WAITING
        ledger.written = self._record_written
        self.sockets.upid = task.upid
        self.sockets.watch(self._flow_began, self._flow_ended)
        self.sockets.parked, self.sockets.resumed = self._flow_parked, self._flow_resumed
        self.parking = Parking(services.clock.seconds, services.wall, services.limits.park_s)
        self.requests = OwnedWork(f"the tunnel of {kind.layout.label} {vmid} has ended")
        self.disk_import: ImportJob | None = None
        self.drives: dict[str, str] = {}
        self.watch: Task | None = None

    @property
    def rights(self) -> Rights:
        """What the token may do now; asked anew each time."""
        return self.services.access.rights(self.token)

    def belongs_to(self, token: str, upid: str) -> bool:
        """Whether it is that token's tunnel of that task."""
        return (self.token, self.task.upid) == (token, upid)

    def check_token(self) -> None:
        """Raises: Unauthenticated: its user was disabled, or the token is gone or has expired."""
        try:
            self.services.access.rights(self.token)
        except Unauthenticated as error:
            raise Unauthenticated(f"token '{self.token}' is no longer valid") from error

    @property
    def state(self) -> State:
        """What it takes; every change is told."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state
        self._reach(state.value)

    def _reach(self, phase: TunnelPhase) -> None:
        if phase is not self._phase:
            self._phase = phase
            self.tell(PhaseReached(tunnel=self.facts, phase=phase))

    def _record_written(self, word: str) -> None:
        if word in _PHASES:
            self._reach(_PHASES[word])

    def _flow_began(self, route: SocketRoute) -> None:
        self.tell(FlowBegan(tunnel=self.facts, number=route.number, socket=route.kind, traffic=route.traffic))

    def _flow_parked(self, route: SocketRoute, reason: str, waited_s: float) -> None:
        self.parking.park(route, waited_s)
        if not self.parking.is_told:
            return
        # The daemon before may have told the loss; what is told now is true in either case.
        what = f"without a connection for {waited_s:.1f} s" if waited_s else "connection lost"
        self.task.line(f"{route.kind.name}: {what} ({reason}), waiting for another one")
        facts = self.facts
        self.tell(FlowParked(tunnel=facts, number=route.number, socket=route.kind, reason=reason, waited_s=waited_s))

    def _flow_resumed(self, route: SocketRoute, waited_s: float) -> None:
        self.parking.forget(route)
        if not self.parking.is_told:
            return
        self.task.line(f"{route.kind.name}: resumed after {waited_s:.1f} s")
        facts, parked_s = self.facts, self.parking.parked_s
        self.tell(
            FlowResumed(tunnel=facts, number=route.number, socket=route.kind, waited_s=waited_s, parked_s=parked_s)
        )

    def _flow_ended(self, route: SocketRoute, orderly: bool) -> None:
        self.parking.forget(route)
        traffic = route.traffic()
        self.tell(
            FlowEnded(tunnel=self.facts, number=route.number, socket=route.kind, traffic=traffic, orderly=orderly)
        )

    def tell(self, event: TunnelEvent) -> None:
        """Tell the observers."""
        self.services.observers.tell(event)

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
        await self.requests.end()
        if self.disk_import is not None and not self.disk_import.over:
            await self.disk_import.kill()
        self.sockets.abort_streams()
        self.sockets.drop(DISK_IMPORT)

    def lasting(self) -> Mapping[str, Any]:
        """What never changes and is in no journal."""
        return {"upid": self.task.upid, "address": self.facts.address, "since_s": self.facts.since_s}

    def snapshot(self) -> Mapping[str, Any]:
        """What another daemon needs to go on, besides the journal."""
        job = self.disk_import.snapshot() if self.disk_import is not None else None
        return {
            "sockets": self.sockets.suffixes(),
            "drives": dict(self.drives),
            "import": job,
            "interrupted_s": self.parking.before_s,
        }

    def status(self) -> TunnelStatus:
        """One line for `mtunnel status`."""
        bytes_in, bytes_out = self.sockets.traffic()
        return TunnelStatus(
            vmid=self.vmid,
            token=self.token,
            upid=self.task.upid,
            state=self.state.value.value,
            since=self.facts.since_s,
            streams=len(self.sockets.routes),
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            parked=self.parking.flows(),
            interrupted_s=round(self.parking.parked_s, 1),
        )


@dataclass(frozen=True, slots=True)
class Guest:
    """A tunnel and its VM's config as it was read for this command."""

    tunnel: Tunnel
    conf: GuestConfig
