"""What the relay's soak carries: one pattern, cut into frames of any kind, and compared where it arrives."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from random import Random

PATTERN_BYTES = 4_194_301
"""A prime: what is lost or doubled in any usual size does not look right by chance."""
LARGEST_BYTES = 4 << 20
_BLOB_BYTES = 32 * 1024
_SMALL_BYTES = 4096
_MASKS = (bytes(4), b"\x37\xfa\x21\x3d", b"\x00\x00\x00\x01")
_FRAMES = (1, 2, 7, 125, 126, 1024, 4096, 16_384, 65_535, 65_536, 131_072, 1_000_003, 4 << 20)

memcmp = ctypes.CDLL(None).memcmp
memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

Piece = tuple[int, int, object]
"""Address, size, and what has to live as long."""


def _make_pattern() -> bytes:
    once = Random(20221122).randbytes(PATTERN_BYTES)
    return once + once + once[: LARGEST_BYTES - PATTERN_BYTES + 4]


def _masked(data: bytes, mask: bytes) -> bytes:
    keys = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "little") ^ int.from_bytes(keys, "little")).to_bytes(len(data), "little")


PATTERN = _make_pattern()
MASKED = tuple(_masked(PATTERN, mask) for mask in _MASKS)


def address_of(data: bytes) -> int:
    address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
    assert address is not None
    return address


PATTERN_ADDRESS = address_of(PATTERN)
MASKED_ADDRESSES = tuple(address_of(data) for data in MASKED)


class Flow:
    """The bytes of one way: `total` of the pattern, from `begin` on; `moved` were received, and found right."""

    def __init__(self, chance: Random, total: int) -> None:
        self.begin = chance.randrange(PATTERN_BYTES)
        self.total = total
        self.moved = 0
        self.sent = 0

    def check(self, address: int, size: int) -> None:
        """Raises: AssertionError: these are not the next bytes."""
        assert self.moved + size <= self.total, f"{self.moved + size} bytes of {self.total} came"
        while size:
            at = (self.begin + self.moved) % PATTERN_BYTES
            part = min(size, PATTERN_BYTES)
            assert memcmp(address, PATTERN_ADDRESS + at, part) == 0, f"wrong bytes after {self.moved}"
            self.moved, address, size = self.moved + part, address + part, size - part

    def next_bytes(self, most: int) -> tuple[int, int]:
        """Returns: where in the pattern the next bytes to send begin, and how many there are."""
        return (self.begin + self.sent) % PATTERN_BYTES, min(most, self.total - self.sent, PATTERN_BYTES)


def size_of_frames(chance: Random) -> int:
    """The usual sizes, borders, and anything else."""
    if chance.random() < 0.2:
        return chance.randrange(1, 300_000)
    return chance.choices(_FRAMES, (1, 1, 1, 1, 1, 2, 4, 6, 4, 4, 16, 4, 4))[0]


def head_of(first: int, size: int, mask: bytes) -> bytes:
    if size < 126:
        return bytes((first, 0x80 | size)) + mask
    if size < 65536:
        return bytes((first, 0xFE)) + struct.pack(">H", size) + mask
    return bytes((first, 0xFF)) + struct.pack(">Q", size) + mask


def frames(flow: Flow, chance: Random, frame_bytes: int) -> Iterator[Piece]:
    """The flow as a client's frames; counts as sent what is yielded. Fragments and pings come in between."""
    kind = chance.randrange(len(_MASKS))
    mask, masked, address = _MASKS[kind], MASKED[kind], MASKED_ADDRESSES[kind]
    mixes = chance.random() < 0.3
    blob, inside = bytearray(), False
    while flow.sent < flow.total:
        at, size = flow.next_bytes(frame_bytes)
        first = 0 if inside else 2
        inside = mixes and chance.random() < 0.5 and flow.sent + size < flow.total
        if mixes and chance.random() < 0.01:
            blob += head_of(0x89, 4, mask) + b"ping"
        turn = at & 3
        blob += head_of(first if inside else first | 0x80, size, mask[turn:] + mask[:turn])
        flow.sent += size
        if size <= _SMALL_BYTES:
            blob += masked[at : at + size]
            if len(blob) < _BLOB_BYTES and flow.sent < flow.total:
                continue
        yield _piece(blob)
        blob = bytearray()
        if size > _SMALL_BYTES:
            yield address + at, size, None


def _piece(blob: bytearray) -> Piece:
    data = bytes(blob)
    return address_of(data), len(data), data


def close_frame() -> Piece:
    return _piece(bytearray(head_of(0x88, 2, bytes(4)) + b"\x03\xe8"))
