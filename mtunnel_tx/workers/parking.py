"""A parked flow on its way from one worker to another: numbers in a message, bytes in a file in memory.

The daemon keeps both meanwhile, and looks at them: who has taken over a worker must not reach another one by them. The
file is sealed, so that nobody can change it behind the daemon's back.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO

from mtunnel_tx.checks import clean
from mtunnel_tx.stream.ends import Sender
from mtunnel_tx.stream.parkedvalue import ParkedValue, ParkedWay
from mtunnel_tx.wire.frames import SENT_PAYLOAD_BYTES
from mtunnel_tx.workers.channel import Message, Nonsense, close_unasked, read_count

SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
LONGEST_REASON = 200
RUNNING = "running"
"""What a worker says before it runs a resumable flow; without it, nothing has become of the flow."""
ENDS = ("local", "peer", "closed")
"""What it says of the UNIX socket, the peer and the connection when they are over."""
PARKED, KEPT = "parked", "kept"
"""What a worker says of a flow that it gives back, and what it is answered: until then it keeps the bytes, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFlow:
    """A flow that no worker runs, and what the next one goes on with; it counts as stream.flow.Traffic.

    numbers: of a ParkedValue, checked. file: its bytes; the owner closes it. since_s: when it was parked, by the
    monotonic clock; None: now.
    """

    numbers: Message
    file: BinaryIO
    reason: str
    bytes_in: int
    bytes_out: int
    since_s: float | None = None

    @property
    def bytes_taken(self) -> int:
        return self.bytes_in

    @property
    def kept_bytes(self) -> int:
        return int(self.numbers["sent"] - self.numbers["acked"])


def write_value(value: ParkedValue) -> tuple[Message, BinaryIO]:
    """Returns: the numbers, and a sealed file with the bytes; it is the caller's to close. Raises: OSError."""
    numbers = asdict(replace(value, kept=b""))
    del numbers["kept"]
    number = os.memfd_create("mtunnel-parked", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    file = os.fdopen(number, "w+b")
    file.write(value.kept)
    file.flush()
    fcntl.fcntl(number, fcntl.F_ADD_SEALS, SEALS)
    return numbers, file


def write_stored(stored: StoredFlow) -> Message:
    """What another daemon reads by `read_parked`, beside the file."""
    counts = {"in": stored.bytes_in, "out": stored.bytes_out}
    return {**counts, "reason": stored.reason, "value": stored.numbers, "at": stored.since_s}


def begin_stored(now_s: float) -> StoredFlow:
    """A flow of which nothing was carried yet. Raises: OSError."""
    way = ParkedWay(sender=Sender.OPEN.name, done=False)
    value = ParkedValue(
        inward=way,
        outward=way,
        taken=0,
        is_end_passed=False,
        sent=0,
        acked=0,
        ended_at=None,
        is_end_delivered=False,
        kept=b"",
    )
    numbers, file = write_value(value)
    reason = "lost before it was used"
    return StoredFlow(numbers=numbers, file=file, reason=reason, bytes_in=0, bytes_out=0, since_s=now_s)


def read_value(message: Message, file: BinaryIO) -> ParkedValue:
    """The same value; the file is closed."""
    with file:
        kept = _map(file, message["sent"] - message["acked"])
    ways = {name: ParkedWay(**message[name]) for name in ("inward", "outward")}
    return ParkedValue(**{**message, **ways, "kept": kept})


def _map(file: BinaryIO, size_bytes: int) -> memoryview:
    """Its bytes where they are, as long as somebody looks at them.

    Privately: kernels before 6.7 refuse to share what is sealed against writing.
    """
    if not size_bytes:
        return memoryview(b"")
    return memoryview(mmap.mmap(file.fileno(), size_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))


def read_parked(message: Message, files: Sequence[Any], window_bytes: int) -> StoredFlow:
    """What a worker gives back. Raises: Nonsense: not what one of ours would; the files are closed then."""
    try:
        numbers = _read_numbers(message.get("value"), window_bytes)
        _check_file(files, numbers["sent"] - numbers["acked"])
    except Nonsense:
        with suppress(Nonsense):
            close_unasked(files)
        raise
    return StoredFlow(
        numbers=numbers,
        file=files[0],
        reason=clean(str(message.get("reason"))[:LONGEST_REASON]),
        bytes_in=read_count(message, "in"),
        bytes_out=read_count(message, "out"),
        since_s=_read_time(message.get("at")),
    )


def _read_time(sent: object) -> float | None:
    return sent if isinstance(sent, float) and math.isfinite(sent) else None


def _read_numbers(sent: Any, window_bytes: int) -> dict[str, Any]:
    if not isinstance(sent, dict):
        raise Nonsense("no parked flow")
    numbers: dict[str, Any] = {name: read_count(sent, name) for name in ("taken", "sent", "acked")}
    numbers |= {name: sent.get(name) is True for name in ("is_end_passed", "is_end_delivered")}
    numbers |= {name: _read_way(sent.get(name)) for name in ("inward", "outward")}
    numbers["ended_at"] = None if sent.get("ended_at") is None else read_count(sent, "ended_at")
    if not 0 <= numbers["sent"] - numbers["acked"] <= window_bytes + SENT_PAYLOAD_BYTES:
        raise Nonsense("positions that cannot be")
    if numbers["ended_at"] not in (None, numbers["sent"]):
        raise Nonsense("an end that cannot be")
    return numbers


def _read_way(sent: Any) -> dict[str, Any]:
    if not isinstance(sent, dict) or sent.get("sender") not in Sender.__members__:
        raise Nonsense("no way of a flow")
    return {"sender": sent["sender"], "done": sent.get("done") is True}


def _check_file(files: Sequence[Any], size_bytes: int) -> None:
    if len(files) != 1 or not hasattr(files[0], "seek"):
        raise Nonsense("no file with the bytes of a parked flow")
    status = os.fstat(files[0].fileno())
    try:
        sealed = fcntl.fcntl(files[0].fileno(), fcntl.F_GET_SEALS)
    except OSError:
        sealed = 0
    if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes or sealed & SEALS != SEALS:
        raise Nonsense("the bytes of a parked flow are not what was said")
