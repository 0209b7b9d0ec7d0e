"""Flows as a tunnel sees them, and where they lead."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from mtunnel_tx.wire.socketkinds import SocketKind


class TunnelFlow(Protocol):
    """One flow, as the tunnel sees it; payload bytes from (`in`) and to (`out`) the peer."""

    @property
    def bytes_in(self) -> int: ...

    @property
    def bytes_out(self) -> int: ...

    @property
    def is_unused(self) -> bool:
        """It is parked, and has carried nothing."""

    def abort(self) -> None:
        """End both sides now."""


class Route(Protocol):
    """Where a websocket leads: a socket of a live tunnel, found by its wire name."""

    kind: SocketKind
    file: Path
    vmid: int
    token: str
    upid: str

    def check_room(self) -> None:
        """To be asked before the socket is dialled, whose owner may take one connection only. Raises: WrongState."""

    def unused(self) -> TunnelFlow | None:
        """A flow that goes on with this connection: whoever opened it has not heard of it. None: there is none."""

    def opened(self, flow: TunnelFlow) -> None:
        """The flow runs from now on. Raises: WrongState (409): the one command connection is there already."""

    def parked(self, reason: str, waited_s: float) -> None:
        """The flow has lost its connection, and waits for another one; for so long already, under an earlier daemon."""

    def resumed(self, waited_s: float) -> None:
        """It has another one."""

    async def closed(self, *, orderly: bool) -> None:
        """The flow has ended; to be awaited before the UNIX side is closed when it is not orderly."""
