"""Turns QEMU's totals into the steps that progress bars want."""

from __future__ import annotations

from collections.abc import Sequence

from mtunnel_tx.source.links import MemoryState, MirrorState, ProgressListener

MEMORY = "memory"


class Meters:
    """One bar for each disk, or one for the memory; at the end, good or bad, all have ended."""

    def __init__(self, progress: ProgressListener) -> None:
        self._progress = progress
        self._seen: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> Meters:
        return self

    def __exit__(self, *_: object) -> None:
        for label in self._seen:
            self._progress.finish(label)

    def mirrors(self, states: Sequence[MirrorState]) -> None:
        """How far each disk is."""
        for state in states:
            self._reach(state.drive, state.done_bytes, state.total_bytes)

    def memory(self, state: MemoryState) -> None:
        """How far the memory is; what the guest changed meanwhile is sent again."""
        self._reach(MEMORY, state.transferred_bytes, state.transferred_bytes + state.remaining_bytes)

    def _reach(self, label: str, done_bytes: int, total_bytes: int) -> None:
        if not total_bytes:
            return  # QEMU does not know yet
        if label not in self._seen:
            self._progress.begin(label, total_bytes)
        before_bytes, before_total = self._seen.get(label, (0, total_bytes))
        if total_bytes != before_total:
            self._progress.resize(label, total_bytes)
        self._progress.advance(label, max(0, done_bytes - before_bytes))
        self._seen[label] = (max(done_bytes, before_bytes), total_bytes)
