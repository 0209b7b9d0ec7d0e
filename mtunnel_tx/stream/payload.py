"""Payload on its way to a UNIX socket: found in the frames of a block, and sent from where it lies.

`PurePayload` does it in Python, `NativePayload` by the native module (`native.py`); both have the same tests.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import deque
from typing import Any, Protocol

from mtunnel_tx.stream.mask import Unmask
from mtunnel_tx.wire.frames import Decoder, Event

GATHER_BYTES = 4096
"""Smaller payload is moved next to the payload before it, so that the kernel gets one piece instead of many."""

# Looked up for every frame; as attributes of the class they are slow.
_NOTHING, _PAYLOAD = Event.NOTHING, Event.PAYLOAD


class Payload(Protocol):
    """What is found in blocks. `found_bytes`: ever; `waits`: some of it was not sent yet."""

    found_bytes: int

    @property
    def waits(self) -> bool: ...

    def find(self, decoder: Decoder, block: memoryview, position: int, end: int) -> int:
        """Decode `block[position:end]` up to the first frame that is no payload, and undo masks in place.

        Returns: the position behind what was decoded; `decoder.event` says what stands there. Raises: FrameError.
        """

    def send(self, local: socket.socket, block: memoryview) -> int:
        """Send what waits, as far as the socket takes it. Returns: bytes sent. Raises: OSError."""

    def drop(self) -> None:
        """Forget what waits."""


class PurePayload:
    """See the module. Args: unmask: undoes a mask in place."""

    def __init__(self, unmask: Unmask) -> None:
        self.found_bytes = 0
        self._unmask = unmask
        self._spans: deque[tuple[int, int]] = deque()

    @property
    def waits(self) -> bool:
        return bool(self._spans)

    def find(self, decoder: Decoder, block: memoryview, position: int, end: int) -> int:
        while position < end:
            position = decoder.step(block, position, end)
            if decoder.event is _PAYLOAD:
                self._add(block, decoder.begin, position, decoder.mask)
            elif decoder.event is not _NOTHING:
                break
        return position

    def _add(self, block: memoryview, begin: int, end: int, mask: bytes | None) -> None:
        size_bytes = end - begin
        self.found_bytes += size_bytes
        if mask is not None:
            self._unmask(block[begin:end], mask)
        if self._spans and size_bytes < GATHER_BYTES:
            first, last = self._spans[-1]
            block[last : last + size_bytes] = block[begin:end]
            self._spans[-1] = (first, last + size_bytes)
        else:
            self._spans.append((begin, end))

    def send(self, local: socket.socket, block: memoryview) -> int:
        try:
            sent_bytes = local.sendmsg([block[begin:end] for begin, end in self._spans])
        except BlockingIOError:
            return 0
        self._forget(sent_bytes)
        return sent_bytes

    def _forget(self, sent_bytes: int) -> None:
        while sent_bytes:
            begin, end = self._spans.popleft()
            if end - begin > sent_bytes:
                self._spans.appendleft((begin + sent_bytes, end))
                return
            sent_bytes -= end - begin

    def drop(self) -> None:
        self._spans.clear()


MOST_SPANS = 512
"""More than a block can have: each but the first is of GATHER_BYTES at least, or stands at a control frame."""
_SPAN = struct.Struct("II")
_NO_SPANS = bytearray()


class NativePayload:
    """See the module. Args: native: `_batch`."""

    def __init__(self, native: Any) -> None:
        self.found_bytes = 0
        self._native = native
        self._spans = _NO_SPANS
        self._first = self._count = 0

    @property
    def waits(self) -> bool:
        return self._first < self._count

    def find(self, decoder: Decoder, block: memoryview, position: int, end: int) -> int:
        while position < end:
            if decoder.is_usual:
                position, left_bytes, key = self._decode(decoder, block, position, end, decoder.left_bytes, decoder.key)
                decoder.go_on(left_bytes, key)
                if position == end:
                    decoder.event = _NOTHING
                    break
            position = decoder.step(block, position, end)
            if decoder.event is _PAYLOAD:
                # It has found where the payload lies; its mask is still to be undone.
                size_bytes = position - decoder.begin
                self._decode(decoder, block, decoder.begin, position, size_bytes, decoder.mask or bytes(4))
            elif decoder.event is not _NOTHING:
                break
        return position

    def _decode(
        self, decoder: Decoder, block: memoryview, begin: int, end: int, left_bytes: int, key: bytes
    ) -> tuple[int, int, bytes]:
        """Returns: the position behind the usual frames, what is left of the last one, and its mask."""
        position, left_bytes, key, size_bytes, self._count = self._native.decode(
            block, begin, end, left_bytes, key, decoder.is_masked, decoder.texts_are_payload, decoder.limit_bytes,
            GATHER_BYTES, self.lend_spans(), self._count,
        )  # fmt: skip
        self.found_bytes += size_bytes
        return position, left_bytes, key

    def lend_spans(self) -> bytearray:
        """For somebody else that finds payload and sends it, while nothing waits; `passed_on` tells what is left."""
        self._spans = self._spans or bytearray(_SPAN.size * MOST_SPANS)
        return self._spans

    def passed_on(self, found_bytes: int, first: int, count: int) -> None:
        """So much was found; of its last spans `spans[first:count]` wait."""
        self.found_bytes += found_bytes
        self._first, self._count = first, count
        if first == count:
            self.drop()

    def send(self, local: socket.socket, block: memoryview) -> int:
        self._first, sent_bytes, number = self._native.push(
            local.fileno(), block, self._spans, self._first, self._count
        )
        if number not in (0, errno.EAGAIN):
            raise OSError(number, os.strerror(number))
        if self._first == self._count:
            self.drop()
        return int(sent_bytes)

    def drop(self) -> None:
        self._first = self._count = 0
        self._spans = _NO_SPANS


def make_payload(native: Any, unmask: Unmask) -> Payload:
    """Args: native: `_batch`, or None: do without."""
    return PurePayload(unmask) if native is None else NativePayload(native)
