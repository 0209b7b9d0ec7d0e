"""Does a copy catch up with a guest that goes on writing? What QEMU says, about once a second, turned into advice.

Pure: the caller tells what it sees and when, and does what it is advised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtunnel_tx.source.amounts import format_amount, format_rate
from mtunnel_tx.source.links import MemoryState, MirrorState

SAY_EVERY_S = 30.0
STEP_S = 3.0
"""At least between two steps of the downtime."""
BETTER = 0.9
"""A pass that leaves less than this part of the best one before is progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """`say`: an empty text is nothing. `downtime_ms`: what the VM may stand still from now on; None: as before.

    `hold_writes`: each write of the guest shall wait for its copy from now on.
    """

    say: str = ""
    downtime_ms: int | None = None
    hold_writes: bool = False


@dataclass(slots=True)
class _Mirror:
    """How far one mirror was when it was last spoken of, and how much there was to copy at first."""

    first_bytes: int
    done_bytes: int
    total_bytes: int
    at_s: float


class MirrorWatch:
    """Watches the mirrors of disks: one that was sent once and is not level changes faster than it is sent."""

    def __init__(self) -> None:
        self._mirrors: dict[str, _Mirror] = {}
        self._holds_writes = False

    def see(self, now_s: float, states: Sequence[MirrorState]) -> list[Advice]:
        """Args: now_s: any clock that only goes forward. states: of all mirrors."""
        advice = [self._see(now_s, state) for state in states if state.total_bytes]
        return [each for each in advice if each is not None]

    def _see(self, now_s: float, state: MirrorState) -> Advice | None:
        seen = self._mirrors.get(state.drive)
        if seen is None:
            total_bytes = state.total_bytes
            self._mirrors[state.drive] = _Mirror(total_bytes, state.done_bytes, total_bytes, now_s)
            return None
        if state.ready or state.done_bytes < seen.first_bytes or now_s - seen.at_s < 1:
            return None
        if not self._holds_writes:
            self._holds_writes = True
            waits = "; its writes wait for their copy from now on, where this QEMU can do that"
            return Advice(say=self._compare(now_s, state, seen) + waits, hold_writes=True)
        if now_s - seen.at_s < SAY_EVERY_S:
            return None
        return Advice(say=self._compare(now_s, state, seen))

    def _compare(self, now_s: float, state: MirrorState, seen: _Mirror) -> str:
        spent_s = now_s - seen.at_s
        written = format_rate(max(0, state.total_bytes - seen.total_bytes), spent_s)
        copied = format_rate(max(0, state.done_bytes - seen.done_bytes), spent_s)
        seen.done_bytes, seen.total_bytes, seen.at_s = state.done_bytes, state.total_bytes, now_s
        left = format_amount(max(0, state.total_bytes - state.done_bytes))
        return f"{state.drive}: the guest writes {written}, {copied} are copied, {left} are left"


class MemoryWatch:
    """Watches the memory: passes over what was changed since the pass before, until the rest fits into the downtime.

    Args: downtime_ms, max_downtime_ms: what the VM may stand still at first, and at most.
    """

    def __init__(self, downtime_ms: int, max_downtime_ms: int) -> None:
        self._downtime_ms = downtime_ms
        self._max_ms = max(downtime_ms, max_downtime_ms)
        self._pass = 0
        self._best_bytes: int | None = None
        self._said_s: float | None = None

    def see(self, now_s: float, state: MemoryState) -> list[Advice]:
        """Args: now_s: any clock that only goes forward. state: what QEMU says of the memory."""
        if state.status != "active" or state.passes <= self._pass:
            return []
        self._pass = state.passes
        if self._best_bytes is None or state.remaining_bytes < self._best_bytes * BETTER:
            # The first pass is the whole memory: it says nothing about what comes after it.
            self._best_bytes = state.remaining_bytes if state.passes > 1 else None
            return []
        return self._advise(now_s, state)

    def _advise(self, now_s: float, state: MemoryState) -> list[Advice]:
        pause_s = STEP_S if self._downtime_ms < self._max_ms else SAY_EVERY_S
        if self._said_s is not None and now_s - self._said_s < pause_s:
            return []
        self._said_s = now_s
        rates = compare(state)
        if self._downtime_ms == self._max_ms:
            hint = "--max-downtime, --auto-converge, --timeout with --on-timeout, or a higher --bwlimit ends that"
            return [Advice(say=f"{rates}, and it may stand still for {self._max_ms} ms at most: {hint}")]
        self._downtime_ms = min(2 * self._downtime_ms, self._max_ms)
        said = f"{rates}: it may stand still for {self._downtime_ms} ms now"
        return [Advice(say=said, downtime_ms=self._downtime_ms)]


def compare(state: MemoryState) -> str:
    """How fast the memory changes, and how fast it goes."""
    slowed = f", slowed down by {state.throttle_percent} %" if state.throttle_percent else ""
    changes = format_rate(state.dirty_bytes_s, 1)
    return f"memory: the guest changes {changes}{slowed}, {format_rate(state.sent_bytes_s, 1)} are sent"
