"""What the sending end of a resumable way keeps: frames that the peer has not acknowledged, where they were made.

They lie in chunks of memory, which the flows of one thread share. Frames that were sent together are kept together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mtunnel_tx.wire.frames import HEADER_ROOM_BYTES, SENT_PAYLOAD_BYTES, Opcode, Role, frame_header

CHUNK_BYTES = 16 * (HEADER_ROOM_BYTES + SENT_PAYLOAD_BYTES)

Bytes = memoryview | bytes
Frame = Bytes


def _take_from_heap(size_bytes: int) -> memoryview:
    return memoryview(bytearray(size_bytes))


class Chunks:
    """Memory for kept bytes, CHUNK_BYTES each; shared by the flows of one thread. `lent` counts those in use.

    Args: make: where memory of so many bytes comes from. most_free: what is kept for the next ones.
    """

    def __init__(self, make: Callable[[int], memoryview] = _take_from_heap, *, most_free: int = 4) -> None:
        self.lent = 0
        self.make = make
        self._free: list[memoryview] = []
        self._most_free = most_free

    def lend(self) -> memoryview:
        self.lent += 1
        return self._free.pop() if self._free else self.make(CHUNK_BYTES)

    def give_back(self, chunk: memoryview) -> None:
        self.lent -= 1
        if len(self._free) < self._most_free:
            self._free.append(chunk)


@dataclass(slots=True)
class _Chunk:
    """`used_bytes` are filled with frames; `runs` of them are still kept."""

    view: memoryview
    used_bytes: int = 0
    runs: int = 0


@dataclass(slots=True)
class _Run:
    """Frames that were sent together, one behind the other in a chunk from `begin` on, each behind room for its header.

    `sizes_bytes` are those of their payload, which ends at the position `stop` of the way. Never changed, and yet not
    frozen: to make it would take three times as long.
    """

    stop: int
    chunk: _Chunk
    begin: int
    sizes_bytes: Sequence[int]

    def frames(self) -> Iterator[_KeptFrame]:
        position, begin = self.stop - sum(self.sizes_bytes), self.begin
        for size_bytes in self.sizes_bytes:
            begin += HEADER_ROOM_BYTES
            yield _KeptFrame(position, self.chunk.view, begin, begin + size_bytes)
            position += size_bytes
            begin += size_bytes


@dataclass(slots=True)
class _KeptFrame:
    """A frame in a chunk: its payload is `view[begin:end]`, from a position of the way on."""

    position: int
    view: memoryview
    begin: int
    end: int

    @property
    def stop(self) -> int:
        """The position behind it."""
        return self.position + self.end - self.begin

    def payload_from(self, position: int) -> memoryview:
        return self.view[self.begin + max(0, position - self.position) : self.end]

    def from_position(self, position: int, role: Role) -> Frame:
        """The frame as it went out, or a new one for what is left of it from `position` on."""
        payload = self.payload_from(position)
        header = frame_header(role, Opcode.BINARY, len(payload))
        is_whole = len(payload) == self.end - self.begin
        return self.view[self.begin - len(header) : self.end] if is_whole else header + bytes(payload)


class KeptFrames:
    """The frames that nobody has acknowledged, in order, where they were made; a run goes when all of it was."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._runs: deque[_Run] = deque()
        self._filling: _Chunk | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def room(self) -> memoryview:
        """Where the next frames may be made, each with HEADER_ROOM_BYTES in front of its payload.

        Returns: room for SENT_PAYLOAD_BYTES at least, as reads into small rests cost more than they save.
        """
        chunk = self._filling
        if chunk is None or len(chunk.view) - chunk.used_bytes < SENT_PAYLOAD_BYTES + HEADER_ROOM_BYTES:
            self._release_filling()
            chunk = self._filling = _Chunk(self._chunks.lend())
        return chunk.view[chunk.used_bytes :]

    def add(self, position: int, sizes_bytes: Sequence[int]) -> int:
        """Frames with so many payload bytes were made in the room, each right behind the one before.

        Returns: the position behind them.
        """
        chunk, count = self._filling, len(sizes_bytes)
        assert chunk is not None, "room() comes first"
        if count:
            size_bytes = sum(sizes_bytes)
            position += size_bytes
            self._runs.append(_Run(position, chunk, chunk.used_bytes, sizes_bytes))
            chunk.used_bytes += size_bytes + count * HEADER_ROOM_BYTES
            chunk.runs += 1
            self._count += count
        return position

    def forget(self, position: int) -> None:
        """Everything before `position` was acknowledged."""
        while self._runs and self._runs[0].stop <= position:
            run = self._runs.popleft()
            chunk = run.chunk
            chunk.runs -= 1
            self._count -= len(run.sizes_bytes)
            if chunk.runs == 0 and chunk is not self._filling:
                self._chunks.give_back(chunk.view)
        if not self._runs:
            self._release_filling()

    def _after(self, position: int) -> Iterator[_KeptFrame]:
        return (frame for run in self._runs for frame in run.frames() if frame.stop > position)

    def after(self, position: int, role: Role) -> list[tuple[int, Frame]]:
        """What is to be sent again, each with the position where it begins."""
        return [(max(position, frame.position), frame.from_position(position, role)) for frame in self._after(position)]

    def payload(self, position: int, size_bytes: int) -> Bytes:
        """All bytes from there on. Args: size_bytes: how many they are."""
        room = self._chunks.make(size_bytes) if size_bytes else memoryview(b"")
        filled = 0
        for frame in self._after(position):
            piece = frame.payload_from(position)
            room[filled : filled + len(piece)] = piece
            filled += len(piece)
        return room

    def drop(self) -> None:
        """Give everything back."""
        if self._runs:
            self.forget(self._runs[-1].stop)
        self._release_filling()

    def give_back(self) -> None:
        """Return the room in which nothing came."""
        if self._filling is not None and self._filling.runs == 0:
            self._release_filling()

    def _release_filling(self) -> None:
        """Let the chunk that is being filled go, at once or with its last run."""
        chunk, self._filling = self._filling, None
        if chunk is not None and chunk.runs == 0:
            self._chunks.give_back(chunk.view)
