"""A move, as everybody who watches sees it: one value at both ends, and the fold of what is said about it.

Bytes are logical ones: what a disk's stream or its mirror has to copy, and what is sent of the memory. Wire bytes are
the payload of the websockets, which holes, pages of zeroes and protocols make smaller or larger. Times are in seconds
since the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mtunnel_tx.ports.moves import (
    MOST_TRANSFERS,
    Carried,
    Expected,
    Finished,
    MoveEvent,
    MovePhase,
    NamedSource,
    NamedTask,
    OutageBegan,
    OutageEnded,
    Reached,
    StoodStill,
    TransferKind,
    WasParked,
    Wired,
)

INCOMING, OUTGOING = "in", "out"
SMOOTHING_S = 5.0
"""A rate follows a change within about this time."""
_SAMPLE_S = 0.5
"""Two looks that are closer together say little about a rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """One disk, or the memory.

    total_bytes: None where this end does not know. began_s, ended_s: None: not yet. rate_bytes_s: smoothed, as of
    `sampled_s`, when `sampled_bytes` were done.
    """

    label: str
    kind: TransferKind
    total_bytes: int | None = None
    done_bytes: int = 0
    began_s: float | None = None
    ended_s: float | None = None
    rate_bytes_s: float = 0.0
    sampled_bytes: int = 0
    sampled_s: float = 0.0

    @property
    def is_running(self) -> bool:
        """It has begun and not ended."""
        return self.began_s is not None and self.ended_s is None

    @property
    def remaining_bytes(self) -> int | None:
        """What is left, at least 0; None: not known."""
        if self.ended_s is not None:
            return 0
        return None if self.total_bytes is None else max(0, self.total_bytes - self.done_bytes)

    @property
    def remaining_s(self) -> float | None:
        """How long the rest takes at this rate; None: nobody knows."""
        return _divide(self.remaining_bytes, self.rate_bytes_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveState:
    """One VM that comes or goes, or did.

    direction: `in` or `out`. vmid: here; target_vmid: at the target. source, target: names or addresses, empty where
    this end does not know. address: the peer's. token: the API token's id. upid: the task at the target. reason: why it
    ended. downtime_s: None: it did not stand still yet. parked_s: how long flows had no carrier, up to the last time
    that they had one again. outage_since_s: since when one of them has none; None: all have one.
    """

    direction: str
    vmid: int
    target_vmid: int
    source: str
    target: str
    address: str
    token: str
    upid: str
    since_s: float
    phase: MovePhase = MovePhase.CHECKING
    transfers: tuple[Transfer, ...] = ()
    wire_in_bytes: int = 0
    wire_out_bytes: int = 0
    downtime_s: float | None = None
    parked_s: float = 0.0
    outage_since_s: float | None = None
    ended_s: float | None = None
    reason: str = ""

    @property
    def done_bytes(self) -> int:
        """Of all transfers."""
        return sum(transfer.done_bytes for transfer in self.transfers)

    @property
    def remaining_bytes(self) -> int | None:
        """Of all transfers; None: of one of them nobody knows."""
        return _add(transfer.remaining_bytes for transfer in self.transfers)

    @property
    def total_bytes(self) -> int | None:
        """What is done, and what is left; None: nobody knows."""
        remaining_bytes = self.remaining_bytes
        return None if remaining_bytes is None else self.done_bytes + remaining_bytes

    @property
    def percent(self) -> int | None:
        """How much of all bytes is there, a whole number; 100 only where nothing is left. None: nobody knows."""
        if self.phase is MovePhase.DONE:
            return 100
        total_bytes = self.total_bytes
        return 100 * self.done_bytes // total_bytes if total_bytes else None

    @property
    def rate_bytes_s(self) -> float:
        """Of all transfers that run."""
        return sum(transfer.rate_bytes_s for transfer in self.transfers if transfer.is_running)

    @property
    def remaining_s(self) -> float | None:
        """How long the rest takes at this rate; None: nobody knows, or it is over."""
        return None if self.phase.is_end else _divide(self.remaining_bytes, self.rate_bytes_s)

    def find(self, label: str) -> Transfer | None:
        """The transfer of that label."""
        return next((transfer for transfer in self.transfers if transfer.label == label), None)


def _divide(remaining_bytes: int | None, rate_bytes_s: float) -> float | None:
    if remaining_bytes is None:
        return None
    if remaining_bytes == 0:
        return 0.0
    return remaining_bytes / rate_bytes_s if rate_bytes_s >= 1 else None


def _add(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def apply(move: MoveState, event: MoveEvent, at_s: float) -> MoveState:
    """One step of the fold; pure. What comes after the end changes nothing.

    Args: at_s: when it was said, seconds since the epoch; a clock that was set back does no harm.
    """
    if move.phase.is_end:
        return move
    match event:
        case Expected() | Carried() | Finished():
            return _change(move, event, at_s)
        case Reached(phase=phase, reason=reason):
            return _reach(move, phase, reason, at_s)
        case Wired(bytes_in=bytes_in, bytes_out=bytes_out):
            return replace(
                move,
                wire_in_bytes=max(bytes_in, move.wire_in_bytes),
                wire_out_bytes=max(bytes_out, move.wire_out_bytes),
            )
        case NamedSource(name=name):
            return replace(move, source=name)
        case NamedTask(upid=upid):
            return replace(move, upid=upid)
        case StoodStill(downtime_s=downtime_s):
            return replace(move, downtime_s=max(0.0, downtime_s))
        case WasParked(parked_s=parked_s):
            return replace(move, parked_s=max(parked_s, move.parked_s))
        case OutageBegan():
            return replace(move, outage_since_s=at_s if move.outage_since_s is None else move.outage_since_s)
        case OutageEnded():
            return replace(move, outage_since_s=None)


def _reach(move: MoveState, phase: MovePhase, reason: str, at_s: float) -> MoveState:
    if not phase.is_end:
        return replace(move, phase=phase)
    transfers = tuple(_end(one, at_s) if one.is_running else one for one in move.transfers)
    if phase is MovePhase.DONE:
        transfers = tuple(map(_complete, transfers))
    ended_s = max(at_s, move.since_s)
    return replace(move, phase=phase, reason=reason, ended_s=ended_s, outage_since_s=None, transfers=transfers)


def _change(move: MoveState, event: Expected | Carried | Finished, at_s: float) -> MoveState:
    known = move.find(event.label)
    if known is None:
        if not isinstance(event, Expected) or len(move.transfers) >= MOST_TRANSFERS:
            return move
        added = Transfer(label=event.label, kind=event.kind, total_bytes=_size(event.total_bytes))
        return replace(move, transfers=(*move.transfers, added))
    changed = _change_one(known, event, at_s)
    return replace(move, transfers=tuple(changed if one is known else one for one in move.transfers))


def _change_one(transfer: Transfer, event: Expected | Carried | Finished, at_s: float) -> Transfer:
    match event:
        case Expected(kind=kind, total_bytes=total_bytes):
            known = transfer.total_bytes if total_bytes is None else _size(total_bytes)
            return replace(transfer, kind=kind, total_bytes=known)
        case Carried(total_bytes=total_bytes):
            resized = transfer if total_bytes is None else replace(transfer, total_bytes=_size(total_bytes))
            return _carry(resized, max(event.done_bytes, transfer.done_bytes), at_s)
        case Finished():
            return _end(transfer, at_s)


def _carry(transfer: Transfer, done_bytes: int, at_s: float) -> Transfer:
    """Begins with the first call; goes on where it had ended, as a transfer may be tried again."""
    if transfer.began_s is None:
        return replace(
            transfer, began_s=at_s, done_bytes=done_bytes, sampled_bytes=done_bytes, sampled_s=at_s, ended_s=None
        )
    spent_s = at_s - transfer.sampled_s
    if 0 <= spent_s < _SAMPLE_S:
        return replace(transfer, done_bytes=done_bytes, ended_s=None)
    return replace(
        transfer,
        done_bytes=done_bytes,
        ended_s=None,
        rate_bytes_s=_smooth(transfer, done_bytes, spent_s),
        sampled_bytes=done_bytes,
        sampled_s=at_s,
    )


def _smooth(transfer: Transfer, done_bytes: int, spent_s: float) -> float:
    """The rate, drawn towards what was carried since the last sample; the first one counts wholly."""
    if spent_s <= 0:
        return transfer.rate_bytes_s
    now_bytes_s = (done_bytes - transfer.sampled_bytes) / spent_s
    if transfer.sampled_s == transfer.began_s:
        return now_bytes_s
    weight = 1 - math.exp(-spent_s / SMOOTHING_S)
    return transfer.rate_bytes_s + weight * (now_bytes_s - transfer.rate_bytes_s)


def _end(transfer: Transfer, at_s: float) -> Transfer:
    began_s = at_s if transfer.began_s is None else transfer.began_s
    return replace(transfer, began_s=began_s, ended_s=max(at_s, began_s))


def _complete(transfer: Transfer) -> Transfer:
    """The rest of the memory goes while the VM stands still, and nobody counts it then."""
    if transfer.kind is not TransferKind.MEMORY or transfer.total_bytes is None:
        return transfer
    return replace(transfer, done_bytes=max(transfer.done_bytes, transfer.total_bytes))


def _size(total_bytes: int | None) -> int | None:
    return None if total_bytes is None else max(0, total_bytes)
