"""The two ways of a flow: from the frames of its carrier to its UNIX socket, and back.

A way reads only when its receiver has taken everything, and borrows a block only while it holds bytes. It counts the
bytes of the flow, whatever carriers move them: `position`. `again` means that there may be more to do although no
socket becomes ready. Without a carrier a way moves nothing.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import ClassVar

from mtunnel_tx.stream.carrier import Carrier, ThreadTools
from mtunnel_tx.stream.ends import Ends, Sender
from mtunnel_tx.stream.engine import StreamEnded, StreamFailed
from mtunnel_tx.stream.limits import Bucket, FlowLimits
from mtunnel_tx.stream.native import NativeSide
from mtunnel_tx.stream.payload import NativePayload, make_payload
from mtunnel_tx.stream.sides import NO_SIDE, Side, describe, receive
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
    ping_frame,
    pong_frame,
)

TURN_BYTES = 1 << 20
"""A way moves about so many in a row before another flow gets its turn: a millisecond or two."""
BLOCKS, BATCHES = 4, 2
"""The same, inward where blocks have little payload, outward where frames are small."""

_HEARD = (Event.PING, Event.PONG, Event.CLOSE, Event.RECORD)


class Inward:
    """From the carrier to the UNIX socket.

    position: bytes that the kernel has taken for the UNIX socket. pings: what is to be answered. ack_due_s: when an
    acknowledgement is to be sent, where there are any.
    """

    def __init__(self, local: socket.socket, ends: Ends, *, limits: FlowLimits, tools: ThreadTools) -> None:
        self.position = 0
        self.again = False
        self.ack_due_s: float | None = None
        self.bucket = Bucket(limits.rate_bytes_s)
        self.pings: deque[bytes] = deque()
        self._local = local
        self._ends = ends
        self._blocks = tools.blocks
        self._payload = make_payload(tools.native, tools.unmask)
        self._side: Side = NO_SIDE
        self._decoder: Decoder | None = None
        self._block: memoryview | None = None
        self._forgotten_bytes = 0

    @property
    def arrived_bytes(self) -> int:
        """`position`, with the bytes that wait for the UNIX socket."""
        return self._payload.found_bytes - self._forgotten_bytes

    @property
    def waits(self) -> bool:
        """Payload waits for the UNIX socket."""
        return self._payload.waits

    @property
    def reads(self) -> bool:
        """The peer's next bytes are wanted."""
        return not self._payload.waits and self._ends.hears and self.bucket.due_s is None

    def carry(self, now_s: float) -> None:
        """Move what can be moved."""
        self.bucket.due_s = None
        turn_bytes = self._payload.found_bytes + TURN_BYTES
        for _ in range(BLOCKS):
            self.again = False
            self._push()
            if self._payload.waits or not self._ends.hears:
                return
            if self.bucket.is_empty(now_s) or not self._pull():
                break
            self.again = True
            if self._payload.found_bytes >= turn_bytes:
                break
        self._push()

    def attach(self, carrier: Carrier) -> None:
        """Read from this carrier from now on."""
        self._side, self._decoder, self.pings = carrier.side, carrier.decoder, carrier.pings

    def detach(self) -> None:
        """Nothing more can be read; what waits for the UNIX socket stays."""
        self._side, self._decoder, self.pings = NO_SIDE, None, deque()
        self.again = False

    def acknowledge(self, now_s: float) -> None:
        """Tell the peer what the UNIX socket has taken; resumable flows only."""

    def deliver(self) -> None:
        """The end of the peer was passed on to the UNIX socket; resumable flows say so."""

    def drop(self) -> None:
        """The UNIX socket takes nothing more."""
        self._payload.drop()

    def rewind(self) -> None:
        """Forget what the UNIX socket has not taken: it will come again."""
        self._payload.drop()
        self._forgotten_bytes = self._payload.found_bytes - self.position

    def give_back(self) -> None:
        """Return the block where nothing is in it."""
        if self._block is not None and not self._payload.waits:
            self._blocks.give_back(self._block)
            self._block = None

    def _pull(self) -> bool:
        """Returns: whether there may be more."""
        block = self._block = self._block or self._blocks.lend()
        try:
            position, size_bytes = self._pass_on(block) or (0, self._side.read(block))
        except StreamEnded as end:
            self._ends.carrier_ended(f"peer ended without a Close frame: {end}")
            return False
        except StreamFailed as failure:
            self._ends.carrier_failed(str(failure))
            return False
        if size_bytes == 0:
            if not self._side.more:
                self._ends.drained(self._ends.inward)
            return self._side.more
        self._decode(block, position, size_bytes)
        return self._side.more or self._ends.hears_out

    def _pass_on(self, block: memoryview) -> tuple[int, int] | None:
        """Let native code do all of it, as long as all is as usual.

        Returns: what is left to be decoded of the block, and where it ends; None: this is not the moment for it.
        Raises: StreamEnded, StreamFailed: nothing came.
        """
        side, decoder, payload = self._side, self._decoder, self._payload
        if not (isinstance(side, NativeSide) and isinstance(payload, NativePayload) and decoder is not None):
            return None
        if not (side.passes_on and decoder.is_usual and self._ends.inward.sender is Sender.OPEN):
            return None
        most_bytes = 0 if self.bucket.is_limited else TURN_BYTES
        passed = side.pass_on(self._local, block, decoder, payload.lend_spans(), most_bytes)
        decoder.go_on(passed.left_bytes, passed.key)
        self.bucket.spend(passed.found_bytes)
        payload.passed_on(passed.found_bytes, passed.first, passed.span_count)
        self._note_arrived()
        self._note_taken(passed.sent_bytes)
        if passed.local_number:
            self._deafen(OSError(passed.local_number, os.strerror(passed.local_number)))
            return passed.end, passed.end
        return passed.position, passed.end

    def _decode(self, block: memoryview, position: int, end: int) -> None:
        decoder, payload = self._decoder, self._payload
        assert decoder is not None, "bytes come from a carrier"
        before_bytes = payload.found_bytes
        try:
            while position < end:
                position = payload.find(decoder, block, position, end)
                self._note_arrived()
                if decoder.event in _HEARD and not self._hear(decoder):
                    break
        except FrameError as error:
            self._ends.violated(error.code, error.text)
        self.bucket.spend(payload.found_bytes - before_bytes)

    def _hear(self, decoder: Decoder) -> bool:
        """A control frame came. Returns: whether what follows still counts."""
        if decoder.event is Event.PING:
            self.pings.append(decoder.control)
        elif decoder.event is Event.CLOSE:
            self._ends.close_came(decoder.close_code)
        return self._ends.hears

    def _note_arrived(self) -> None:
        """More payload was found; positions are told by flows that are resumable only."""

    def _push(self) -> None:
        """Give the spans to the UNIX socket, as far as it takes them."""
        block = self._block
        if block is None or not self._payload.waits:
            return
        try:
            self._note_taken(self._payload.send(self._local, block))
        except OSError as error:
            self._deafen(error)

    def _note_taken(self, size_bytes: int) -> None:
        """The UNIX socket has taken so many."""
        self.position += size_bytes

    def _deafen(self, error: OSError) -> None:
        self._payload.drop()
        self._ends.local_deaf(f"UNIX side: {describe('send', error)}")


