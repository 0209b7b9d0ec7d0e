"""Lines over a UNIX socket: one line in, one reply out, in order, in bounded memory.

A line waits in the queue until its turn comes; the transport is paused only while the queue is full, so that the end
of the connection is seen at once. A peer that ended its side in order (shutdown) still gets every reply; one that is
gone altogether gets none, and what it left in the queue is dropped.
"""

from __future__ import annotations

import select
import stat
from collections import deque
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IAddress,
    IFileDescriptor,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorUNIX,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.config import Limits
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.ports.clock import Clock
from mtunnel_tx.ports.lines import Answerer, Scribe
from mtunnel_tx.waiting import Occasion, pause
from mtunnel_tx.wire.lines import encode_failure

log = Logger()

SOCKET_MODE = 0o600
FLUSH_S = 5.0
LINES_IN_A_ROW = 64


class _Stage(Enum):
    OPEN = auto()
    HALF_CLOSED = auto()
    CLOSING = auto()
    CLOSED = auto()
    LOST = auto()


@implementer(IPushProducer)
class _ReplyFlow:
    """Waits while the transport has more replies than it wants to hold."""

    def __init__(self) -> None:
        self._drained = Occasion()
        self._paused = False

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._drained.happen()

    def stopProducing(self) -> None:
        self.resumeProducing()

    async def ready(self) -> None:
        while self._paused:
            await self._drained.wait()


