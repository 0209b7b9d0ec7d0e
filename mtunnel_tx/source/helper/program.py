"""The websocket helper of a Proxmox source: its commands to the target, and UNIX sockets that lead there.

Lines from the source that are no control lines go to the target as they are, and each has one reply line. `connect` is
answered only when it fails, `forward` always, in its turn. The helper lives until its input ends.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BadRequest, TunnelError, WrongState
from mtunnel_tx.source.channel import LINE_LIMIT_BYTES, read_reply
from mtunnel_tx.source.helper.channel import LOST, HelperChannel
from mtunnel_tx.source.helper.orders import (
    ConnectOrder,
    ForwardOrder,
    Websocket,
    read_control,
    ticket_request,
    with_ticket,
)
from mtunnel_tx.source.helper.queries import ImportQueries, is_import_query
from mtunnel_tx.source.links import Reactor
from mtunnel_tx.source.localsocket import LocalSocket
from mtunnel_tx.source.tunnel import read_text
from mtunnel_tx.stream.flow import Flow
from mtunnel_tx.waiting import within
from mtunnel_tx.wire.lines import encode_failure, encode_ok

log = Logger()

END_S = 10.0
"""What a source waits before it sends SIGTERM is 30 s: commands and streams have this much each to end in order."""
FLUSH_S = 5.0
MOST_FORWARDS = 64
MOST_STREAMS = 64

OpenWebsocket = Callable[[Websocket, socket.socket], Awaitable[Flow]]
"""Opens a websocket and joins it with a socket, which it takes over whatever happens. Raises: TunnelError."""


@implementer(IHalfCloseableProtocol)
class Helper(LineReceiver):
    """Speaks with the source over standard input and output. `done` fires when the source has gone."""

    delimiter = b"\n"
    MAX_LENGTH = LINE_LIMIT_BYTES
    transport: Any

    def __init__(self, reactor: Reactor, open_websocket: OpenWebsocket) -> None:
        self.done: Deferred[None] = Deferred()
        self._gone: Deferred[None] = Deferred()
        self._reactor = reactor
        self._open = open_websocket
        self._streams = Streams()
        self._forwards: dict[Path, LocalSocket] = {}
        self._channel: HelperChannel | None = None
        self._link: Flow | None = None
        self._queries: ImportQueries | None = None
        self._is_parked = False
        self._holds: set[str] = set()
        self._refusal = "not connected"
        self._told_ahead = False

    # -- the source

    def lineReceived(self, line: bytes) -> None:
        try:
            order = read_control(line)
        except BadRequest as error:
            self._answer(encode_failure(error.text))
            return
        match order:
            case None:
                self._pass_on(line)
            case ConnectOrder():
                self._start(self._connect(order))
            case ForwardOrder():
                self._listen(order)

    def lineLengthExceeded(self, line: bytes) -> None:
        self._answer(encode_failure(f"failed to parse command - line longer than {self.MAX_LENGTH} bytes"))
        self._skip(line)

    def rawDataReceived(self, data: bytes) -> None:
        """Between an overlong line's limit and its end."""
        self._skip(data)

    def _skip(self, data: bytes) -> None:
        _, found, rest = data.partition(self.delimiter)
        if found:
            self.setLineMode(rest)
        else:
            self.setRawMode()

    def readConnectionLost(self) -> None:
        """The source has said everything; a last line may lack its end."""
        rest = self.clearLineBuffer() if self.line_mode else b""
        if rest:
            self.lineReceived(rest)
        self._finish()

    def writeConnectionLost(self) -> None:
        """Nobody reads our replies any more."""
        self._finish()

    def connectionLost(self, _reason: Failure = connectionDone) -> None:
        self._finish()
        self._gone.callback(None)

    def _finish(self) -> None:
        if not self.done.called:
            self.done.callback(None)

    def pauseProducing(self) -> None:
        """The command connection takes no more for now."""
        self._hold("full", held=True)

    def resumeProducing(self) -> None:
        """It does again."""
        self._hold("full", held=False)

    def stopProducing(self) -> None:
        """Its end is told in another way."""

    def _hold(self, reason: str, *, held: bool) -> None:
        """Read the source's lines only when nothing speaks against it."""
        before = bool(self._holds)
        (self._holds.add if held else self._holds.discard)(reason)
        if bool(self._holds) and not before:
            LineReceiver.pauseProducing(self)
        elif before and not self._holds:
            LineReceiver.resumeProducing(self)

    def _reply(self, line: bytes) -> None:
        self.sendLine(line)

    def _answer(self, line: bytes) -> None:
        """A reply of our own, after those to what was asked before."""
        if self._channel is None:
            self._reply(line)
        else:
            self._channel.follow(line).addCallback(self._reply)

    # -- commands

    def _pass_on(self, line: bytes) -> None:
        if self._channel is None:
            self._refuse()
            return
        ask = self._queries.ask if self._queries and is_import_query(line) else self._channel.ask
        ask(line).addErrback(_as_reply).addCallback(self._reply).addErrback(_report)

    def _refuse(self) -> None:
        """There is no connection. A failed `connect` was the answer to the command after it, which sources read."""
        if self._told_ahead:
            self._told_ahead = False
        else:
            self._reply(encode_failure(self._refusal))

    async def _connect(self, order: ConnectOrder) -> None:
        if self._channel is not None:
            self._answer(encode_failure("connected already"))
            return
        self._hold("connecting", held=True)
        try:
            await self._open_channel(order.websocket)
        except TunnelError as error:
            log.error("cannot connect: {reason}", reason=clean(error.text))
            self._refusal = f"failed to connect - {error.text}"
            self._reply(encode_failure(self._refusal))
            self._told_ahead = True
        finally:
            self._hold("connecting", held=False)

    async def _open_channel(self, websocket: Websocket) -> None:
        ours, theirs = socket.socketpair()
        with ours:
            link = self._link = await self._open(websocket, theirs)
            link.watch(lambda _reason, _park_s: self._park(parked=True), lambda: self._park(parked=False))
            ours.setblocking(False)
            channel = HelperChannel(lambda room: self._hold("owed", held=not room))
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, Factory.forProtocol(lambda: channel))
        # Neither side gets more than the other one takes.
        channel.transport.registerProducer(self, True)
        self.transport.registerProducer(channel.transport, True)
        self._channel = channel
        self._queries = ImportQueries(self._reactor, channel.ask, lambda: self._is_parked)
        self._start(self._watch(link))

    def _park(self, *, parked: bool) -> None:
        """The command connection is lost, or is there again; what the operator sees of it."""
        self._is_parked = parked
        log.warn("{said}", said="connection lost, waiting for the network" if parked else "connected again")

    async def _watch(self, link: Flow) -> None:
        """Say so where the command connection breaks; after `quit` the target ends it in order."""
        if not await link.ended() and not self.done.called:
            log.error("{reason}: it broke off", reason=LOST)

    # -- streams

    def _listen(self, order: ForwardOrder) -> None:
        try:
            self._add_forward(order)
        except TunnelError as error:
            log.error("cannot forward: {reason}", reason=clean(error.text))
            self._answer(encode_failure(error.text))
        else:
            self._answer(encode_ok())

    def _add_forward(self, order: ForwardOrder) -> None:
        former = self._forwards.pop(order.local, None)
        if former is not None:
            former.close()
        if len(self._forwards) >= MOST_FORWARDS:
            raise WrongState(f"more than {MOST_FORWARDS} forwarded sockets")

        def accepted(sock: socket.socket) -> None:
            self._start(self._join(order, sock))

        listener = self._forwards[order.local] = LocalSocket(self._reactor, order.local, accepted)
        listener.accept(wanted=self._streams.has_room)

    async def _join(self, order: ForwardOrder, sock: socket.socket) -> None:
        """One local connection, from its ticket to its end."""
        self._streams.begin(sock)
        self._control_accepting()
        try:
            link = await self._open_stream(order, sock)
            self._streams.links.add(link)
            if not await link.ended():
                log.error("the stream of {local} broke off", local=str(order.local))
            self._streams.links.discard(link)
        except TunnelError as error:
            log.error("no stream for {local}: {reason}", local=str(order.local), reason=clean(error.text))
        finally:
            self._streams.end(sock)
            self._control_accepting()

    async def _open_stream(self, order: ForwardOrder, sock: socket.socket) -> Flow:
        try:
            if self._channel is None:
                raise WrongState(self._refusal)
            reply = read_reply("ticket", await self._channel.ask(ticket_request(order)))
            path_query = with_ticket(order.websocket.path_query, read_text(reply, "ticket"))
        except BaseException:
            sock.close()
            raise
        return await self._open(replace(order.websocket, path_query=path_query), sock)

    def _control_accepting(self) -> None:
        for listener in self._forwards.values():
            listener.accept(wanted=self._streams.has_room)

    # -- the end

    async def end(self) -> None:
        """Say Close on everything, commands first: half a disk must not pass for a whole one while they can vouch."""
        for listener in self._forwards.values():
            listener.close()
        self._forwards.clear()
        if self._link is not None and self._channel is not None:
            self._channel.end()
            await self._ended(self._link)
        self._streams.stop()
        for link in list(self._streams.links):
            await self._ended(link)

    async def flush(self) -> None:
        """Let the source have its last replies, if it takes them."""
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        with suppress(TunnelError):
            await within(self._reactor, FLUSH_S, self._gone, "the source does not read its replies")

    def abort(self) -> None:
        """End everything now."""
        for listener in self._forwards.values():
            listener.close()
        for link in [*self._streams.links, *([self._link] if self._link else [])]:
            link.abort()

    async def _ended(self, link: Flow) -> None:
        """Wait for a stream's end; where that takes too long, make one."""
        ended = Deferred.fromCoroutine(link.ended())
        try:
            await within(self._reactor, END_S, ended, "the target does not end a stream")
        except TunnelError as error:
            log.error("{reason}", reason=error.text)
            link.abort()

    def _start(self, work: Any) -> None:
        Deferred.fromCoroutine(work).addErrback(_report)


class Streams:
    """All local connections: those that wait for their websocket, and those that have it."""

    def __init__(self) -> None:
        self.links: set[Flow] = set()
        self._socks: set[socket.socket] = set()

    @property
    def has_room(self) -> bool:
        return len(self._socks) < MOST_STREAMS

    def begin(self, sock: socket.socket) -> None:
        self._socks.add(sock)

    def end(self, sock: socket.socket) -> None:
        self._socks.discard(sock)

    def stop(self) -> None:
        """Take nothing more from the local sides: what was written still goes out, then Close."""
        for link in self.links:
            # One that has ended by itself needs no telling.
            with suppress(OSError):
                link.local.shutdown(socket.SHUT_RD)


def _as_reply(failure: Failure) -> bytes:
    """What the source hears where no reply can come any more."""
    error = failure.value
    if not isinstance(error, TunnelError):
        failure.raiseException()
    return encode_failure(error.text)


def _report(failure: Failure) -> None:
    if not failure.check(CancelledError):
        log.failure("unexpected failure in the helper", failure=failure)
