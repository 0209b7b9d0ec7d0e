"""The header of pvesm's streams: the volume's virtual size in eight bytes, little endian."""

from __future__ import annotations

from mtunnel_tx.errors import BackendFailed, BadRequest
from mtunnel_tx.pvesm.sparse import fill, send_all

HEADER_BYTES = 8
LARGEST_BYTES = 1 << 50


def read_size(stream: int) -> int:
    """Read the header. Raises: BadRequest: it is missing or impossible; BackendFailed: reading failed."""
    header = bytearray(HEADER_BYTES)
    if read_stream(stream, memoryview(header)) < HEADER_BYTES:
        raise BadRequest("import: no size found in export header, aborting.")
    size_bytes = int.from_bytes(header, "little")
    check_size(size_bytes)
    return size_bytes


def send_size(size_bytes: int, target: int) -> None:
    """Write the header."""
    send_all(memoryview(size_bytes.to_bytes(HEADER_BYTES, "little")), target)


def read_stream(stream: int, buffer: memoryview) -> int:
    """Read until the buffer is full or the stream has ended. Returns: bytes read. Raises: BackendFailed."""
    try:
        return fill(stream, buffer)
    except OSError as error:
        raise BackendFailed(f"import: stream broke off: {error.strerror}") from error


def check_size(size_bytes: int) -> None:
    """Raises: BadRequest: the size is 0 or too large."""
    if not 0 < size_bytes <= LARGEST_BYTES:
        raise BadRequest(f"refusing an image of {size_bytes} bytes, at most {LARGEST_BYTES} are possible")
