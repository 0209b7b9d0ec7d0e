"""What a flow may use, how fast it may be, and how long it may wait."""

from __future__ import annotations

from dataclasses import dataclass, replace

BURST_S = 0.1
SLACK_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowLimits:
    """Limits of one flow.

    frame_bytes: the largest payload that a frame may announce.
    half_close_s: how long one way stays open after the other has ended.
    stall_s: how long a receiver may take nothing of the bytes that wait for it.
    dead_peer_s: how long a peer may acknowledge nothing of the bytes that were sent.
    linger_s: how long a peer may take to receive our last bytes.
    ping_s: how long nothing may be sent before a ping is: proxies end connections that are silent.
    rate_bytes_s: of payload, for each way; None: no limit.
    """

    frame_bytes: int = 64 << 20
    half_close_s: float = 60.0
    stall_s: float = 600.0
    dead_peer_s: float = 60.0
    linger_s: float = 5.0
    ping_s: float = 25.0
    rate_bytes_s: int | None = None

    @property
    def notice_s(self) -> float:
        """Within which the loss of a resumable flow's connection is noticed.

        By bytes that are not acknowledged, which are looked at now and then, or by keepalives where none are under way.
        """
        return self.dead_peer_s * 1.5


LOST_S = 15.0
"""So long may a peer acknowledge nothing before the connection of a resumable flow is lost: giving one up is cheap."""


def impatient(limits: FlowLimits) -> FlowLimits:
    """The limits of a flow that can have another connection."""
    return replace(limits, dead_peer_s=min(limits.dead_peer_s, LOST_S))


class Bucket:
    """A token bucket that may be overdrawn by one read; `due_s`: when it will have tokens again, None: it has."""

    def __init__(self, rate_bytes_s: int | None) -> None:
        self.due_s: float | None = None
        self._rate = rate_bytes_s
        self._tokens = 0.0
        self._filled_s = 0.0

    @property
    def is_limited(self) -> bool:
        """Whether there is a rate."""
        return self._rate is not None

    def spend(self, size_bytes: int) -> None:
        self._tokens -= size_bytes

    def is_empty(self, now_s: float) -> bool:
        """Returns: whether bytes must wait, until `due_s`."""
        if self._rate is None:
            return False
        self._tokens = min(self._rate * BURST_S, self._tokens + (now_s - self._filled_s) * self._rate)
        self._filled_s = now_s
        # A little later than computed, so that rounding does not make it wait twice.
        self.due_s = None if self._tokens >= 0 else now_s - self._tokens / self._rate + SLACK_S
        return self.due_s is not None


class Watch:
    """Notices a receiver that takes nothing of the bytes that wait for it; `due_s`: when that will be too long."""

    def __init__(self, limit_s: float) -> None:
        self.due_s: float | None = None
        self._limit_s = limit_s
        self._taken = 0

    def reset(self) -> None:
        """Begin anew."""
        self.due_s = None

    def look(self, *, waits: bool, taken: int, now_s: float) -> bool:
        """Args: taken: bytes that the receiver has taken so far. Returns: whether it has stalled."""
        if not waits:
            self.due_s = None
        elif self.due_s is None or taken != self._taken:
            self.due_s = now_s + self._limit_s
        self._taken = taken
        return self.due_s is not None and now_s >= self.due_s
