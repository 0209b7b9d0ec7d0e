"""One websocket joined with one UNIX socket: what moves the bytes of both ways, without ever blocking.

`Stream.service` is called when a socket is ready or a time has come, on one thread at a time; then the caller asks
`interest` what to wait for. Inward: read plaintext into a lent block, find the frames in it, undo masks in place, give
all payload to the UNIX socket in one call. Outward: read from the UNIX socket behind room for a header, send the frame.
A way reads only when its receiver has taken everything, so that a stream holds a bounded number of blocks.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from mtunnel_tx.net.ends import Deed, Ends, Source
from mtunnel_tx.net.engine import MakeEngine, StreamEnded, StreamFailed
from mtunnel_tx.net.mask import Unmask
from mtunnel_tx.net.sides import Blocks, Side, describe, is_peer_dead, receive, reset_on_close
from mtunnel_tx.wire.frames import (
    HEADER_ROOM_BYTES,
    SENT_PAYLOAD_BYTES,
    Decoder,
    Event,
    FrameError,
    Opcode,
    Role,
    close_frame,
    frame_header,
    pong_frame,
)

BATCHES = 4
"""Blocks in a row for one way before others get their turn."""

PONGS = 64
GATHER_BYTES = 4096


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


class Interest(NamedTuple):
    """What to wait for on the two sockets."""

    peer_reads: bool
    peer_writes: bool
    local_reads: bool
    local_writes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What the streams of one thread share."""

    blocks: Blocks
    unmask: Unmask
    engine: MakeEngine
    now: Callable[[], float]


class Phase(Enum):
    """The peer's socket: TALKING, then FLUSHING our last bytes, then LINGERING for its end, then CLOSED."""

    TALKING = auto()
    FLUSHING = auto()
    LINGERING = auto()
    CLOSED = auto()


class Bucket:
    """A token bucket that may go into debt by one read; `due_s` is when it is out of debt."""

    def __init__(self, rate_bytes_s: int | None) -> None:
        self.due_s: float | None = None
        self._rate = rate_bytes_s
        self._tokens = 0.0
        self._filled_s = 0.0

    def spend(self, size_bytes: int) -> None:
        self._tokens -= size_bytes

    def is_empty(self, now_s: float) -> bool:
        """Returns: whether bytes must wait."""
        if self._rate is None:
            return False
        self._tokens = min(self._rate / 10, self._tokens + (now_s - self._filled_s) * self._rate)
        self._filled_s = now_s
        # A thousandth of a second more, so that rounding does not make it wait twice.
        self.due_s = None if self._tokens >= 0 else now_s - self._tokens / self._rate + 0.001
        return self.due_s is not None


