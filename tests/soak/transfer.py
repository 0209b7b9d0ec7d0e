"""One stream of the relay's soak. One thread works both ends: what it sends at one must come out at the other."""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from random import Random

from tests.patience import patience_s
from tests.soak.payload import PATTERN, Flow, Piece, close_frame, frames, size_of_frames
from tests.stream.openssl import NOT_REQUESTED, REQUESTED, TLS12, TLS13, Lost, Tls

ROOM_BYTES = 256 * 1024
MIB = 1 << 20
_IDLE_MS = 1000
_CLOSE = 0x88


class End(StrEnum):
    """How a stream ends: in order, or one of the three breaks off."""

    ORDER = "in order"
    PEER_RESET = "peer reset"
    PEER_FIN = "peer gone"
    LOCAL = "UNIX side gone"
    OURS = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a stream should have been; `orderly`: None: it may be either."""

    name: str
    end: End
    orderly: bool | None
    bytes_in: int
    bytes_out: int
    frame_bytes: int


class Buffer:
    """Memory to receive into, and its address."""

    def __init__(self) -> None:
        self.bytes = bytearray(ROOM_BYTES)
        self.view = memoryview(self.bytes)
        self.address = ctypes.addressof((ctypes.c_char * ROOM_BYTES).from_buffer(self.bytes))


class Peer:
    """The websocket's end."""

    def __init__(self, tls: Tls, inward: Flow, outward: Flow, chance: Random, frame_bytes: int) -> None:
        self.tls = tls
        self.inward, self.outward = inward, outward
        self.pieces: Iterator[Piece] = frames(inward, chance, frame_bytes)
        self.piece: Piece | None = None
        self.said_close = self.saw_close = self.ended = False
        self.chance = chance
        self.update_rate = chance.choice((0, 0.01, 0.2)) if tls.version == TLS13 else 0
        self._buffer = Buffer()
        self._from = self._to = 0
        self._left = 0

    def send(self) -> bool:
        """Returns: whether anything was sent."""
        if self.piece is None:
            self.piece = next(self.pieces, None)
            if self.piece is None and not self.said_close:
                self.said_close = True
                self.piece = close_frame()
            if self.piece is not None and self.chance.random() < self.update_rate:
                self.tls.update_keys(self.chance.choice((NOT_REQUESTED, REQUESTED)))
        if self.piece is None:
            return False
        address, size, keep = self.piece
        taken = self.tls.write(address, min(size, ROOM_BYTES))
        self.piece = (address + taken, size - taken, keep) if taken < size else None
        return taken > 0

    @property
    def wants_to_send(self) -> bool:
        return not self.said_close or self.piece is not None

    def receive(self) -> bool:
        """Returns: whether anything came."""
        size = self.tls.read(self._buffer.address + self._to, ROOM_BYTES - self._to)
        if size is None:
            return False
        if size == 0:
            self.ended = True
        self._to += size
        while self._take():
            pass
        rest = self._to - self._from
        self._buffer.view[:rest] = bytes(self._buffer.view[self._from : self._to])
        self._from, self._to = 0, rest
        return True

    def _take(self) -> bool:
        """Take payload, or a head; returns: whether there may be more to take."""
        if self._left:
            size = min(self._left, self._to - self._from)
            self.outward.check(self._buffer.address + self._from, size)
            self._left -= size
            self._from += size
            return size > 0
        have, view, at = self._to - self._from, self._buffer.view, self._from
        if have < 2:
            return False
        first, size = view[at], view[at + 1]
        assert size < 128 and not self.saw_close, "masked, or behind a Close frame"
        wide = {126: 2, 127: 8}.get(size, 0)
        if have < 2 + wide or (first & 8 and have < 2 + size):
            return False
        if wide:
            size = int.from_bytes(view[at + 2 : at + 2 + wide], "big")
        assert size <= 128 * 1024, f"frame of {size} bytes"
        self._from += 2 + wide
        if first & 8:
            self._from += size
            self.saw_close = first == _CLOSE
        else:
            self._left = size
        return True


class Local:
    """The UNIX socket's end."""

    def __init__(self, sock: socket.socket, inward: Flow, outward: Flow, write_bytes: int) -> None:
        self.sock = sock
        self.inward, self.outward = inward, outward
        self.write_bytes = write_bytes
        self.shut = self.ended = False
        self._buffer = Buffer()
        sock.setblocking(False)

    def send(self) -> bool:
        if self.outward.sent == self.outward.total:
            if not self.shut:
                self.shut = True
                self.sock.shutdown(socket.SHUT_WR)
            return False
        at, size = self.outward.next_bytes(self.write_bytes)
        try:
            self.outward.sent += self.sock.send(memoryview(PATTERN)[at : at + size])
        except BlockingIOError:
            return False
        return True

    @property
    def wants_to_send(self) -> bool:
        return not self.shut

    def receive(self) -> bool:
        try:
            size = self.sock.recv_into(self._buffer.view)
        except BlockingIOError:
            return False
        self.ended = size == 0
        self.inward.check(self._buffer.address, size)
        return True


