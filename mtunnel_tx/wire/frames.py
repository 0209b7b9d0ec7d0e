"""RFC 6455 frames, decoded where they lie in a caller's buffer.

The decoder is given a piece of a byte stream, in any split, and says where in that piece the payload lies and with
which mask; payload is neither copied nor kept, so a frame may be larger than any buffer. Whether a frame is text or
binary, whole or a fragment, makes no difference to a byte stream: only the order of fragments is checked.
"""

from __future__ import annotations

import struct
from enum import Enum, IntEnum, auto

from mtunnel_tx.errors import TunnelError

CLOSE_NORMAL = 1000
CLOSE_PROTOCOL_ERROR = 1002
CLOSE_NO_STATUS = 1005
CLOSE_BAD_PAYLOAD = 1007
CLOSE_TOO_BIG = 1009

CONTROL_BYTES = 125
HEADER_ROOM_BYTES = 14
SENT_PAYLOAD_BYTES = 128 * 1024
"""A Proxmox target hangs on larger frames."""

Buffer = bytes | bytearray | memoryview

_FIN = 0x80
_CONTROL = 0x08
_MASKED = 0x80
_LENGTH = 0x7F
_LENGTH_16, _LENGTH_64 = 126, 127
_EXTENDED_BYTES = {_LENGTH_16: 2, _LENGTH_64: 8}
_ZERO_MASK = bytes(4)
_unpack_usual = struct.Struct(">BBH4s").unpack_from
"""The header that most small frames have: two bytes of length, a mask."""


class Role(Enum):
    """Which end of the websocket we are: a server reads masked frames, a client unmasked ones."""

    SERVER = "server"
    CLIENT = "client"


class Opcode(IntEnum):
    """Frame types; every other value is reserved."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


class Event(Enum):
    """What `Decoder.step` found."""

    NOTHING = auto()
    PAYLOAD = auto()
    PING = auto()
    PONG = auto()
    CLOSE = auto()
    RECORD = auto()


class FrameError(TunnelError):
    """The peer broke the protocol.

    Args: code: the status for the Close frame: 1002, 1007 or 1009.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


_COLLECTED_EVENTS = {
    Opcode.CLOSE: Event.CLOSE,
    Opcode.PING: Event.PING,
    Opcode.PONG: Event.PONG,
    Opcode.TEXT: Event.RECORD,
}
_FIRST_BYTES = {
    final | opcode: int(opcode) for opcode in Opcode for final in (0, _FIN) if final or not opcode & _CONTROL
}
_WHOLE_MESSAGES = (_FIN | Opcode.BINARY, _FIN | Opcode.TEXT)
# Enum members are slow to look up, and this is done for every frame.
_NOTHING, _PAYLOAD = Event.NOTHING, Event.PAYLOAD


