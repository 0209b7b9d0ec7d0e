"""All moves that come to this host, as they are now: made of what observers are told (ports/events.py).

A source of our own says how far it is, and is believed. Of any other one it is known what its commands say: sizes of
mirrored disks and of the memory, and the bytes that came. Which mirror they are of, and how long the image of a disk
will be, nobody says: mirrors are shown as one, and the total of an image is unknown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mtunnel_tx.ports.events import (
    ByteCount,
    FlowBegan,
    FlowEnded,
    FlowParked,
    FlowResumed,
    MoveTold,
    PhaseReached,
    TunnelEnded,
    TunnelEvent,
    TunnelOpened,
    TunnelPhase,
)
from mtunnel_tx.ports.moves import (
    Carried,
    Expected,
    Finished,
    MoveEvent,
    MovePhase,
    OutageBegan,
    OutageEnded,
    Reached,
    TransferKind,
    WasParked,
    Wired,
)
from mtunnel_tx.watch.move import INCOMING, MoveState, apply
from mtunnel_tx.wire.socketkinds import DISK_IMPORT, MEMORY, NBD, SocketKind

MIRRORS = "disks"
"""The label of all mirrors together."""
MOST_OVER = 16
OVER_S = 600.0
"""How long a move that is over is still shown."""
_PHASES = {TunnelPhase.WHOLE: MovePhase.HAND_OVER, TunnelPhase.RESUMED: MovePhase.HAND_OVER}
_SOCKETS = {DISK_IMPORT: MovePhase.DISKS, NBD: MovePhase.MIRROR, MEMORY: MovePhase.MEMORY}


@dataclass(slots=True)
class _Flow:
    """A flow, and the transfer that it is of."""

    label: str
    traffic: Callable[[], ByteCount]


@dataclass(slots=True)
class _Coming:
    """One tunnel's move, and what has to be remembered to follow it."""

    move: MoveState
    traffic: Callable[[], ByteCount]
    told: bool = False
    is_whole: bool = False
    image: str = "disk"
    mirrors_bytes: int = 0
    flows: dict[int, _Flow] = field(default_factory=dict)
    parked: set[int] = field(default_factory=set)
    ended_bytes: dict[str, int] = field(default_factory=dict)


def end_phase(outcome: str) -> MovePhase:
    """The end of a move, by what became of the VM (tunnel.verdict, or the value of a phase)."""
    ends = {"kept": MovePhase.DONE, "done": MovePhase.DONE, "held": MovePhase.HELD}
    return ends.get(outcome, MovePhase.ROLLED_BACK)