@implementer(IHalfCloseableProtocol)
class LineConnection(LineReceiver):
    """Feeds an Answerer line by line.

    Args: answerer: takes one line at a time. ended: called when the connection is over and no line is in work.
    scribe: hears of everything first.
    """

    delimiter = b"\n"
    transport: Any

    def __init__(
        self, clock: Clock, answerer: Answerer, limits: Limits, ended: Callable[[LineConnection], None],
        scribe: Scribe | None = None,
    ) -> None:  # fmt: skip
        self.MAX_LENGTH = limits.line_bytes
        self.lost: Deferred[None] = Deferred()
        self._clock = clock
        self._answerer = answerer
        self._limits = limits
        self._ended = ended
        self._scribe = scribe
        self._stage = _Stage.OPEN
        self._queue: deque[bytes | None] = deque()
        self._queue_bytes = 0
        self._working = False
        self._overrun: bytes | None = None
        self._flow = _ReplyFlow()
        self._abort_timer: Any = None
        self._told = False
        self._in_a_row = 0

    # -- the connection

    def connectionMade(self) -> None:
        self.transport.registerProducer(self._flow, True)
        if self._scribe is not None:
            self._scribe.accepted(self.transport.getHandle())

    def readConnectionLost(self) -> None:
        """The peer has ended its side; where it has ended both, nobody waits for the replies."""
        if self._stage is not _Stage.OPEN:
            return
        rest = self.clearLineBuffer() if self.line_mode else b""
        if rest:
            self.lineReceived(rest)
        self._stage = _Stage.HALF_CLOSED
        self._go_on()

    def writeConnectionLost(self) -> None:
        """Our side alone is never ended; only the interface asks for this."""

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._stage = _Stage.LOST
        self._drop_queue()
        self._flow.resumeProducing()
        self._stop_timer()
        self._go_on()
        self.lost.callback(None)

    def close(self) -> Deferred[None]:
        """Take no more lines, send what was replied, end. Returns: fires when the connection is gone."""
        self._wind_down(FLUSH_S)
        return self.lost

    # -- lines in

    def dataReceived(self, data: bytes) -> None:
        if self._scribe is not None:
            self._scribe.heard(data)
        self._look_at(data)

    def go_on(self, unsaid: bytes, pending: bytes) -> None:
        """Begin where another process has ended. Args: unsaid: of its replies. pending: what it has noted of lines."""
        self.transport.write(unsaid)
        self._look_at(pending)

    def _look_at(self, data: bytes) -> None:
        LineReceiver.dataReceived(self, data)
        while self._overrun is not None:
            overrun, self._overrun = self._overrun, None
            self._skip_line(overrun)

    def lineReceived(self, line: bytes) -> None:
        self._take(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        if self._scribe is not None:
            self._scribe.spoil()
        self._take(None)
        self._overrun = line

    def rawDataReceived(self, data: bytes) -> None:
        """Between an overlong line's limit and its end."""
        self._skip_line(data)

    def _skip_line(self, data: bytes) -> None:
        _, found, rest = data.partition(self.delimiter)
        if found:
            self.setLineMode()
            LineReceiver.dataReceived(self, rest)
        else:
            self.setRawMode()

    def _take(self, line: bytes | None) -> None:
        if self._stage is not _Stage.OPEN:
            return
        self._queue.append(line)
        self._queue_bytes += len(line or b"")
        if self._full():
            self.pauseProducing()
        if not self._working:
            self._working = True
            _run(self._work(), self._broke)

    def _full(self) -> bool:
        return len(self._queue) >= self._limits.queued_lines or self._queue_bytes >= self._limits.queued_bytes

    def _next_line(self) -> bytes | None:
        line = self._queue.popleft()
        self._queue_bytes -= len(line or b"")
        if self.paused and not self._full():
            self._read_on()
        return line

    def _read_on(self) -> None:
        # A descriptor whose reading side has ended must not be put back into the reactor: it would end again.
        if self._stage is _Stage.OPEN:
            self.resumeProducing()

    def _drop_queue(self) -> None:
        self._queue.clear()
        self._queue_bytes = 0

    # -- replies out

    async def _work(self) -> None:
        while self._queue:
            if self._stage is _Stage.HALF_CLOSED and self._peer_is_gone():
                self._drop_queue()
                break
            self._send(await self._answer(self._next_line()))
            await self._flow.ready()
            await self._give_way()
        self._working = False
        self._go_on()

    async def _give_way(self) -> None:
        """Let other tunnels have their turn."""
        self._in_a_row += 1
        if self._in_a_row >= LINES_IN_A_ROW:
            self._in_a_row = 0
            await pause(self._clock, 0)

    async def _answer(self, line: bytes | None) -> bytes:
        if line is None:
            return encode_failure(f"failed to parse command - line longer than {self.MAX_LENGTH} bytes")
        return await self._answerer.answer(line)

    def _send(self, reply: bytes) -> None:
        if self._stage is not _Stage.LOST:
            self.sendLine(reply)

    def _broke(self, failure: Failure) -> None:
        log.failure("answering a line failed", failure=failure)
        self._working = False
        self._wind_down(FLUSH_S)

    def _peer_is_gone(self) -> bool:
        """A UNIX socket knows no reset: a hang-up means that the peer closed both directions."""
        if not IFileDescriptor.providedBy(self.transport):
            return False
        poll = select.poll()
        poll.register(self.transport.fileno(), 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    # -- the end

    def _go_on(self) -> None:
        """After anything that may have been the last thing to wait for."""
        if self._working:
            return
        if self._stage is _Stage.HALF_CLOSED:
            self._wind_down(self._limits.half_close_s)
        elif self._stage is _Stage.CLOSING:
            self._stage = _Stage.CLOSED
            self.transport.unregisterProducer()
            self.transport.loseConnection()
        elif self._stage is _Stage.LOST and not self._told:
            self._told = True
            self._ended(self)

    def _wind_down(self, patience_s: float) -> None:
        if self._stage is not _Stage.LOST:
            self._stage = _Stage.CLOSED if self._stage is _Stage.CLOSED else _Stage.CLOSING
            self._drop_queue()
            self._stop_timer()
            self._abort_timer = self._clock.callLater(patience_s, self._abort)
        self._go_on()

    def _stop_timer(self) -> None:
        if self._abort_timer is not None and self._abort_timer.active():
            self._abort_timer.cancel()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()


def _run(work: Coroutine[Any, Any, None], broke: Callable[[Failure], None]) -> None:
    Deferred.fromCoroutine(work).addErrback(broke)


class LineFactory(Factory):
    """Builds connections, remembers the open ones.

    Args: answerer: called for each connection; its `connected` refuses the connection by False. scribe: of the only
    connection.
    """

    noisy = False

    def __init__(
        self, clock: Clock, answerer: Callable[[], Answerer], limits: Limits, scribe: Scribe | None = None
    ) -> None:
        self.connections: set[LineConnection] = set()
        self._clock = clock
        self._answerer = answerer
        self._limits = limits
        self._scribe = scribe

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        answerer = self._answerer()
        return self.build(answerer) if answerer.connected() else None

    def build(self, answerer: Answerer) -> LineConnection:
        """A connection that is counted in."""

        def ended(connection: LineConnection) -> None:
            self.connections.discard(connection)
            answerer.disconnected()

        connection = LineConnection(self._clock, answerer, self._limits, ended, self._scribe)
        self.connections.add(connection)
        return connection


class LineListening:
    """A listening UNIX socket (ports.Listening); `stop` ends the listening and removes the file."""

    def __init__(self, path: Path, stop: Callable[[], Deferred[None] | None], factory: LineFactory) -> None:
        self._path = path
        self._stop = stop
        self._factory = factory
        self._closed: Deferred[Any] | None = None

    async def close(self) -> None:
        """Stop listening, send what was replied, end connections, remove the socket file; safe to call twice."""
        if self._closed is None:
            self._closed = self._close()
        await _watch(self._closed)

    def _close(self) -> Deferred[Any]:
        # Twisted's port removes its file itself, and never ends where that fails.
        if not self._path.exists():
            self._path.touch(SOCKET_MODE)
        stopped = self._stop()
        gone = [connection.close() for connection in list(self._factory.connections)]
        return DeferredList([stopped, *gone] if stopped is not None else gone)


def _watch(event: Deferred[Any]) -> Deferred[None]:
    """Returns: fires when `event` does, for any number of callers."""
    watcher: Deferred[None] = Deferred()

    def tell(result: object) -> object:
        watcher.callback(None)
        return result

    event.addBoth(tell)
    return watcher


async def listen_lines(
    reactor: IReactorUNIX, path: Path, answerer: Callable[[], Answerer], limits: Limits,
    scribe: Scribe | None = None,
) -> LineListening:  # fmt: skip
    """Listen on a UNIX socket with mode 0600; a stale file at `path` is replaced. Raises: BackendFailed."""
    factory = LineFactory(reactor, answerer, limits, scribe)
    try:
        _remove_stale(path)
        port = await UNIXServerEndpoint(reactor, str(path), mode=SOCKET_MODE).listen(factory)
    except (OSError, CannotListenError) as error:
        raise BackendFailed(f"can't listen on '{path}' - {error}") from error
    return LineListening(path, port.stopListening, factory)


def _remove_stale(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not stat.S_ISSOCK(path.stat().st_mode)):
        raise FileExistsError("something that is no socket is there")
    path.unlink(missing_ok=True)