class Decoder:
    """Decodes one direction of a websocket.

    Args: role: whose receiving end this is. limit_bytes: the largest payload a frame may declare. records: a text frame
    is no payload but a record (`records.py`): whole, unfragmented, at most 125 bytes.
    After each `step` look at `event`; for PAYLOAD, the bytes are `buffer[begin:returned position]`, XORed with `mask`
    (four bytes, turned so that the first one meets the first byte; None: they are plain); for the others `control`
    has the payload, unmasked. `close_code` is the status of a Close frame, 1005 where it has none.
    """

    def __init__(self, role: Role, limit_bytes: int, *, records: bool = False) -> None:
        self.event = Event.NOTHING
        self.begin = 0
        self.mask: bytes | None = None
        self.control = b""
        self.close_code = CLOSE_NO_STATUS
        self._mask_bit = _MASKED if role is Role.SERVER else 0
        self.limit_bytes = limit_bytes
        self._records = records
        self._takes_usual = role is Role.SERVER and limit_bytes > 0xFFFF
        self._usual_starts = (_FIN | Opcode.BINARY,) if records else _WHOLE_MESSAGES
        self._head = bytearray()
        self._head_bytes = 2
        self._left_bytes = 0
        self._opcode = int(Opcode.BINARY)
        self._in_message = False
        self._collected: bytearray | None = None
        self._key: bytes | None = None

    @property
    def is_masked(self) -> bool:
        """Every frame has to have a mask."""
        return self._mask_bit != 0

    @property
    def texts_are_payload(self) -> bool:
        """A text frame is payload like any other, and no record."""
        return not self._records

    @property
    def is_usual(self) -> bool:
        """It stands within the payload of a whole data frame, or in front of a header of which nothing has come."""
        return not self._in_message and self._collected is None and not self._head

    @property
    def left_bytes(self) -> int:
        """Payload bytes of the present frame that are still to come."""
        return self._left_bytes

    @property
    def key(self) -> bytes:
        """The mask of the present frame, turned to its next byte; zeros where there is none."""
        return self._key or _ZERO_MASK

    def go_on(self, left_bytes: int, key: bytes) -> None:
        """Somebody else has decoded usual frames in between: what is left of the last one, and its mask."""
        self._left_bytes = left_bytes
        self._key = key if key != _ZERO_MASK else None

    def step(self, buffer: Buffer, start: int, end: int) -> int:
        """Take the next piece of `buffer[start:end]`: a header's part, or as much payload as there is of one frame.

        Returns: the position of the first byte that was not used. Raises: FrameError.
        """
        self.event = _NOTHING
        if self._left_bytes == 0 and self._collected is None:
            start = self._read_header(buffer, start, end)
        if self._collected is not None:
            return self._read_control(buffer, start, end)
        size_bytes = min(end - start, self._left_bytes)
        if size_bytes == 0:
            return start
        self.event = _PAYLOAD
        self.begin = start
        self._left_bytes -= size_bytes
        key = self.mask = self._key
        if key is not None and self._left_bytes:
            phase = size_bytes & 3
            self._key = key[phase:] + key[:phase]
        return start + size_bytes

    def _read_header(self, buffer: Buffer, start: int, end: int) -> int:
        """Returns: the position behind what was used; the frame has begun unless everything was."""
        head = self._head
        if not head and end - start >= HEADER_ROOM_BYTES:
            return self._read_whole_header(buffer, start)
        while len(head) < self._head_bytes:
            stop = min(end, start + self._head_bytes - len(head))
            if stop == start:
                return start
            head += buffer[start:stop]
            start = stop
            if len(head) == 2:
                self._check_start(head[0], head[1])
                self._head_bytes += _EXTENDED_BYTES.get(head[1] & _LENGTH, 0) + (4 if head[1] & _MASKED else 0)
        self._begin_frame(head, 1)
        self._head_bytes = 2
        head.clear()
        return start

    def _read_whole_header(self, buffer: Buffer, start: int) -> int:
        """As above, with a shorter way for the usual one."""
        first, second, length, key = _unpack_usual(buffer, start)
        usual = second == _MASKED | _LENGTH_16 and length > CONTROL_BYTES and first in self._usual_starts
        if usual and self._takes_usual and not self._in_message:
            self._left_bytes = length
            self._key = None if key == _ZERO_MASK else key
            return start + 8
        self._check_start(first, second)
        return self._begin_frame(buffer, start + 1)

    def _check_start(self, first: int, second: int) -> None:
        opcode = _FIRST_BYTES.get(first)
        if opcode is None:
            raise FrameError(CLOSE_PROTOCOL_ERROR, "reserved bits, reserved opcode or fragmented control frame")
        # A pong carries nothing, and what Proxmox's own helper makes of a ping is not known for sure.
        if second & _MASKED != self._mask_bit and not (opcode == Opcode.PONG and self._mask_bit):
            raise FrameError(CLOSE_PROTOCOL_ERROR, "unmasked frame" if self._mask_bit else "masked frame")
        if opcode & _CONTROL:
            if second & _LENGTH > CONTROL_BYTES:
                raise FrameError(CLOSE_PROTOCOL_ERROR, "control frame longer than 125 bytes")
        elif (opcode == 0) is not self._in_message:
            raise FrameError(CLOSE_PROTOCOL_ERROR, "fragments out of order")
        elif self._records and opcode == Opcode.TEXT:
            self._check_record(first, second)
        else:
            self._in_message = first < _FIN
        self._opcode = opcode

    def _check_record(self, first: int, second: int) -> None:
        if first < _FIN or second & _LENGTH > CONTROL_BYTES:
            raise FrameError(CLOSE_PROTOCOL_ERROR, "text frame that is too long or fragmented, and no record")

    def _begin_frame(self, buffer: Buffer, position: int) -> int:
        """Read the header from its second byte on; the whole of it is there. Returns: where the payload begins."""
        is_masked, length = buffer[position] & _MASKED, buffer[position] & _LENGTH
        position += 1
        if length > CONTROL_BYTES:
            stop = position + _EXTENDED_BYTES[length]
            length = self._check_length(int.from_bytes(buffer[position:stop], "big"), stop - position)
            position = stop
        self._left_bytes = length
        self._key = None
        if is_masked:
            key = bytes(buffer[position : position + 4])
            position += 4
            self._key = key if key != _ZERO_MASK else None
        if self._opcode & _CONTROL or (self._records and self._opcode == Opcode.TEXT):
            self._collected = bytearray()
        return position

    def _check_length(self, length: int, size_bytes: int) -> int:
        if length >> 63 or length <= (CONTROL_BYTES if size_bytes == 2 else 0xFFFF):
            raise FrameError(CLOSE_PROTOCOL_ERROR, "length is not encoded as it should be")
        if length > self.limit_bytes:
            raise FrameError(CLOSE_TOO_BIG, f"frame of {length} bytes")
        return length

    def _read_control(self, buffer: Buffer, start: int, end: int) -> int:
        collected = self._collected
        assert collected is not None
        stop = min(end, start + self._left_bytes)
        collected += buffer[start:stop]
        self._left_bytes -= stop - start
        if self._left_bytes == 0:
            self._collected = None
            self.control = unmask_bytes(bytes(collected), self._key)
            self.event = _COLLECTED_EVENTS[Opcode(self._opcode)]
            if self._opcode == Opcode.CLOSE:
                self.close_code = read_close(self.control)
        return stop


