"""Records: what the two ends of a resumable flow tell each other, in text frames between the binary ones.

| record | meaning |
|---|---|
| `a N` | my UNIX side's kernel has everything before position N; the first record after an attach |
| `p N` | the next binary frame begins at position N |
| `e N` | my UNIX side has ended in order, at position N |
| `d` | I have delivered your end |
| `x TEXT` | both ways end now, for this reason |

A record is ASCII, at most 125 bytes, in one unfragmented text frame. The order of records and binary frames counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mtunnel_tx.wire.frames import CLOSE_PROTOCOL_ERROR, CONTROL_BYTES, FrameError, Opcode, Role, frame_header

MOST_POSITION = (1 << 63) - 1


class RecordKind(Enum):
    """The first letter of a record."""

    ACKNOWLEDGED = "a"
    POSITION = "p"
    ENDED = "e"
    DELIVERED = "d"
    ABORTED = "x"


_WITH_POSITION = (RecordKind.ACKNOWLEDGED, RecordKind.POSITION, RecordKind.ENDED)


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """One record; `position` counts bytes and is 0 where the kind has none, `reason` is empty but for ABORTED."""

    kind: RecordKind
    position: int = 0
    reason: str = ""


def parse_record(payload: bytes) -> FlowRecord:
    """Read the payload of a text frame.

    Raises: FrameError: 1002: it is no record.
    """
    letter, _, rest = payload.partition(b" ")
    try:
        kind = RecordKind(letter.decode("ascii"))
        text = rest.decode("ascii")
    except ValueError as error:
        raise _unreadable() from error
    if kind in _WITH_POSITION:
        return FlowRecord(kind, _read_position(text))
    if kind is RecordKind.ABORTED:
        return FlowRecord(kind, reason="".join(char if char.isprintable() else "?" for char in text))
    if payload != b"d":
        raise _unreadable()
    return FlowRecord(kind)


def _read_position(text: str) -> int:
    """Only the one usual spelling of a number is a position."""
    if not (text.isdigit() and len(text) <= len(str(MOST_POSITION)) and str(int(text)) == text):
        raise _unreadable()
    return int(text)


def _unreadable() -> FrameError:
    return FrameError(CLOSE_PROTOCOL_ERROR, "text frame that is no record")


def record_frame(role: Role, record: FlowRecord) -> bytes:
    """The frame of a record; a reason is cut to what fits.

    Args: role: the sender.
    """
    text = record.kind.value
    if record.kind in _WITH_POSITION:
        text += f" {record.position}"
    elif record.reason:
        text += f" {record.reason}"
    payload = text.encode("ascii", "replace")[:CONTROL_BYTES]
    return frame_header(role, Opcode.TEXT, len(payload)) + payload
