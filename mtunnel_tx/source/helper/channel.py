"""The helper's command connection: lines of two askers, the source and ourselves, and replies in the same order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.source.channel import LINE_LIMIT_BYTES, OWED_LIMIT

log = Logger()

LOST = "the command connection to the target has ended"


class OwedReply:
    """A reply to come, or one that is there and waits for those before it."""

    def __init__(self, line: bytes | None = None) -> None:
        self.reply: Deferred[bytes] = Deferred()
        self.line = line


@implementer(IHalfCloseableProtocol)
class HelperChannel(LineReceiver):
    """Asks and gives each its reply. Args: room: told whether more may be asked."""

    delimiter = b"\n"
    MAX_LENGTH = LINE_LIMIT_BYTES
    transport: Any

    def __init__(self, room: Callable[[bool], None]) -> None:
        self._room = room
        self._owed: deque[OwedReply] = deque()
        self._lost = False

    def ask(self, line: bytes) -> Deferred[bytes]:
        """Send a line. Returns: fires with its reply; fails with BackendFailed where none can come any more."""
        owed = OwedReply()
        if self._lost:
            owed.reply.errback(BackendFailed(LOST))
            return owed.reply
        self._append(owed)
        self.sendLine(line)
        return owed.reply

    def follow(self, line: bytes) -> Deferred[bytes]:
        """Returns: fires with `line` when everything asked before has its reply."""
        owed = OwedReply(line)
        self._append(owed)
        self._tell_settled()
        return owed.reply

    def end(self) -> None:
        """No more lines; the replies that are owed may still come."""
        if not self._lost:
            self.transport.loseWriteConnection()

    def _append(self, owed: OwedReply) -> None:
        self._owed.append(owed)
        self._room(len(self._owed) < OWED_LIMIT)

    def lineReceived(self, line: bytes) -> None:
        """A reply to the oldest question."""
        if not self._owed:
            self._break("the target sent a line that nobody asked for")
            return
        self._owed.popleft().reply.callback(line)
        self._tell_settled()
        self._room(len(self._owed) < OWED_LIMIT)

    def _tell_settled(self) -> None:
        while self._owed and (line := self._owed[0].line) is not None:
            self._owed.popleft().reply.callback(line)

    def lineLengthExceeded(self, _line: bytes) -> None:
        self._break(f"the target sent a line of more than {LINE_LIMIT_BYTES} bytes")

    def _break(self, reason: str) -> None:
        log.error("{reason}", reason=reason)
        self.transport.abortConnection()

    def readConnectionLost(self) -> None:
        """The target has ended its side: there will be no more replies."""
        self.transport.loseConnection()
        self._fail()

    def writeConnectionLost(self) -> None:
        """Our own side is ended by ourselves only."""

    def connectionLost(self, _reason: Failure = connectionDone) -> None:
        self._fail()

    def _fail(self) -> None:
        """Everything that is owed ends here, in order."""
        self._lost = True
        owed, self._owed = self._owed, deque()
        for each in owed:
            if each.line is None:
                each.reply.errback(BackendFailed(LOST))
            else:
                each.reply.callback(each.line)
        self._room(True)