def unmask_bytes(data: bytes, mask: bytes | None) -> bytes:
    """Undo a mask of four bytes, copying; for control frames and as the slow way for payload."""
    if mask is None:
        return data
    size_bytes = len(data)
    keys = (mask * (size_bytes // 4 + 1))[:size_bytes]
    return (int.from_bytes(data, "little") ^ int.from_bytes(keys, "little")).to_bytes(size_bytes, "little")


def read_close(payload: bytes) -> int:
    """Check the payload of a Close frame.

    Returns: its status, 1005 where it has none. Raises: FrameError: 1002, or 1007 for a reason that is not UTF-8.
    """
    if not payload:
        return CLOSE_NO_STATUS
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not _is_sendable(code):
        raise FrameError(CLOSE_PROTOCOL_ERROR, "invalid status in a Close frame")
    try:
        payload[2:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise FrameError(CLOSE_BAD_PAYLOAD, "reason in a Close frame is not UTF-8") from error
    return code


def _is_sendable(code: int) -> bool:
    return code in (1000, 1001, 1002, 1003, *range(1007, 1015)) or 3000 <= code < 5000


def frame_header(role: Role, opcode: Opcode, size_bytes: int) -> bytes:
    """The header of a final, unfragmented frame; a client's has the zero mask, so that its payload goes out as it is.

    Args: role: the sender. size_bytes: of the payload, up to `SENT_PAYLOAD_BYTES`.
    """
    assert size_bytes <= SENT_PAYLOAD_BYTES
    mask_bit, mask = (_MASKED, _ZERO_MASK) if role is Role.CLIENT else (0, b"")
    if size_bytes <= CONTROL_BYTES:
        return bytes((_FIN | opcode, mask_bit | size_bytes)) + mask
    if size_bytes <= 0xFFFF:
        return bytes((_FIN | opcode, mask_bit | _LENGTH_16)) + size_bytes.to_bytes(2, "big") + mask
    return bytes((_FIN | opcode, mask_bit | _LENGTH_64)) + size_bytes.to_bytes(8, "big") + mask


def ping_frame(role: Role) -> bytes:
    """A ping without a payload."""
    return frame_header(role, Opcode.PING, 0)


def pong_frame(role: Role, payload: bytes) -> bytes:
    """The answer to a ping."""
    return frame_header(role, Opcode.PONG, len(payload)) + payload


def close_frame(role: Role, code: int) -> bytes:
    """A Close frame without a reason; 1005 gives one without a status."""
    payload = b"" if code == CLOSE_NO_STATUS else code.to_bytes(2, "big")
    return frame_header(role, Opcode.CLOSE, len(payload)) + payload