class Transfer:
    """One stream from its upgrade to its end. Raises (run): AssertionError."""

    def __init__(self, port: int, folder: Path, name: str, chance: Random, most_bytes: int = 512 * MIB) -> None:
        self.port, self.folder, self.name, self.chance = port, folder, name, chance
        self.most_bytes = most_bytes
        self.frame_bytes = size_of_frames(chance)
        self.inward, self.outward = Flow(chance, self._size(True)), Flow(chance, self._size(False))
        self.end = chance.choices(list(End), (70, 10, 8, 6, 6))[0]
        self.abort_s = chance.random() if self.end is End.OURS else 0.0
        self.break_bytes = chance.randrange(1 + self.inward.total + self.outward.total)
        # We may cancel it in its last moment, when both of its ends are content already.
        self.orderly: bool | None = None if self.end is End.OURS else True

    def _size(self, inward: bool) -> int:
        chance = self.chance
        most = min(self.most_bytes, 10_000 * self.frame_bytes) if inward else self.most_bytes
        if chance.random() < 0.25:
            return chance.randrange(200_000)
        return min(most, int(chance.lognormvariate(15.0, 1.7)))

    def _size_of_writes(self) -> int:
        tiny = self.outward.total < MIB
        return self.chance.choice((777 if tiny else 128 * 1024, 65_536, ROOM_BYTES, 2 * MIB))

    def run(self) -> Report:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.folder / self.name))
            listener.listen(1)
            listener.settimeout(patience_s(120))
            tls = self._connect()
            try:
                sock, _ = listener.accept()
            finally:
                (self.folder / self.name).unlink()
        with sock:
            peer = Peer(tls, self.inward, self.outward, self.chance, self.frame_bytes)
            local = Local(sock, self.inward, self.outward, self._size_of_writes())
            try:
                self._transfer(peer, local)
            finally:
                tls.close()
        return Report(
            name=self.name, end=self.end, orderly=self.orderly, bytes_in=self.inward.moved,
            bytes_out=self.outward.moved, frame_bytes=self.frame_bytes,
        )  # fmt: skip

    def _connect(self) -> Tls:
        sock = socket.create_connection(("127.0.0.1", self.port), patience_s(120))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = Tls(sock, self.chance.choices((TLS13, TLS12), (9, 1))[0])
        request = (
            f"GET /{self.name}?abort_s={self.abort_s} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade"
            "\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        data = ctypes.create_string_buffer(request.encode())
        tls.write(ctypes.addressof(data), len(request))
        head, byte = b"", ctypes.create_string_buffer(1)
        while not head.endswith(b"\r\n\r\n"):
            size = tls.read(ctypes.addressof(byte), 1)
            assert size != 0, head
            if size is None:
                assert select.select([sock], [], [], patience_s(120))[0], "no answer"
            else:
                head += byte.raw
        assert head.startswith(b"HTTP/1.1 101"), head
        return tls

    def _transfer(self, peer: Peer, local: Local) -> None:
        try:
            self._move(peer, local)
        except (Lost, OSError):
            assert self.end is not End.ORDER, f"{self.name}: lost"
            self._drain(peer, local)
        if self.end is End.ORDER:
            assert self.inward.moved == self.inward.total, f"{self.inward.moved} of {self.inward.total} arrived"
            assert self.outward.moved == self.outward.total, f"{self.outward.moved} of {self.outward.total} came back"
            assert peer.saw_close, "no Close frame"

    def _move(self, peer: Peer, local: Local) -> None:
        poll, last_s = select.poll(), time.monotonic()
        breaks = self.end in (End.PEER_RESET, End.PEER_FIN, End.LOCAL)
        while not (peer.ended and local.ended):
            moved = not peer.ended and peer.wants_to_send and peer.send()
            moved |= not local.ended and local.receive()
            moved |= local.wants_to_send and local.send()
            moved |= not peer.ended and peer.receive()
            if breaks and self.inward.moved + self.outward.moved >= self.break_bytes:
                self._break(peer, local)
                return
            if moved:
                last_s = time.monotonic()
                continue
            assert time.monotonic() - last_s < patience_s(120), f"nothing moves: {self._state(peer, local)}"
            watch(poll, peer.tls.sock, not peer.ended, peer.wants_to_send and not peer.ended)
            watch(poll, local.sock, not local.ended, local.wants_to_send)
            poll.poll(_IDLE_MS)

    def _state(self, peer: Peer, local: Local) -> str:
        return f"{vars(self)} {vars(self.inward)} {vars(self.outward)} {vars(peer)} {local.shut} {local.ended}"

    def _break(self, peer: Peer, local: Local) -> None:
        self.orderly = None if peer.said_close or local.shut or self.end is End.LOCAL else False
        if self.end is End.PEER_RESET:
            peer.tls.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if self.end is End.LOCAL:
            local.sock.close()
        else:
            peer.tls.close()
        self._drain(peer, local)

    def _drain(self, peer: Peer, local: Local) -> None:
        """It is broken: what still comes has to be right, and both ends have to see the end soon."""
        if peer.tls.ssl is not None:
            peer.tls.sock.setblocking(False)
            with contextlib.suppress(Lost, OSError):
                _until_the_end(peer, peer.tls.sock)
            # Where it was a Close frame, it is for us to answer, and to be gone is an answer.
            peer.tls.close()
        if local.sock.fileno() >= 0:
            with contextlib.suppress(OSError):
                _until_the_end(local, local.sock)


def _until_the_end(end: Peer | Local, sock: socket.socket) -> None:
    while not (end.ended or (isinstance(end, Peer) and end.saw_close)):
        if not end.receive():
            assert select.select([sock], [], [], patience_s(120))[0], "the end does not come"


def watch(poll: select.poll, sock: socket.socket, reads: bool, writes: bool) -> None:
    mask = (select.POLLIN if reads else 0) | (select.POLLOUT if writes else 0)
    if mask:
        poll.register(sock, mask)
    else:
        with contextlib.suppress(KeyError):
            poll.unregister(sock)
