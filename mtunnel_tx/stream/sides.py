"""The two kinds of carriers, with TLS and without: plaintext in and out of one TCP socket.

Nothing here blocks. A side never holds more than one block of what the peer has not taken, and what TLS made of one
frame; it takes the next frame only when nothing waits.
"""

from __future__ import annotations

import contextlib
import mmap
import socket
import struct
from typing import Protocol

from OpenSSL import SSL

from mtunnel_tx.stream.engine import Engine, MakeEngine, StreamEnded, StreamFailed

BLOCK_BYTES = 288 * 1024
RECEIVE_BYTES = 256 * 1024
RECORD_ROOM_BYTES = BLOCK_BYTES - RECEIVE_BYTES
"""Room for what OpenSSL already holds of a record, so that the plaintext of a receive always fits into what is left."""

MOST_UNSENT_BYTES = 1 << 20
"""Of what TLS answers by itself (new keys that a peer demands), behind what is being sent: a peer that lets so much
wait takes nothing, and its connection is over."""
UNREAD = "the peer demands new keys again and again, and takes none"

UNANSWERED = 3
"""So many keepalives in a row: then the connection is lost."""

_TCP_CLOSE = 7
_TCP_INFO_BYTES = 60
_UNACKED_OFFSET, _LAST_ACK_OFFSET = 24, 56
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def map_memory(size_bytes: int) -> memoryview:
    """Memory of its own pages: what is never written costs nothing, and it goes back to the system at once.

    From the heap it might not: a freed piece of the largest ones there lies between others.
    """
    return memoryview(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class Blocks:
    """Buffers of one thread, lent while a flow has bytes. `scratch` may be used by anybody within one call."""

    def __init__(self) -> None:
        self.scratch = map_memory(RECEIVE_BYTES)
        self.lent = 0
        self._free: list[memoryview] = []

    def lend(self) -> memoryview:
        self.lent += 1
        return self._free.pop() if self._free else map_memory(BLOCK_BYTES)

    def give_back(self, block: memoryview) -> None:
        self.lent -= 1
        if len(self._free) < 4:
            self._free.append(block)


class Side(Protocol):
    """One carrier's bytes. sent_bytes: what the kernel took for the peer. more: the last read may not have been all."""

    more: bool

    @property
    def sent_bytes(self) -> int: ...

    @property
    def waits(self) -> bool:
        """Bytes wait for the peer."""

    def read(self, block: memoryview) -> int:
        """Returns: plaintext bytes put into block, 0: none for now, or, with `more`, none in much ciphertext.

        Raises: StreamEnded, StreamFailed.
        """

    def write(self, data: memoryview | bytes) -> None:
        """Send, or keep what the kernel does not take; `data` stays as it is while something waits, or up to `own`.

        Raises: StreamFailed.
        """

    def own(self) -> None:
        """Copy what waits where it is not this side's: the memory of what was written will be used for other bytes."""

    def flush(self) -> None:
        """Go on sending. Raises: StreamFailed."""

    def say_end(self) -> None:
        """Queue what tells the peer that nothing follows (close_notify)."""

    def drop(self) -> None:
        """The carrier is closed: forget what waits, give back what was borrowed."""


class _NoSide:
    """For a flow without a carrier: nothing comes, and nobody takes anything."""

    more = False
    sent_bytes = 0
    waits = False

    def read(self, block: memoryview) -> int:
        return 0

    def write(self, data: memoryview | bytes) -> None:
        """Nobody takes it."""

    def own(self) -> None:
        """Nothing waits."""

    def flush(self) -> None:
        """Nothing waits."""

    def say_end(self) -> None:
        """There is nobody to tell."""

    def drop(self) -> None:
        """Nothing was borrowed."""


NO_SIDE = _NoSide()


class _Sender:
    """Sends views over a socket in order, as the kernel takes them."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._left: memoryview | bytes = b""
        self.sent_bytes = 0

    def send(self, data: memoryview | bytes) -> bool:
        """Returns: whether the kernel took all of it."""
        self._left = data
        return self.go_on()

    def go_on(self) -> bool:
        while self._left:
            try:
                size_bytes = self._sock.send(self._left)
            except BlockingIOError:
                return False
            except OSError as error:
                self._left = b""
                raise StreamFailed(describe("send", error)) from error
            self.sent_bytes += size_bytes
            self._left = self._left[size_bytes:]
        return True

    @property
    def waits(self) -> bool:
        return len(self._left) > 0

    def own(self) -> None:
        """See `Side.own`."""
        self._left = bytes(self._left)

    def drop(self) -> None:
        """Forget what waits."""
        self._left = b""


class PlainSide:
    """TCP without TLS; `leftover` are bytes that were read before the flow began."""

    def __init__(self, sock: socket.socket, leftover: bytes) -> None:
        self._sock = sock
        self._leftover = leftover
        self._sender = _Sender(sock)
        self._more = b""
        self.more = True

    @property
    def sent_bytes(self) -> int:
        return self._sender.sent_bytes

    @property
    def waits(self) -> bool:
        return self._sender.waits or bool(self._more)

    def read(self, block: memoryview) -> int:
        if self._leftover:
            size_bytes, self._leftover = put_leftover(block, self._leftover)
            return size_bytes
        size_bytes = receive(self._sock, block)
        self.more = size_bytes == len(block)
        return size_bytes

    def write(self, data: memoryview | bytes) -> None:
        if self.waits:
            self._more += bytes(data)
        else:
            self._sender.send(data)

    def own(self) -> None:
        self._sender.own()

    def flush(self) -> None:
        while self._sender.go_on() and self._more:
            more, self._more = self._more, b""
            self._sender.send(more)

    def say_end(self) -> None:
        """Plain TCP says it by its FIN."""

    def drop(self) -> None:
        self._sender.drop()
        self._more = b""


class TlsSide:
    """TCP with TLS; OpenSSL works on memory, the socket is ours."""

    def __init__(self, sock: socket.socket, leftover: bytes, blocks: Blocks, engine: Engine) -> None:
        self._sock = sock
        self._leftover = leftover
        self._blocks = blocks
        self._engine = engine
        self._sender = _Sender(sock)
        self._block: memoryview | None = None
        self.more = True
        self._failure: tuple[type[Exception], str] | None = None

    @property
    def sent_bytes(self) -> int:
        return self._sender.sent_bytes

    @property
    def waits(self) -> bool:
        return self._sender.waits

    def read(self, block: memoryview) -> int:
        if self.waits and self._engine.waiting_bytes() > MOST_UNSENT_BYTES:
            raise StreamFailed(UNREAD)
        end, self._leftover = put_leftover(block, self._leftover)
        drained, received_bytes = False, 0
        while True:
            end = self._decrypt(block, end)
            room_bytes = min(RECEIVE_BYTES, len(block) - end - RECORD_ROOM_BYTES)
            # As in run_pull (_batch.c): much ciphertext may have no plaintext.
            is_much = received_bytes >= len(block)
            self.more = room_bytes <= 0 or is_much or self._failure is not None or self._engine.over
            # Where nothing came before a failure, the next line raises it.
            if drained or is_much or (self.more and end):
                return end
            size_bytes = self._receive(end, room_bytes)
            drained = size_bytes < room_bytes
            received_bytes += size_bytes

    def _decrypt(self, block: memoryview, end: int) -> int:
        try:
            return self._engine.read(block, end)
        except (StreamEnded, StreamFailed) as error:
            self._failure = type(error), str(error)
            if end == 0:
                raise
            return end

    def _receive(self, filled: int, room_bytes: int) -> int:
        """Take ciphertext from the socket, all of which is decrypted at once: the scratch is everybody's.

        An end is told only after what came before it was taken.

        Returns: how much came. Raises: StreamEnded, StreamFailed.
        """
        if self._failure is None:
            try:
                size_bytes = receive(self._sock, self._blocks.scratch[:room_bytes])
            except (StreamEnded, StreamFailed) as error:
                # Not the error itself: its traceback would tie this object to its own blocks.
                self._failure = type(error), str(error)
            else:
                if size_bytes:
                    self._engine.put(self._blocks.scratch[:size_bytes])
                return size_bytes
        if filled:
            return 0
        kind, text = self._failure
        raise kind(text)

    def write(self, data: memoryview | bytes) -> None:
        self._engine.write(data)
        self.flush()

    def own(self) -> None:
        """What waits is ciphertext, in a block of its own."""

    def flush(self) -> None:
        try:
            while self._sender.go_on():
                block = self._block or self._blocks.lend()
                self._block = block
                size_bytes = self._engine.take(block)
                if size_bytes == 0:
                    break
                self._sender.send(block[:size_bytes])
        finally:
            self._release_block()

    def _release_block(self) -> None:
        if self._block is not None and not self._sender.waits:
            self._blocks.give_back(self._block)
            self._block = None

    def say_end(self) -> None:
        self._engine.say_end()

    def drop(self) -> None:
        self._sender.drop()
        self._release_block()


def make_side(
    sock: socket.socket,
    leftover: bytes,
    blocks: Blocks,
    connection: SSL.Connection | None,
    engine: MakeEngine,
) -> Side:
    """The side for a connection, or for plain TCP where there is none."""
    if connection is None:
        return PlainSide(sock, leftover)
    return TlsSide(sock, leftover, blocks, engine(connection))


def receive(sock: socket.socket, view: memoryview) -> int:
    """Returns: bytes received into `view`, 0: none for now. Raises: StreamEnded, StreamFailed."""
    try:
        size_bytes = sock.recv_into(view)
    except BlockingIOError:
        return 0
    except OSError as error:
        raise StreamFailed(describe("receive", error)) from error
    if size_bytes == 0:
        raise StreamEnded("end of file")
    return size_bytes


def put_leftover(block: memoryview, leftover: bytes) -> tuple[int, bytes]:
    """Returns: how many bytes went into the block, and the rest."""
    size_bytes = min(len(block), len(leftover))
    block[:size_bytes] = leftover[:size_bytes]
    return size_bytes, leftover[size_bytes:]


def describe(deed: str, error: OSError) -> str:
    """A socket's error in words."""
    return f"cannot {deed}: {error.strerror or type(error).__name__}"


def is_peer_dead(sock: socket.socket, dead_peer_s: float) -> bool:
    """Sent bytes are unacknowledged, and nothing was for so long; a closed window alone is not death.

    Where nothing is on its way there are keepalives, whose answers count as acknowledgements too.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    (unacked,) = struct.unpack_from("I", info, _UNACKED_OFFSET)
    (last_ack_ms,) = struct.unpack_from("I", info, _LAST_ACK_OFFSET)
    return bool(unacked) and int(last_ack_ms) > dead_peer_s * 1000


def is_reset(sock: socket.socket) -> bool:
    """The kernel has given the connection up: the peer has reset it, or has answered no keepalive."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)[0] == _TCP_CLOSE


def keep_alive(sock: socket.socket, idle_s: float) -> None:
    """Let the kernel ask a silent peer so often that a live one always has acknowledged something of late."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, UNANSWERED)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
                sock.setsockopt(socket.IPPROTO_TCP, option, max(1, int(idle_s)))


def reset_on_close(sock: socket.socket) -> None:
    """Let close() send a reset instead of waiting for what the peer does not take."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
