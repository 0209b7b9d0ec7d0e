"""All live tunnels, as the HTTP API and the control socket see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from mtunnel_tx.ports.streams import Route
from mtunnel_tx.pve.guestlayout import QEMU_LAYOUT

if TYPE_CHECKING:
    from mtunnel_tx.wire.checkrequest import CheckCall  # a source imports no schemas


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The answer to the call that opens a tunnel."""

    upid: str
    ticket: str
    socket: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedFlow:
    """A flow without a connection. socket: its kind; since: seconds since the epoch; park_s: how long it waits."""

    socket: str
    since: float
    park_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelStatus:
    """A line of `mtunnel status`; `interrupted_s`: how long there was a parked flow, up to now."""

    vmid: int
    token: str
    upid: str
    state: str
    since: float
    streams: int
    bytes_in: int
    bytes_out: int
    parked: tuple[ParkedFlow, ...] = ()
    interrupted_s: float = 0.0


class Decision(Enum):
    """What is to become of a VM that is held. RUN: it is this host's, and runs if its state is here. KEEP: it is this
    host's, and stays as it is. DISCARD: it is the source's.
    """

    RUN = "run"
    KEEP = "keep"
    DISCARD = "discard"


@dataclass(frozen=True, slots=True, kw_only=True)
class LateAnswer:
    """What a source is told whose tunnel is over.

    verdict: what became of the VM, in a word or two; `held`: nobody has decided yet. The others are about such a one:
    what QEMU says here, `off` where there is none, and that it is another one's where the tunnel has not started it;
    whether it has the whole state; whether the VM may have run here, or the source has given it up.
    """

    verdict: str
    machine: str = "off"
    is_whole: bool = False
    is_given_up: bool = False


class Tunnels(Protocol):
    """All live tunnels: what the HTTP API and the control socket talk to."""

    async def open(
        self,
        vmid: int,
        token: str,
        storages: Sequence[str],
        bridges: Sequence[str],
        address: str = "",
        *,
        kind: str = QEMU_LAYOUT.word,
    ) -> Opened:
        """Storage and bridge checks, the claim, and a tunnel that waits for its command connection.

        `address` is the peer's, for the record; `kind` is the word of the guest's kind.
        """

    async def check(self, call: CheckCall, token: str, *, kind: str = QEMU_LAYOUT.word) -> Mapping[str, Any]:
        """What would stand in the way of a VM that would come, all of it, and what would become of its disks."""

    def route(self, vmid: int, path: str, token: str, ticket: str) -> Route:
        """Check a ticket, then find the socket. Raises: NotFound: no config; Unauthenticated: the ticket."""

    async def digest(self, vmid: int, token: str, volid: str, *, content: bool = False) -> str:
        """SHA-256 of a volume that this token's live tunnel made, or of its content. Raises: NotFound."""

    async def abandon(self, vmid: int, token: str, upid: str) -> None:
        """End a parked tunnel of this token. Raises: NotFound; WrongState: its source is connected."""

    async def come_late(self, vmid: int, token: str, upid: str, decision: Decision | None = None) -> LateAnswer:
        """What became of this token's tunnel of that task; a held one is decided.

        Raises: NotFound: nothing is known of it. WrongState: its source is connected, or that cannot be decided so.
        """

    def live(self) -> list[TunnelStatus]: ...