class Outward:
    """From the UNIX socket to the carrier; also everything else that the peer is told.

    position: bytes that were read from the UNIX socket. taken_bytes: what the kernel took for the carrier, of any kind.
    """

    _keeps: ClassVar[bool] = False
    """Frames stay as they are until they are acknowledged."""
    _batch_frames: ClassVar[int] = 16
    """The most that native code forwards in one call."""

    def __init__(self, local: socket.socket, ends: Ends, *, role: Role, limits: FlowLimits, tools: ThreadTools) -> None:
        self.position = 0
        self.again = False
        self.bucket = Bucket(limits.rate_bytes_s)
        self._local = local
        self._ends = ends
        self._role = role
        self._side: Side = NO_SIDE
        self._native_side: NativeSide | None = None
        self._blocks = tools.blocks
        self._block: memoryview | None = None

    @property
    def waits(self) -> bool:
        """Bytes wait for a peer that still takes them."""
        return self._side.waits and not self._ends.outward.deaf

    @property
    def owes(self) -> bool:
        """The peer has yet to take something."""
        return self.waits

    @property
    def progress(self) -> int:
        """Grows while the peer takes what it has to."""
        return self._side.sent_bytes

    @property
    def kept_bytes(self) -> int:
        """What is kept to be sent again over another carrier."""
        return 0

    @property
    def reads(self) -> bool:
        """The UNIX side's next bytes are wanted."""
        return not self.waits and self._ends.outward.takes and self.bucket.due_s is None

    def carry(self, now_s: float) -> None:
        """Move what can be moved."""
        self.bucket.due_s = None
        turn_bytes = self.position + TURN_BYTES
        for _ in range(BATCHES):
            if self.waits:
                self.flush()
            if self.waits or not self._may_pull():
                return
            if self.bucket.is_empty(now_s) or not self._pull():
                return
            if self.position >= turn_bytes:
                break
        self.again = True

    def _may_pull(self) -> bool:
        return self._ends.outward.takes

    def attach(self, carrier: Carrier) -> None:
        """Write to this carrier from now on."""
        self._side = carrier.side
        self._native_side = carrier.side if isinstance(carrier.side, NativeSide) else None

    def detach(self) -> None:
        """Nothing more can be written; what waits is forgotten."""
        self._side, self._native_side = NO_SIDE, None
        self.again = False

    def drop(self) -> None:
        """The flow is over: forget what was kept to be sent again."""

    def flush(self) -> None:
        """Go on with what waits, and with what TLS itself has to send."""
        self._write(b"")

    def answer(self, pings: deque[bytes]) -> None:
        """Send pongs, once the peer has taken everything before them."""
        if pings and not self.waits and self._ends.pings:
            self._write(b"".join(pong_frame(self._role, payload) for payload in pings))
            pings.clear()

    def ping(self) -> None:
        """Send something on a connection that is silent; where bytes wait for the peer, it is not."""
        if not self.waits and self._ends.pings:
            self._write(ping_frame(self._role))

    def say_close(self) -> None:
        """Queue our Close frame behind everything else."""
        if self._ends.close_code is not None:
            self._write(close_frame(self._role, self._ends.close_code))

    def say_end_record(self) -> None:
        """Tell the peer that the UNIX side has ended; resumable flows only, for the others Close says it."""

    def say_end(self) -> None:
        """Queue the close_notify of TLS."""
        if not self._ends.outward.deaf:
            self._side.say_end()
            self.flush()

    def give_back(self) -> None:
        """Return the block where the peer has taken it."""
        if self._block is not None and not self.waits:
            self._blocks.give_back(self._block)
            self._block = None

    def _pull(self) -> bool:
        """Returns: whether there may be more."""
        if self._native_side is not None and not self._ends.outward.deaf:
            return self._forward(self._native_side)
        try:
            size_bytes = receive(self._local, self._room()[HEADER_ROOM_BYTES : HEADER_ROOM_BYTES + SENT_PAYLOAD_BYTES])
        except (StreamEnded, StreamFailed) as end:
            self._end(type(end), str(end))
            return False
        if size_bytes == 0:
            self._ends.drained(self._ends.outward)
            return False
        self.position += size_bytes
        self.bucket.spend(size_bytes)
        self._write(self._frame(size_bytes))
        return size_bytes == SENT_PAYLOAD_BYTES or self._ends.outward.sender is Sender.LAST

    def _forward(self, side: NativeSide) -> bool:
        """The same for a batch of frames."""
        sizes_bytes, more, local_failure, failure = side.forward(
            self._local, self._room(), self._most_frames(), masked=self._role is Role.CLIENT, keeps=self._keeps
        )
        size_bytes = sum(sizes_bytes)
        self.position += size_bytes
        self.bucket.spend(size_bytes)
        self._note_sent(sizes_bytes)
        if failure is not None:
            self._ends.carrier_deaf(failure[1])
        if local_failure is not None:
            self._end(*local_failure)
        elif not more:
            self._ends.drained(self._ends.outward)
        elif failure is None:
            return sizes_bytes[-1] == SENT_PAYLOAD_BYTES or self._ends.outward.sender is Sender.LAST
        return False

    def _end(self, kind: type[Exception], text: str) -> None:
        """The UNIX side has ended, or cannot be read."""
        if kind is StreamEnded:
            self._ends.local_ended()
        else:
            self._ends.local_failed(f"UNIX side: {text}")

    def _most_frames(self) -> int:
        """A limited rate may be overdrawn by one frame."""
        return 1 if self.bucket.is_limited else self._batch_frames

    def _note_sent(self, sizes_bytes: Sequence[int]) -> None:
        """So many bytes went out in frames, one behind the other in the room; kept by resumable flows only."""

    def _room(self) -> memoryview:
        """Where the next frame is to be made: its payload comes HEADER_ROOM_BYTES behind the beginning."""
        block = self._block = self._block or self._blocks.lend()
        return block

    def _frame(self, size_bytes: int) -> memoryview:
        """So many bytes were read. Returns: the frame around them."""
        block, header = self._block, frame_header(self._role, Opcode.BINARY, size_bytes)
        assert block is not None, "they were read into it"
        begin = HEADER_ROOM_BYTES - len(header)
        block[begin:HEADER_ROOM_BYTES] = header
        return block[begin : HEADER_ROOM_BYTES + size_bytes]

    def _write(self, data: memoryview | bytes) -> None:
        """Send data, or go on with what waits if there is none; nothing is sent to a carrier that is deaf."""
        if self._ends.outward.deaf:
            return
        try:
            if data:
                self._side.write(data)
            else:
                self._side.flush()
        except StreamFailed as failure:
            self._ends.carrier_deaf(str(failure))
