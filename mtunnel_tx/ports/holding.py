"""What outlives the daemon and keeps descriptors and programs for the next one."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from mtunnel_tx.ports.storage import Child
from mtunnel_tx.ports.streams import Route


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What an earlier daemon has left. names: of the entries. programs: those that run or have ended unseen."""

    names: Sequence[str] = ()
    programs: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowPositions:
    """How far a flow is.

    taken_bytes: of the peer's, by the UNIX socket. sent_bytes: read from it. queued_bytes: that wait to be read.
    is_parked: nobody reads them now, and nobody writes to it.
    """

    taken_bytes: int
    sent_bytes: int
    queued_bytes: int
    is_parked: bool = False


class LivingFlow(Protocol):
    """A flow of an earlier daemon's, parked or in a worker; it leads to this tunnel's socket with this suffix.

    An empty suffix: it cannot be understood, and cannot be adopted; VMID 0: nobody knows whose it was.
    """

    vmid: int
    suffix: str

    async def positions(self) -> FlowPositions:
        """Ask for them. Raises: BackendFailed: it has ended."""

    def adopt(self, route: Route) -> None:
        """Open the route for it, which hears of its end; what has happened meanwhile is told at once."""

    def abandon(self) -> None:
        """Have it ended, unless it was adopted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivors:
    """What is left of an earlier daemon's tunnels."""

    kept: Kept = Kept()
    flows: Sequence[LivingFlow] = ()


class HasDescriptor(Protocol):
    """A socket or a file."""

    def fileno(self) -> int: ...


class Store(Protocol):
    """Keeps sockets and files under names, each with a small value, and runs programs. It may be lost at any time."""

    def put(self, name: str, value: object, sockets: Sequence[HasDescriptor] = ()) -> Deferred[bool]:
        """Keep this, in the place of what is there; without sockets, an entry keeps its own. Duplicates are kept.

        Returns: fires with True when it is kept, or cannot be while this daemon lives on, which is logged; with False
        when this daemon has let go of the store before it knew.
        """

    async def get(self, name: str) -> tuple[Any, list[Any]]:
        """What lies there, and stays: the value, and duplicates of the sockets and files. Raises: BackendFailed."""

    def drop(self, name: str) -> None:
        """Close what lies there."""

    def spawn(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        stdin: socket.socket | None = None,
        *,
        keeps_end: bool = False,
    ) -> Child:
        """Run a program that does not end with the daemon. Its lines are kept until the next one was taken.

        Args: keeps_end: how it ended is kept for the next daemon until `kill`; else until this one has heard of it.
        One that cannot be started ends with code 127, with the reason as its last line.
        """

    def adopt(self, name: str, taken: int = 0, *, keeps_end: bool = False) -> Child:
        """A program of an earlier daemon's. Args: taken: how many of its lines were dealt with for good."""

    def watch(self) -> None:
        """From now on hear of programs. Those of an earlier daemon's that nobody has adopted are ended."""
