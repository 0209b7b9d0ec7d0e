"""What observers are told: everything that happens to tunnels, as values, in the order in which it happens.

An observer is called in the reactor's own thread and must return at once; what takes time it has to put off. It can
neither change nor end a tunnel: what it raises is logged once, and it is told on. Bytes are no events, as there are too
many; an observer asks for them when it needs them (`traffic`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from mtunnel_tx.ports.moves import MoveEvent
from mtunnel_tx.wire.socketkinds import SocketKind


class ByteCount(NamedTuple):
    """Payload bytes from (`in`) and to (`out`) the peer, up to now."""

    bytes_in: int
    bytes_out: int


class TunnelPhase(Enum):
    """How far a tunnel has come; the value is for people. A tunnel need not go through all of them."""

    WAITING = "waiting for its source"
    SERVING = "serving"
    DISKS = "receiving disks"
    CONFIGURED = "its config is written"
    STARTING = "its QEMU is started"
    WHOLE = "its whole state is here"
    RESUMED = "running here"
    HANDED_OVER = "given up by its source"
    ROLLING_BACK = "being rolled back"
    LEAVING = "done, waiting for the source to leave"
    ENDING = "being ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelFacts:
    """Which tunnel an event is about; the same in all of its events.

    kind: the word of its guest's kind. address: where the call that opened it came from. since_s: when it was opened,
    seconds since the epoch. traffic: of all its flows together.
    """

    vmid: int
    kind: str
    token: str
    address: str
    upid: str
    since_s: float
    traffic: Callable[[], ByteCount]


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelOpened:
    """A VMID was claimed; the command connection is awaited."""

    tunnel: TunnelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseReached:
    """A tunnel has come further."""

    tunnel: TunnelFacts
    phase: TunnelPhase


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowBegan:
    """A peer is connected with one of the tunnel's sockets. number: counts the tunnel's flows, from 1 on."""

    tunnel: TunnelFacts
    number: int
    socket: SocketKind
    traffic: Callable[[], ByteCount]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowEnded:
    """The flow of that number is over. orderly: both sides ended it well."""

    tunnel: TunnelFacts
    number: int
    socket: SocketKind
    traffic: ByteCount
    orderly: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowParked:
    """The flow of that number has lost its connection, and waits for another one.

    waited_s: for so long already, under an earlier daemon or without any.
    """

    tunnel: TunnelFacts
    number: int
    socket: SocketKind
    reason: str
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowResumed:
    """It has another one.

    waited_s: how long it had none. parked_s: how long there was a parked flow, in this tunnel up to now.
    """

    tunnel: TunnelFacts
    number: int
    socket: SocketKind
    waited_s: float
    parked_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandAnswered:
    """A command of the table was answered. failure: what the peer was told; empty where it succeeded."""

    tunnel: TunnelFacts
    name: str
    failure: str
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveTold:
    """What is known about the move that a tunnel is for. by_source: the source said so itself, which knows best."""

    tunnel: TunnelFacts
    said: tuple[MoveEvent, ...]
    by_source: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelEnded:
    """A tunnel is over.

    reason: why it ended, as its task log says; empty after `quit`. outcome: what became of the VM, in a word or two.
    problem: why it waits for `mtunnel settle`, or None.
    """

    tunnel: TunnelFacts
    reason: str
    outcome: str
    problem: str | None
    traffic: ByteCount
    duration_s: float


FlowEvent = FlowBegan | FlowParked | FlowResumed | FlowEnded
TunnelEvent = TunnelOpened | PhaseReached | FlowEvent | CommandAnswered | MoveTold | TunnelEnded
Observer = Callable[[TunnelEvent], object]