class Watch:
    """Sees that a receiver takes nothing of what waits for it."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._taken = 0
        self.due_s: float | None = None

    def look(self, *, waits: bool, taken: int, now_s: float) -> bool:
        """Returns: whether it has stalled."""
        if not waits:
            self.due_s = None
        elif self.due_s is None or taken != self._taken:
            self.due_s = now_s + self._limit_s
        self._taken = taken
        return self.due_s is not None and now_s >= self.due_s


class Stream:
    """See the module; `peer` and `local` are connected, non-blocking sockets, `side` speaks over `peer`.

    `bytes_in`, `bytes_out`: payload from and to the peer.
    """

    def __init__(
        self, *, peer: socket.socket, side: Side, local: socket.socket, ends: Ends, role: Role, limits: StreamLimits,
        tools: Tools,
    ) -> None:  # fmt: skip
        self.peer = peer
        self.local = local
        self.ends = ends
        self.phase = Phase.TALKING
        self.bytes_in = 0
        self.bytes_out = 0
        self._side = side
        self._role = role
        self._limits = limits
        self._blocks = tools.blocks
        self._unmask = tools.unmask
        self._now = tools.now
        self._decoder = Decoder(role, limits.frame_bytes)
        self._pongs: deque[bytes] = deque(maxlen=PONGS)
        self._spans: deque[tuple[int, int]] = deque()
        self._in_block: memoryview | None = None
        self._out_block: memoryview | None = None
        self._in_bucket = Bucket(limits.rate_bytes_s)
        self._out_bucket = Bucket(limits.rate_bytes_s)
        self._taken_bytes = 0
        self._in_watch = Watch(limits.stall_s)
        self._out_watch = Watch(limits.stall_s)
        self._again = False
        self._linger_due_s: float | None = None
        self._sweep_s = limits.dead_peer_s / 4
        self._sweep_due_s = self._now() + self._sweep_s

    # What the owner asks

    @property
    def is_local_over(self) -> bool:
        return self.ends.local_over

    @property
    def is_peer_over(self) -> bool:
        return self.phase in (Phase.LINGERING, Phase.CLOSED)

    @property
    def is_peer_closed(self) -> bool:
        return self.phase is Phase.CLOSED

    def interest(self) -> Interest:
        ends = self.ends
        reads = ends.inward.takes and not self._spans and self._in_bucket.due_s is None
        return Interest(
            peer_reads=self.phase is Phase.LINGERING or (self.phase is Phase.TALKING and reads),
            peer_writes=self.phase is not Phase.CLOSED and self._side.waits,
            local_reads=ends.outward.takes and not self._side.waits and self._out_bucket.due_s is None,
            local_writes=bool(self._spans) and not ends.inward.deaf,
        )

    def next_call_s(self) -> float | None:
        """When `service` is to be called even if no socket is ready; 0: at once."""
        if self.is_local_over and self.is_peer_closed:
            return None
        earliest_s = 0.0 if self._again else self._sweep_due_s
        for due_s in (
            self.ends.due_s,
            self._in_bucket.due_s,
            self._out_bucket.due_s,
            self._linger_due_s,
            self._in_watch.due_s,
            self._out_watch.due_s,
        ):
            if due_s is not None and due_s < earliest_s:
                earliest_s = due_s
        return earliest_s

    def give_up(self, reason: str) -> None:
        """End both ways as they are; to be followed by `service`."""
        self.ends.give_up(reason)
        if self.phase is Phase.LINGERING:
            self._drop_peer()

    def destroy(self, reason: str) -> None:
        """End everything without a look at the sockets, after a failure that nobody expected."""
        self.ends.give_up(reason)
        self._spans.clear()
        self._again = False
        self._drop_peer()

    def service(self, *, peer_event: bool = True, local_event: bool = True) -> None:
        """Move what can be moved.

        Args: peer_event, local_event: the socket may have become ready; False saves a useless look at it.
        """
        now_s = self._now()
        again, self._again = self._again, False
        self._expire(now_s)
        if local_event or again or self._side.waits:
            self._carry_outward(now_s)
        if peer_event or again or self._spans:
            self._carry_inward(now_s)
            self._write(b"")
            self._answer_pings()
        if self.ends.inward.over or self.ends.outward.over:
            self._settle(now_s)
        self._watch(now_s)
        self._return_blocks()

    # Inward

    def _carry_inward(self, now_s: float) -> None:
        for _ in range(BATCHES):
            self._push_local()
            if self._spans or not self.ends.inward.takes:
                return
            if self._in_bucket.is_empty(now_s) or not self._pull_peer():
                break
        else:
            self._again = True
        self._push_local()

    def _pull_peer(self) -> bool:
        block = self._in_block = self._in_block or self._blocks.lend()
        try:
            size_bytes = self._side.read(block)
        except StreamEnded as end:
            self.ends.peer_ended(f"peer ended without a Close frame: {end}")
            return False
        except StreamFailed as failure:
            self.ends.peer_failed(str(failure))
            return False
        if size_bytes == 0:
            self.ends.drained(self.ends.inward)
            return False
        self._decode(block, size_bytes)
        return self._side.more or self.ends.inward.source is Source.LAST

    def _decode(self, block: memoryview, end: int) -> None:
        decoder, position = self._decoder, 0
        try:
            while position < end and self.ends.inward.takes:
                position = decoder.step(block, position, end)
                if decoder.event is Event.PAYLOAD:
                    self._add_span(block, decoder.begin, position)
                elif decoder.event is Event.PING:
                    self._pongs.append(decoder.control)
                elif decoder.event is Event.CLOSE:
                    self.ends.peer_closed(decoder.close_code)
        except FrameError as error:
            self.ends.violated(error.code, error.text)

    def _add_span(self, block: memoryview, begin: int, end: int) -> None:
        size_bytes = end - begin
        if self._decoder.mask is not None:
            self._unmask(block[begin:end], self._decoder.mask)
        self.bytes_in += size_bytes
        self._in_bucket.spend(size_bytes)
        if self._spans and size_bytes < GATHER_BYTES:
            first, last = self._spans[-1]
            block[last : last + size_bytes] = block[begin:end]
            self._spans[-1] = (first, last + size_bytes)
        else:
            self._spans.append((begin, end))

    def _push_local(self) -> None:
        """Give the spans to the UNIX socket, as far as it takes them."""
        if self.ends.inward.deaf:
            self._spans.clear()
        block = self._in_block
        if not self._spans or block is None:
            return
        try:
            sent_bytes = self.local.sendmsg([block[begin:end] for begin, end in self._spans])
        except BlockingIOError:
            return
        except OSError as error:
            self._spans.clear()
            self.ends.local_deaf(f"UNIX side: {describe('send', error)}")
            return
        self._taken_bytes += sent_bytes
        self._drop_sent(sent_bytes)

    def _drop_sent(self, sent_bytes: int) -> None:
        while sent_bytes:
            begin, end = self._spans.popleft()
            if end - begin > sent_bytes:
                self._spans.appendleft((begin + sent_bytes, end))
                return
            sent_bytes -= end - begin

    # Outward

    def _carry_outward(self, now_s: float) -> None:
        for _ in range(BATCHES):
            if self._side.waits:
                self._write(b"")
            self._answer_pings()
            if self._side.waits or not self.ends.outward.takes:
                return
            if self._side.waits or self._out_bucket.is_empty(now_s) or not self._pull_local():
                return
        self._again = True

    def _pull_local(self) -> bool:
        block = self._out_block = self._out_block or self._blocks.lend()
        try:
            size_bytes = receive(self.local, block[HEADER_ROOM_BYTES : HEADER_ROOM_BYTES + SENT_PAYLOAD_BYTES])
        except StreamEnded:
            self.ends.local_ended()
            return False
        except StreamFailed as failure:
            self.ends.local_failed(f"UNIX side: {failure}")
            return False
        if size_bytes == 0:
            self.ends.drained(self.ends.outward)
            return False
        self._send_frame(block, size_bytes)
        return size_bytes == SENT_PAYLOAD_BYTES or self.ends.outward.source is Source.LAST

    def _send_frame(self, block: memoryview, size_bytes: int) -> None:
        header = frame_header(self._role, Opcode.BINARY, size_bytes)
        begin = HEADER_ROOM_BYTES - len(header)
        block[begin:HEADER_ROOM_BYTES] = header
        self.bytes_out += size_bytes
        self._out_bucket.spend(size_bytes)
        self._write(block[begin : HEADER_ROOM_BYTES + size_bytes])

    def _answer_pings(self) -> None:
        if self._pongs and not self._side.waits and self.ends.outward.takes:
            self._write(b"".join(pong_frame(self._role, payload) for payload in self._pongs))
            self._pongs.clear()

    def _write(self, data: memoryview | bytes) -> None:
        """Send to the peer if it still takes something; nothing: go on with what waits."""
        if self.ends.outward.deaf or self.phase is Phase.CLOSED:
            return
        try:
            if data:
                self._side.write(data)
            else:
                self._side.flush()
        except StreamFailed as failure:
            self.ends.peer_deaf(str(failure))
            # A peer that is gone may have left its Close frame: look for it.
            self._again = True

    # Ends

    def _settle(self, now_s: float) -> None:
        while True:
            waits = self._side.waits and not self.ends.outward.deaf
            deeds = self.ends.settle(inward_waits=bool(self._spans), outward_waits=waits, now_s=now_s)
            for deed in deeds:
                self._do(deed)
            if not deeds:
                break
        if self.ends.inward.deaf:
            self._spans.clear()
        self._close_peer(now_s)

    def _do(self, deed: Deed) -> None:
        if deed is Deed.SAY_CLOSE and self.ends.close_code is not None:
            self._write(close_frame(self._role, self.ends.close_code))
        elif deed is Deed.SHUT_LOCAL:
            with contextlib.suppress(OSError):
                self.local.shutdown(socket.SHUT_WR)

    def _close_peer(self, now_s: float) -> None:
        """Take the peer's socket through its phases; an end that it cannot see is no end."""
        if self.phase is Phase.TALKING and self.ends.peer_over:
            self._linger_due_s = now_s + self._limits.linger_s
            self.phase = Phase.FLUSHING
            self._say_end()
        if self.phase is Phase.FLUSHING and (self.ends.outward.deaf or not self._side.waits):
            self._shut_peer()
        if self.phase is Phase.LINGERING:
            self._discard()

    def _say_end(self) -> None:
        if self.ends.outward.deaf:
            return
        self._side.say_end()
        self._write(b"")

    def _shut_peer(self) -> None:
        if self.ends.outward.deaf:
            self._drop_peer()
            return
        self.phase = Phase.LINGERING
        with contextlib.suppress(OSError):
            self.peer.shutdown(socket.SHUT_WR)

    def _discard(self) -> None:
        try:
            for _ in range(BATCHES):
                if receive(self.peer, self._blocks.scratch) == 0:
                    return
        except (StreamEnded, StreamFailed):
            self._end_peer()

    def _drop_peer(self) -> None:
        reset_on_close(self.peer)
        self._end_peer()

    def _end_peer(self) -> None:
        self.phase = Phase.CLOSED
        self._linger_due_s = None

    # Time

    def _expire(self, now_s: float) -> None:
        if self.ends.due_s is not None and now_s >= self.ends.due_s:
            self.ends.expire()
        if self._linger_due_s is not None and now_s >= self._linger_due_s:
            self._drop_peer()
        if now_s >= self._sweep_due_s:
            self._sweep_due_s = now_s + self._sweep_s
            if self.phase is Phase.TALKING and is_peer_dead(self.peer, self._limits.dead_peer_s):
                self.ends.peer_failed("peer is gone: it acknowledges nothing")

    def _watch(self, now_s: float) -> None:
        stalled_in = self._in_watch.look(waits=bool(self._spans), taken=self._taken_bytes, now_s=now_s)
        waits = self._side.waits and self.phase is Phase.TALKING and not self.ends.outward.deaf
        stalled_out = self._out_watch.look(waits=waits, taken=self._side.sent_bytes, now_s=now_s)
        if stalled_in or stalled_out:
            self.give_up("UNIX side takes no bytes" if stalled_in else "peer takes no bytes")
            self._settle(now_s)

    def _return_blocks(self) -> None:
        if self._in_block is not None and not self._spans:
            self._blocks.give_back(self._in_block)
            self._in_block = None
        if self._out_block is not None and (self.ends.outward.deaf or not self._side.waits):
            self._blocks.give_back(self._out_block)
            self._out_block = None