class Board:
    """An instance is an observer. Args: node: this host's name. wall_s: seconds since the epoch."""

    def __init__(self, node: str, wall_s: Callable[[], float]) -> None:
        self._node = node
        self._wall_s = wall_s
        self._coming: dict[str, _Coming] = {}
        self._over: deque[MoveState] = deque(maxlen=MOST_OVER)

    def moves(self) -> list[MoveState]:
        """Those that come, by VMID, and then those that ended lately, the newest first."""
        until_s = self._wall_s() - OVER_S
        live = sorted((coming.move for coming in self._coming.values()), key=lambda move: move.vmid)
        return live + [move for move in self._over if (move.ended_s or 0) >= until_s]

    def find(self, upid: str) -> MoveState | None:
        """The move of a task; None: there is none, or it ended long ago."""
        return next((move for move in self.moves() if move.upid == upid), None)

    def look(self) -> None:
        """Look at the counts of all flows; to be called about once a second while there are moves."""
        for coming in self._coming.values():
            self._look_at(coming)

    def __call__(self, event: TunnelEvent) -> None:
        upid = event.tunnel.upid
        if isinstance(event, TunnelOpened):
            self._coming[upid] = self._begin(event)
        coming = self._coming.get(upid)
        if coming is None:
            return
        match event:
            case MoveTold():
                self._hear(coming, event)
            case PhaseReached(phase=phase) if phase in _PHASES:
                coming.is_whole = True
                self._tell(coming, Reached(phase=_PHASES[phase]))
            case FlowBegan():
                self._begin_flow(coming, event)
            case FlowEnded(number=number):
                self._unpark(coming, number)
                self._end_flow(coming, event)
            case FlowParked(number=number):
                coming.parked.add(number)
                self._tell(coming, OutageBegan())
            case FlowResumed(number=number, parked_s=parked_s):
                self._tell(coming, WasParked(parked_s=parked_s))
                self._unpark(coming, number)
            case TunnelEnded():
                self._end(coming, event)

    def _begin(self, event: TunnelOpened) -> _Coming:
        tunnel = event.tunnel
        move = MoveState(
            direction=INCOMING,
            vmid=tunnel.vmid,
            target_vmid=tunnel.vmid,
            source="",
            target=self._node,
            address=tunnel.address,
            token=tunnel.token,
            upid=tunnel.upid,
            since_s=tunnel.since_s,
        )
        return _Coming(move, tunnel.traffic)

    def _tell(self, coming: _Coming, *events: MoveEvent) -> None:
        for event in events:
            coming.move = apply(coming.move, event, self._wall_s())

    def _unpark(self, coming: _Coming, number: int) -> None:
        coming.parked.discard(number)
        if not coming.parked:
            self._tell(coming, OutageEnded())

    def _hear(self, coming: _Coming, event: MoveTold) -> None:
        if event.by_source:
            if not coming.told:
                coming.told = True
                coming.move = replace(coming.move, transfers=())
            # What this host has seen itself counts for more than what a source says.
            said = [one for one in event.said if not (coming.is_whole and isinstance(one, Reached))]
            self._tell(coming, *said)
        elif not coming.told:
            for one in event.said:
                self._expect(coming, one)

    def _expect(self, coming: _Coming, event: MoveEvent) -> None:
        if isinstance(event, Expected) and event.kind is TransferKind.MIRROR:
            coming.mirrors_bytes += event.total_bytes or 0
            event = Expected(label=MIRRORS, kind=event.kind, total_bytes=coming.mirrors_bytes)
        elif isinstance(event, Expected) and event.kind is TransferKind.DISK:
            coming.image = event.label
        self._tell(coming, event)

    def _begin_flow(self, coming: _Coming, event: FlowBegan) -> None:
        if event.socket not in _SOCKETS:
            return
        coming.flows[event.number] = _Flow(_label(coming, event.socket), event.traffic)
        if not coming.told:
            self._tell(coming, Reached(phase=_SOCKETS[event.socket]))

    def _end_flow(self, coming: _Coming, event: FlowEnded) -> None:
        flow = coming.flows.pop(event.number, None)
        if flow is None:
            return
        coming.ended_bytes[flow.label] = coming.ended_bytes.get(flow.label, 0) + event.traffic.bytes_in
        if not coming.told:
            self._carry(coming, flow.label)
            if event.socket is DISK_IMPORT:
                self._tell(coming, Finished(label=flow.label))

    def _look_at(self, coming: _Coming) -> None:
        self._tell(coming, Wired(**coming.traffic()._asdict()))
        if coming.told:
            for transfer in coming.move.transfers:
                if transfer.is_running:
                    self._tell(coming, Carried(label=transfer.label, done_bytes=transfer.done_bytes))
            return
        for label in {flow.label for flow in coming.flows.values()}:
            self._carry(coming, label)

    def _carry(self, coming: _Coming, label: str) -> None:
        """Bytes on the wire are the best that is known of the logical ones."""
        live_bytes = sum(flow.traffic().bytes_in for flow in coming.flows.values() if flow.label == label)
        self._tell(coming, Carried(label=label, done_bytes=coming.ended_bytes.get(label, 0) + live_bytes))

    def _end(self, coming: _Coming, event: TunnelEnded) -> None:
        self._look_at(coming)
        phase = MovePhase.HELD if event.problem else end_phase(event.outcome)
        self._tell(coming, Wired(**event.traffic._asdict()))
        self._tell(coming, Reached(phase=phase, reason=event.problem or event.reason))
        del self._coming[coming.move.upid]
        self._over.appendleft(coming.move)


def _label(coming: _Coming, socket: SocketKind) -> str:
    return {DISK_IMPORT: coming.image, NBD: MIRRORS}.get(socket, "memory")
