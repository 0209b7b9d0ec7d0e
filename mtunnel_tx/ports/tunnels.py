"""All live tunnels, as the HTTP API and the control socket see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mtunnel_tx.ports.streams import Route
from mtunnel_tx.pve.guestlayout import QEMU_LAYOUT
from mtunnel_tx.wire.checkrequest import CheckCall


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

    def live(self) -> list[TunnelStatus]: ...
