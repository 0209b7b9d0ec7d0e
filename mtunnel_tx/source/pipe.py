"""From an export's pipe into the websocket's socket: counted, and slowed down to a limit.

`splice` moves pages, not bytes: nothing of a disk passes through Python.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from contextlib import suppress

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReadDescriptor, IWriteDescriptor
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.source.links import Reactor
from mtunnel_tx.waiting import pause

PIECE_BYTES = 1 << 20
LEAST_PIECE_BYTES = 4096
PIECES_PER_S = 10


class RateLimit:
    """A limit in bytes a second; 0: none. What was moved is paid for afterwards, in time."""

    def __init__(self, reactor: Reactor, limit_bytes_s: int) -> None:
        self._reactor = reactor
        self._limit_bytes_s = limit_bytes_s
        self._paid_until = reactor.seconds()

    @property
    def piece_bytes(self) -> int:
        """How much to move at once: a tenth of a second's share at most."""
        if not self._limit_bytes_s:
            return PIECE_BYTES
        return min(PIECE_BYTES, max(LEAST_PIECE_BYTES, self._limit_bytes_s // PIECES_PER_S))

    async def pay(self, moved_bytes: int) -> None:
        """Wait until so much was allowed."""
        if self._limit_bytes_s:
            now = self._reactor.seconds()
            self._paid_until = max(now, self._paid_until) + moved_bytes / self._limit_bytes_s
            await pause(self._reactor, self._paid_until - now)


@implementer(IReadDescriptor, IWriteDescriptor)
class _Readiness:
    """One wait for a file descriptor; its end counts as ready, the next system call then tells what it was."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.ready: Deferred[None] = Deferred()

    def fileno(self) -> int:
        return self._descriptor

    def logPrefix(self) -> str:
        return type(self).__name__

    def doRead(self) -> None:
        if not self.ready.called:
            self.ready.callback(None)

    doWrite = doRead

    def connectionLost(self, _reason: Failure = connectionDone) -> None:
        self.doRead()


class PipeToSocket:
    """Moves all that comes from a pipe into a socket; closes neither.

    Args: source: the pipe's end to read from. sink: not blocking. advance: told how many bytes went.
    """

    def __init__(
        self, reactor: Reactor, source: int, sink: socket.socket, bucket: RateLimit, advance: Callable[[int], None]
    ) -> None:
        self._reactor = reactor
        self._source = source
        self._sink = sink
        self._bucket = bucket
        self._advance = advance

    async def run(self) -> int:
        """Returns: the bytes moved, at the pipe's end of file. Raises: BackendFailed: the socket takes no more."""
        with suppress(OSError):  # a smaller pipe is slower, that is all
            fcntl.fcntl(self._source, fcntl.F_SETPIPE_SZ, PIECE_BYTES)
        total_bytes = 0
        while moved_bytes := await self._move():
            total_bytes += moved_bytes
            self._advance(moved_bytes)
            await self._bucket.pay(moved_bytes)
        return total_bytes

    async def _move(self) -> int:
        """One piece per turn of the reactor, however fast both sides are. Returns: its bytes; 0 at the end."""
        while True:
            await self._readable()
            try:
                size_bytes = self._bucket.piece_bytes
                return os.splice(self._source, self._sink.fileno(), size_bytes, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:  # the pipe has something, so it is the socket that is full
                await self._writable()
            except OSError as error:
                raise BackendFailed(f"the stream to the target broke off: {error.strerror}") from error

    async def _readable(self) -> None:
        waiter = _Readiness(self._source)
        self._reactor.addReader(waiter)
        try:
            await waiter.ready
        finally:
            self._reactor.removeReader(waiter)

    async def _writable(self) -> None:
        waiter = _Readiness(self._sink.fileno())
        self._reactor.addWriter(waiter)
        try:
            await waiter.ready
        finally:
            self._reactor.removeWriter(waiter)
