"""Pieces of a byte stream through one of the decoders, as a way takes them: what came out, and how it ended."""

import socket

from mtunnel_tx.stream.mask import best_unmask
from mtunnel_tx.stream.native import find_native
from mtunnel_tx.stream.payload import NativePayload, PurePayload
from mtunnel_tx.wire.frames import Decoder, Event, FrameError

NATIVE = find_native()
LIMIT_BYTES = 1 << 20


def decode(payload, pieces, role, *, records=False):
    """Returns: the payload, as a UNIX socket gets it; other events, with the payload before each; the error's code."""
    decoder, received, events = Decoder(role, LIMIT_BYTES, records=records), [], []
    near, far = socket.socketpair()
    near.setblocking(False)
    try:
        for piece in pieces:
            block, position = memoryview(bytearray(piece)), 0
            try:
                while position < len(block):
                    position = payload.find(decoder, block, position, len(block))
                    if decoder.event not in (Event.NOTHING, Event.PAYLOAD):
                        events.append((decoder.event, decoder.control, payload.found_bytes))
            finally:
                received += _pass_on(payload, block, near, far)
    except FrameError as error:
        return b"".join(received), events, error.code
    finally:
        near.close()
        far.close()
    return b"".join(received), events, 0


def _pass_on(payload, block, near, far):
    received = []
    while payload.waits:
        left_bytes = payload.send(near, block)
        while left_bytes:
            received.append(far.recv(left_bytes))
            left_bytes -= len(received[-1])
    return received


def by_pure(pieces, role, *, records=False):
    return decode(PurePayload(best_unmask()), pieces, role, records=records)


def by_native(pieces, role, *, records=False):
    """Wants NATIVE.module."""
    return decode(NativePayload(NATIVE.module), pieces, role, records=records)
