"""What a stream may use, how fast it may be, and how long it may wait."""

from __future__ import annotations

from dataclasses import dataclass

BURST_S = 0.1
SLACK_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """half_close_s, stall_s, dead_peer_s: architecture, data path.

    linger_s: how long a peer may take to see our last bytes.
    rate_bytes_s: of payload, for each way; None: as fast as it goes.
    """

    frame_bytes: int = 64 << 20
    half_close_s: float = 60.0
    stall_s: float = 600.0
    dead_peer_s: float = 60.0
    linger_s: float = 5.0
    rate_bytes_s: int | None = None


class Bucket:
    """A token bucket that may go into debt by one read; while it is, `due_s` says when it will be out of it."""

    def __init__(self, rate_bytes_s: int | None) -> None:
        self.due_s: float | None = None
        self._rate = rate_bytes_s
        self._tokens = 0.0
        self._filled_s = 0.0

    def spend(self, size_bytes: int) -> None:
        self._tokens -= size_bytes

    def is_empty(self, now_s: float) -> bool:
        """Returns: whether bytes must wait, until `due_s`."""
        if self._rate is None:
            return False
        self._tokens = min(self._rate * BURST_S, self._tokens + (now_s - self._filled_s) * self._rate)
        self._filled_s = now_s
        # A little later than exactly, so that rounding does not make it wait twice.
        self.due_s = None if self._tokens >= 0 else now_s - self._tokens / self._rate + SLACK_S
        return self.due_s is not None


class Watch:
    """Sees that a receiver takes nothing of what waits for it; `due_s`: when that will have been too long."""

    def __init__(self, limit_s: float) -> None:
        self.due_s: float | None = None
        self._limit_s = limit_s
        self._taken = 0

    def look(self, *, waits: bool, taken: int, now_s: float) -> bool:
        """Args: taken: bytes that the receiver has ever taken. Returns: whether it has stalled."""
        if not waits:
            self.due_s = None
        elif self.due_s is None or taken != self._taken:
            self.due_s = now_s + self._limit_s
        self._taken = taken
        return self.due_s is not None and now_s >= self.due_s
