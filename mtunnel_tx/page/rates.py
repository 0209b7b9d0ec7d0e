"""How fast each move was of late, for its plot."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from mtunnel_tx.watch.move import MoveState

SAMPLES = 120
EVERY_S = 0.9
"""Looks that are closer together are one."""
FORGET_S = 30.0
MOST_MOVES = 512

MoveKey = tuple[str, int, float]


def key_of(move: MoveState) -> MoveKey:
    """What tells a move from all others of this host."""
    return move.direction, move.vmid, move.since_s


class Rates:
    """The last SAMPLES rates of each live move, about one a second."""

    def __init__(self) -> None:
        self._samples: dict[MoveKey, deque[float]] = {}
        self._seen_s: dict[MoveKey, float] = {}

    def see(self, moves: Iterable[MoveState], now_s: float) -> None:
        """Take a sample of each live move. Args: now_s: of a clock that never steps."""
        for move in moves:
            key = key_of(move)
            if move.phase.is_end or (key not in self._samples and len(self._samples) >= MOST_MOVES):
                continue
            if now_s - self._seen_s.get(key, float("-inf")) >= EVERY_S:
                self._seen_s[key] = now_s
                self._samples.setdefault(key, deque(maxlen=SAMPLES)).append(move.rate_bytes_s)
        self._forget(now_s)

    def of(self, move: MoveState) -> tuple[float, ...]:
        """Bytes a second, the oldest first; nothing for a move that ended a while ago."""
        return tuple(self._samples.get(key_of(move), ()))

    def _forget(self, now_s: float) -> None:
        for key in [key for key, seen_s in self._seen_s.items() if now_s - seen_s > FORGET_S]:
            del self._seen_s[key], self._samples[key]
