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


LAG_S = 5.0
"""For so long it is looked at whether a copy comes nearer to its disk."""
NEAR_BYTES = 1 << 20
"""So much may be left of a disk that is level."""
FIRST_SHARE = 0.75
"""Of what is copied: so much the guest may write at first, where it is ahead."""
RAISE = 1.25
"""So many times more it may write after a while in which the copy was level."""
LEAST_WRITES_BYTES_S = 1 << 20
"""Slower, a guest would take its disk for broken: it may have some MiB of writes under way, and waits for 30 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """`say`: an empty text is nothing. `downtime_ms`: what the VM may stand still from now on; None: as before.

    `writes_bytes_s`: the guest shall write no faster to `drive` from now on; None: as before.
    """

    say: str = ""
    downtime_ms: int | None = None
    drive: str = ""
    writes_bytes_s: int | None = None


@dataclass(slots=True)
class _Mirror:
    """A mirror: how much there was to copy at first, and how far it was at the beginning of the last look.

    `limit_bytes_s`: what the guest may write; 0: no limit. `said_s`: when it was last spoken of.
    `level_s`: since when it is level all the time, with `level_bytes` in all then; None: it is not.
    """

    first_bytes: int
    done_bytes: int
    total_bytes: int
    at_s: float
    limit_bytes_s: int = 0
    said_s: float | None = None
    level_s: float | None = None
    level_bytes: int = 0

    def begin(self, now_s: float, state: MirrorState) -> None:
        """Look at it anew."""
        self.done_bytes, self.total_bytes, self.at_s = state.done_bytes, state.total_bytes, now_s


class MirrorWatch:
    """Watches the mirrors of disks: one that was sent once, and comes no nearer, is slower than the guest."""

    def __init__(self) -> None:
        self._mirrors: dict[str, _Mirror] = {}

    def see(self, now_s: float, states: Sequence[MirrorState]) -> list[Advice]:
        """Args: now_s: any clock that only goes forward. states: of all mirrors."""
        advice = [self._see(now_s, state) for state in states if state.total_bytes]
        return [each for each in advice if each is not None]

    def _see(self, now_s: float, state: MirrorState) -> Advice | None:
        fresh = _Mirror(state.total_bytes, state.done_bytes, state.total_bytes, now_s)
        seen = self._mirrors.setdefault(state.drive, fresh)
        if state.done_bytes < seen.first_bytes or _left_bytes(state) <= (NEAR_BYTES if state.ready else 0):
            seen.begin(now_s, state)
            return self._relieve(now_s, state, seen)
        seen.level_s = None
        if now_s - seen.at_s >= LAG_S:
            return self._judge(now_s, state, seen)
        return None

    def _relieve(self, now_s: float, state: MirrorState, seen: _Mirror) -> Advice | None:
        """A limit goes where the guest does not reach it any more; else it is raised in small steps."""
        if not state.ready or not seen.limit_bytes_s:
            return None
        if seen.level_s is None:
            seen.level_s, seen.level_bytes = now_s, state.total_bytes
        spent_s = now_s - seen.level_s
        if spent_s < LAG_S:
            return None
        written = (state.total_bytes - seen.level_bytes) / spent_s
        seen.limit_bytes_s = 0 if written < seen.limit_bytes_s / 2 else round(seen.limit_bytes_s * RAISE)
        seen.level_s = None
        rate = format_rate(seen.limit_bytes_s, 1) if seen.limit_bytes_s else "as fast as it likes again"
        said = f"{state.drive}: its copy is level; the guest may write {rate}"
        return Advice(say=said, drive=state.drive, writes_bytes_s=seen.limit_bytes_s)

    def _judge(self, now_s: float, state: MirrorState, seen: _Mirror) -> Advice | None:
        spent_s = now_s - seen.at_s
        written = max(0, state.total_bytes - seen.total_bytes) / spent_s
        copied = max(0, state.done_bytes - seen.done_bytes) / spent_s
        seen.begin(now_s, state)
        if not copied or written < BETTER * copied:
            return None  # where nothing is copied at all, the network is lost, and no limit would help
        said = _compare(state, written, copied)
        limit_bytes_s = find_limit(copied, seen.limit_bytes_s)
        if limit_bytes_s != seen.limit_bytes_s:
            seen.limit_bytes_s, seen.said_s = limit_bytes_s, now_s
            slower = f"it may write {format_rate(limit_bytes_s, 1)} from now on"
            return Advice(say=f"{said}; {slower}", drive=state.drive, writes_bytes_s=limit_bytes_s)
        if seen.said_s is not None and now_s - seen.said_s < SAY_EVERY_S:
            return None
        seen.said_s = now_s
        return Advice(say=f"{said}: --timeout with --on-timeout, or a higher --bwlimit ends that")


def _compare(state: MirrorState, written_bytes_s: float, copied_bytes_s: float) -> str:
    written, copied = format_rate(written_bytes_s, 1), format_rate(copied_bytes_s, 1)
    left = format_amount(_left_bytes(state))
    return f"{state.drive}: the guest writes {written}, {copied} are copied, {left} are left"


def find_limit(copied_bytes_s: float, limit_bytes_s: int) -> int:
    """What a guest may write that is ahead of its copy. Args: limit_bytes_s: what it may write now; 0: no limit.

    One byte written may be many to copy, since a mirror copies whole blocks; so each step is half of the one before.
    """
    wanted = round(copied_bytes_s * FIRST_SHARE)
    return max(LEAST_WRITES_BYTES_S, min(wanted, limit_bytes_s // 2) if limit_bytes_s else wanted)


def _left_bytes(state: MirrorState) -> int:
    return max(0, state.total_bytes - state.done_bytes)


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
            slower = "" if state.throttle_percent else "--auto-converge, "
            hint = f"--max-downtime, {slower}--timeout with --on-timeout, or a higher --bwlimit ends that"
            return [Advice(say=f"{rates}, and it may stand still for {self._max_ms} ms at most: {hint}")]
        self._downtime_ms = min(2 * self._downtime_ms, self._max_ms)
        said = f"{rates}: it may stand still for {self._downtime_ms} ms now"
        return [Advice(say=said, downtime_ms=self._downtime_ms)]


def compare(state: MemoryState) -> str:
    """How fast the memory changes, and how fast it goes."""
    slowed = f", slowed down by {state.throttle_percent} %" if state.throttle_percent else ""
    changes = format_rate(state.dirty_bytes_s, 1)
    return f"memory: the guest changes {changes}{slowed}, {format_rate(state.sent_bytes_s, 1)} are sent"
