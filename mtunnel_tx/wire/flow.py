"""A flow that outlives its connections: numbered bytes each way, without sockets and without a clock of its own.

`Sending` is one end of one way: it keeps what the peer has not acknowledged, up to a window, and sends it again over
the next connection. `Receiving` is the other end: it counts what has arrived and what its UNIX socket has taken, and
says when an acknowledgement is due. *Acknowledged* means taken by the kernel of the UNIX socket: nothing between that
and the program behind it can lose a byte but the end of this host.

The first connection of a flow begins at position 0 both ways, without an exchange. On each later one each end first
says `a N`, and sends nothing else before it has heard the peer's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from mtunnel_tx.wire.frames import (
    CLOSE_PROTOCOL_ERROR,
    HEADER_ROOM_BYTES,
    SENT_PAYLOAD_BYTES,
    FrameError,
    Opcode,
    Role,
    frame_header,
)
from mtunnel_tx.wire.kept import Bytes, Chunks, Frame, KeptFrames
from mtunnel_tx.wire.records import FlowRecord, RecordKind, record_frame

WINDOW_BYTES = 16 << 20
LEAST_WINDOW_BYTES, MOST_WINDOW_BYTES = 1 << 20, 256 << 20
LEAST_CHARGE_BYTES = 256
"""What a kept frame takes of the window at least, on average: a small one costs about as much beside its payload."""
ACK_BYTES = 4 << 20
ACK_S = 0.02
"""An acknowledgement is sent for each ACK_BYTES taken (a quarter of the window if that is less), or ACK_S later."""


class Sending:
    """The sending end of one way.

    Args: role: ours on the websocket. window_bytes: the most that is kept unacknowledged, give or take one frame; in
    one frame for each LEAST_CHARGE_BYTES of it at most.
    `sent`, `acked`: positions; `ended_at`: where the UNIX side has ended, `is_delivered`: the peer has passed that on;
    `is_synced`: on this connection the peer has said from where.
    """

    def __init__(self, role: Role, chunks: Chunks, window_bytes: int = WINDOW_BYTES) -> None:
        self.sent = 0
        self.acked = 0
        self.ended_at: int | None = None
        self.is_delivered = False
        self.is_synced = True
        self._role = role
        self._window_bytes = window_bytes
        self._most_frames = window_bytes // LEAST_CHARGE_BYTES
        self._kept = KeptFrames(chunks)
        self._again: deque[tuple[int, Frame]] = deque()

    @property
    def kept_bytes(self) -> int:
        return self.sent - self.acked

    @property
    def takes(self) -> bool:
        """The next bytes of the UNIX side may be read."""
        open_way = self.ended_at is None and self.is_synced and not self._again
        return open_way and self.kept_bytes < self._window_bytes and len(self._kept) < self._most_frames

    @property
    def free_frames(self) -> int:
        """How many frames the window has room for."""
        by_bytes = -(-(self._window_bytes - self.kept_bytes) // SENT_PAYLOAD_BYTES)
        return min(by_bytes, self._most_frames - len(self._kept))

    @property
    def sent_here(self) -> int:
        """Up to where bytes were given to this connection; what is yet to be sent again begins there."""
        return self._again[0][0] if self._again else self.sent

    @property
    def has_again(self) -> bool:
        """Something is to be sent again before anything new."""
        return bool(self._again)

    def room(self) -> memoryview:
        """Where the next frames are to be made: see `KeptFrames.room`."""
        return self._kept.room()

    def add(self, size_bytes: int) -> memoryview:
        """So many were read. Returns: the frame to be sent; it stays as it is until it is acknowledged."""
        room, header = self._kept.room(), frame_header(self._role, Opcode.BINARY, size_bytes)
        begin = HEADER_ROOM_BYTES - len(header)
        room[begin:HEADER_ROOM_BYTES] = header
        self.note_sent((size_bytes,))
        return room[begin : HEADER_ROOM_BYTES + size_bytes]

    def note_sent(self, sizes_bytes: Sequence[int]) -> None:
        """Frames with so many payload bytes were made in the room, headers and all, and sent."""
        self.sent = self._kept.add(self.sent, sizes_bytes)

    def end(self) -> bytes:
        """The UNIX side has ended in order. Returns: the record to be sent; nothing where that comes with a re-send."""
        self.ended_at = self.sent
        return self._say_end() if self.is_synced and not self._again else b""

    def give_back(self) -> None:
        """Return the room in which nothing came: an idle way takes none."""
        self._kept.give_back()

    def park(self) -> None:
        """The connection is lost."""
        self.is_synced = False
        self.give_back()
        self._again.clear()

    def acknowledge(self, position: int) -> None:
        """`a N` came. On a new connection it says where to go on: `next_again` has what follows.

        Raises: FrameError: 1002: a position that was never sent, is yet to be sent again, or was acknowledged before.
        """
        # The frames in `_again` are views of kept ones, whose memory the next flow gets once they are forgotten.
        if not self.acked <= position <= self.sent_here:
            text = f"acknowledgement of position {position}, which is not within {self.acked}..{self.sent_here}"
            raise FrameError(CLOSE_PROTOCOL_ERROR, text)
        self.acked = position
        self._kept.forget(position)
        if not self.is_synced:
            self.is_synced = True
            self._go_on(position)

    def deliver(self) -> None:
        """`d` came. Raises: FrameError: 1002: before our end, or before everything was acknowledged."""
        if self.ended_at is None or self.acked != self.ended_at:
            raise FrameError(CLOSE_PROTOCOL_ERROR, "an end was delivered that was not sent")
        self.is_delivered = True

    def next_again(self) -> Frame | None:
        """Returns: the next frame to be sent again; it is taken off the list."""
        return self._again.popleft()[1] if self._again else None

    def kept(self) -> Bytes:
        """The bytes from `acked` to `sent`."""
        return self._kept.payload(self.acked, self.kept_bytes)

    def restore(self, acked: int, kept: Bytes, ended_at: int | None) -> None:
        """Go on, parked, where another one has stopped. Args: kept: what it kept from `acked` on."""
        self.sent = self.acked = acked
        for start in range(0, len(kept), SENT_PAYLOAD_BYTES):
            piece = kept[start : start + SENT_PAYLOAD_BYTES]
            self.room()[HEADER_ROOM_BYTES : HEADER_ROOM_BYTES + len(piece)] = piece
            self.add(len(piece))
        self.ended_at = ended_at
        self.park()

    def drop(self) -> None:
        """The flow is over: give the memory back."""
        self._again.clear()
        self._kept.drop()

    def _go_on(self, position: int) -> None:
        self._again.append((position, record_frame(self._role, FlowRecord(RecordKind.POSITION, position))))
        self._again.extend(self._kept.after(position, self._role))
        if self.ended_at is not None and not self.is_delivered:
            self._again.append((self.sent, self._say_end()))

    def _say_end(self) -> bytes:
        assert self.ended_at is not None
        return record_frame(self._role, FlowRecord(RecordKind.ENDED, self.ended_at))


@dataclass(slots=True)
class Receiving:
    """The receiving end of one way.

    `arrived`: position behind the last byte that came on this connection; `taken`: behind the last one that the UNIX
    socket took; `told`: what was acknowledged. `ended_at`: where the peer's UNIX side has ended, None: not yet.
    """

    role: Role
    window_bytes: int = WINDOW_BYTES
    arrived: int = 0
    taken: int = 0
    told: int = 0
    ended_at: int | None = None
    is_delivered: bool = False
    due_s: float | None = field(default=None, init=False)

    def arrive(self, size_bytes: int) -> None:
        """Payload came. Raises: FrameError: 1002: behind the end."""
        if self.ended_at is not None and size_bytes:
            raise FrameError(CLOSE_PROTOCOL_ERROR, f"bytes behind the end at position {self.ended_at}")
        self.arrived += size_bytes

    def take(self, size_bytes: int, now_s: float) -> None:
        """The UNIX socket has taken so many."""
        self.taken += size_bytes
        if self.due_s is None and self.taken > self.told:
            self.due_s = now_s + ACK_S

    def is_due(self, now_s: float) -> bool:
        """Whether an acknowledgement is to be sent."""
        if self.taken - self.told >= min(ACK_BYTES, self.window_bytes // 4):
            return True
        return self.due_s is not None and now_s >= self.due_s

    def say_taken(self) -> bytes:
        """Returns: the acknowledgement."""
        self.told, self.due_s = self.taken, None
        return record_frame(self.role, FlowRecord(RecordKind.ACKNOWLEDGED, self.taken))

    def deliver(self) -> bytes:
        """The peer's end was passed on to the UNIX socket. Returns: what says so, the last acknowledgement first."""
        self.is_delivered = True
        last = self.say_taken() if self.told != self.taken else b""
        return last + record_frame(self.role, FlowRecord(RecordKind.DELIVERED))

    def park(self) -> None:
        """The connection is lost: what was not taken comes again, and so does the end."""
        self.arrived = self.taken
        self.due_s = None
        self.ended_at = None

    def check_position(self, position: int) -> None:
        """`p N` came. Raises: FrameError: 1002: the peer goes on elsewhere."""
        if position != self.arrived:
            text = f"the peer goes on at position {position}, not at {self.arrived}"
            raise FrameError(CLOSE_PROTOCOL_ERROR, text)

    def end(self, position: int) -> None:
        """`e N` came. Raises: FrameError: 1002: bytes before it are missing."""
        if position != self.arrived:
            text = f"the peer ended at position {position}, but {self.arrived} bytes came"
            raise FrameError(CLOSE_PROTOCOL_ERROR, text)
        self.ended_at = position
