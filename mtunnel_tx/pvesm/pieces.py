"""Read a dense or a sparse stream (`mtunnel_tx.extents`) as pieces, each with its offset in the file.

The last piece is empty, and its offset is the length of the file. The next piece reuses the buffer of the former one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mtunnel_tx.errors import BadRequest
from mtunnel_tx.extents import EXTENT
from mtunnel_tx.pvesm.header import LARGEST_BYTES, read_stream
from mtunnel_tx.pvesm.sparse import CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Piece:
    """The first `count` bytes of `buffer` belong at `offset`."""

    offset: int
    buffer: bytearray
    count: int

    @property
    def view(self) -> memoryview:
        """The bytes of the piece."""
        return memoryview(self.buffer)[: self.count]


def dense_pieces(stream: int, most_bytes: int | None = None) -> Iterator[Piece]:
    """Read a dense stream to its end. Raises: BadRequest: it is longer than `most_bytes`; BackendFailed."""
    buffer = bytearray(CHUNK_BYTES)
    received = 0
    while True:
        wanted = CHUNK_BYTES if most_bytes is None else min(CHUNK_BYTES, most_bytes + 1 - received)
        count = read_stream(stream, memoryview(buffer)[:wanted])
        if most_bytes is not None and received + count > most_bytes:
            raise BadRequest(f"import: stream is longer than {most_bytes} bytes")
        if count:
            yield Piece(received, buffer, count)
        received += count
        if count < wanted:
            break
    yield Piece(received, buffer, 0)


def sparse_pieces(stream: int, most_bytes: int | None = None) -> Iterator[Piece]:
    """Read a sparse stream up to its end record, after which the stream has to end.

    Raises: BadRequest: it is cut short, out of order, or longer than `most_bytes`; BackendFailed.
    """
    buffer = bytearray(CHUNK_BYTES)
    position = 0
    while True:
        offset, length = EXTENT.unpack(_exactly(stream, bytearray(EXTENT.size), EXTENT.size))
        if not position <= offset <= (end := offset + length) <= (most_bytes or LARGEST_BYTES):
            raise BadRequest(f"import: stream has an impossible extent, {length} bytes at {offset}")
        if length == 0:
            break
        for position in range(offset, end, CHUNK_BYTES):
            count = min(CHUNK_BYTES, end - position)
            yield Piece(position, _exactly(stream, buffer, count), count)
        position = end
    if read_stream(stream, memoryview(buffer)[:1]):
        raise BadRequest("import: stream goes on behind its end")
    yield Piece(offset, buffer, 0)


def _exactly(stream: int, buffer: bytearray, count: int) -> bytearray:
    if read_stream(stream, memoryview(buffer)[:count]) < count:
        raise BadRequest("import: stream is cut short")
    return buffer
