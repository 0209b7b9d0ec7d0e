"""The command connection, seen from the source: one JSON line out, one reply line in, in order."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.ports.clock import Clock
from mtunnel_tx.source.links import Json
from mtunnel_tx.waiting import within

LINE_LIMIT_BYTES = 4 << 20
OWED_LIMIT = 64
"""Replies that may be outstanding: what timed out and was never answered counts too."""


class CommandRefused(BackendFailed):
    """The target refused a command; the text has its reason."""


class TargetGone(BackendFailed):
    """The command connection has ended."""


class CommandChannel(LineReceiver):
    """Commands to the target, one at a time; a reply that comes too late is dropped, the next one still fits.

    Args: clock: stands still while there is no connection. notice_s: how long that may be unnoticed: so much longer a
    reply is waited for.
    """

    delimiter = b"\n"
    MAX_LENGTH = LINE_LIMIT_BYTES

    def __init__(self, clock: Clock, notice_s: Callable[[], float] = lambda: 0.0) -> None:
        self._clock = clock
        self._notice_s = notice_s
        self._owed: deque[Deferred[bytes]] = deque()
        self._lost: TunnelError | None = None

    async def call(self, name: str, wait_s: float, fields: Mapping[str, Json] | None = None) -> dict[str, Json]:
        """Send a command and wait for its reply.

        Args: wait_s: protocol.md section 4, what a source waits at most while it has a connection.
        Returns: the reply's fields. Raises: CommandRefused: with the target's reason; TimedOut; BackendFailed.
        """
        request = json.dumps({"cmd": name, **(fields or {})}, separators=(",", ":"))
        reply = self._send(request.encode("ascii"))
        wait_s += self._notice_s()
        line = await within(self._clock, wait_s, reply, f"no reply to '{name}' within {wait_s:g} s")
        return read_reply(name, line)

    def close(self) -> None:
        """No more commands: replies that are still owed are of no interest."""
        transport: Any = self.transport
        if transport is not None:
            transport.loseConnection()

    def give_up(self) -> None:
        """Wait for no reply any more: whoever does is told that the connection has ended."""
        self._fail(TargetGone("the command connection to the target was broken off here"))

    def _send(self, line: bytes) -> Deferred[bytes]:
        if self._lost is not None:
            raise self._lost
        if len(self._owed) >= OWED_LIMIT:
            raise BackendFailed("the target leaves too many commands unanswered")
        reply: Deferred[bytes] = Deferred()
        self._owed.append(reply)
        self.sendLine(line)
        return reply

    def lineReceived(self, line: bytes) -> None:
        """A reply; one that nobody waits for any more is dropped by its cancelled Deferred."""
        if self._owed:
            self._owed.popleft().callback(line)
        else:
            self._fail(BackendFailed("the target sent a line that nobody asked for"))

    def lineLengthExceeded(self, _line: bytes) -> None:
        self._fail(BackendFailed(f"the target sent a line of more than {LINE_LIMIT_BYTES} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        text = "" if reason.check(ConnectionDone) else f": {clean(reason.getErrorMessage())}"
        self._fail(TargetGone(f"the command connection to the target has ended{text}"))

    def _fail(self, error: TunnelError) -> None:
        self._lost = self._lost or error
        owed, self._owed = self._owed, deque()
        for reply in owed:
            reply.errback(self._lost)
        self.close()


def read_reply(name: str, line: bytes) -> dict[str, Json]:
    """Raises: CommandRefused: not a success; BackendFailed: not a reply at all."""
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BackendFailed(f"the reply to '{name}' is no JSON") from error
    if not isinstance(reply, dict):
        raise BackendFailed(f"the reply to '{name}' is no JSON object")
    if not _is_true(reply.get("success")):
        raise CommandRefused(f"target: {one_line(reply.get('msg')) or f'{name} failed without a reason'}")
    return reply


def _is_true(value: object) -> bool:
    return value not in (None, False, 0, "", "0")


def one_line(text: object) -> str:
    """A peer's text on one line, clean: a schema error has several."""
    lines = (clean(line.strip()) for line in str(text if text is not None else "").splitlines())
    return "; ".join(line for line in lines if line)
