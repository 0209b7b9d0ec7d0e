"""How long a pump thread rests after a pass, so that the next one finds a full batch.

If a pass moves TRICKLE_BYTES per flow, the senders are trickling: their bytes come as fast as they are taken, but in
pieces, and each piece costs a pass here and wakes both neighbours. The slower the sender, the longer it needs for a
full batch. A slow sender on the network gets that time after a batch that was full, too; one behind a UNIX socket does
not, whose buffer is full by then, so that it would stand still. Requests and replies move fewer bytes, and a flow that
is behind moves more; neither ever waits.

Where bytes go both ways, somebody may wait for an answer (NBD): there the rest is SHORT_REST_S.
"""

from __future__ import annotations

from collections.abc import Sequence

TRICKLE_BYTES = range(8 * 1024, 128 * 1024)
BATCH_BYTES = 256 * 1024
FULL_BYTES = range(TRICKLE_BYTES.stop, BATCH_BYTES + 64 * 1024)
"""Of a batch that was all there was: a flow that is behind moves two in one pass."""
SLOW_BYTES_S = 256_000_000
SHORT_REST_S = 0.0001
LONG_REST_S = 0.002
RECENT_S = 0.1


class FlowPace:
    """What one flow has moved of late; `moved_bytes`: in the last pass; `moved_out`: some of them outward."""

    def __init__(self) -> None:
        self.moved_bytes = 0
        self.moved_out = False
        self._bytes_in = self._bytes_out = 0
        self._in_s = self._out_s = -RECENT_S

    def note(self, bytes_in: int, bytes_out: int, now_s: float) -> None:
        """A pass has served the flow. Args: bytes_in, bytes_out: payload that it ever moved."""
        moved_in, moved_out = bytes_in - self._bytes_in, bytes_out - self._bytes_out
        self._bytes_in, self._bytes_out = bytes_in, bytes_out
        self.moved_bytes = moved_in + moved_out
        self.moved_out = moved_out > 0
        if moved_in:
            self._in_s = now_s
        if moved_out:
            self._out_s = now_s

    @property
    def is_two_way(self) -> bool:
        """Bytes went both ways within RECENT_S."""
        return abs(self._in_s - self._out_s) < RECENT_S and min(self._in_s, self._out_s) >= 0


class Gathering:
    """Decides for one thread; told of each pass that served a flow."""

    def __init__(self) -> None:
        self._passed_s = 0.0

    def rest_s(self, served: Sequence[FlowPace], now_s: float) -> float:
        """Args: served: each flow that the pass served, at least one. Returns: 0: do not rest."""
        elapsed_s, self._passed_s = now_s - self._passed_s, now_s
        average_bytes = sum(pace.moved_bytes for pace in served) // len(served)
        rate_bytes_s = average_bytes / max(elapsed_s, 1e-6)
        is_slow = average_bytes in FULL_BYTES and rate_bytes_s < SLOW_BYTES_S
        if average_bytes not in TRICKLE_BYTES and (not is_slow or any(pace.moved_out for pace in served)):
            return 0.0
        if any(pace.is_two_way for pace in served):
            return SHORT_REST_S
        return max(SHORT_REST_S, min(LONG_REST_S, BATCH_BYTES / rate_bytes_s))
