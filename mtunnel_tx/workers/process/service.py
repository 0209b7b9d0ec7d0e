"""The service of a worker process: takes certificate and connections from the daemon, runs flows, reports on them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.net.kinds import Reactor, Result
from mtunnel_tx.stream.flow import Flow, FlowTerms, Relay, TakenAway
from mtunnel_tx.stream.parkedvalue import ParkedValue
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.tls.context import TlsContext
from mtunnel_tx.tls.protocol import TlsProtocol
from mtunnel_tx.unread import count_unread
from mtunnel_tx.workers.channel import Message, MessageChannel
from mtunnel_tx.workers.parking import ENDS, KEPT, PARKED, RUNNING, read_value, write_value
from mtunnel_tx.workers.process.connection import PlaintextForwarder, ReceivedTransport
from mtunnel_tx.workers.terms import read_terms

log = Logger()

COUNT_S = 1.0


class PassingRelay(Relay, Protocol):
    """A relay whose parked flows can go on in another one."""

    def detach(self, flow: Flow, reason: str) -> None:
        """Take the carrier of a flow away."""

    def take_away(self, flow: Flow, told: TakenAway) -> None:
        """Stop running a parked flow."""


class GrantedFlow:
    """A flow that was granted, and what the daemon was told of it.

    Args: local: the UNIX socket. messages: the socket of this flow's own channel. peer: fires when it has left HTTP.
    gone: called when everything was told.
    """

    def __init__(
        self, reactor: Reactor, relay: PassingRelay, local: socket.socket, messages: socket.socket,
        peer: Deferred[PeerConnection], gone: Callable[[GrantedFlow], None],
    ) -> None:  # fmt: skip
        self._relay = relay
        self._local = local
        self._flow: Flow | None = None
        self._aborted = False
        self._superseded: str | None = None
        self._told = (0, 0)
        self._ends: list[tuple[str, str | None]] = []
        self._terms: Deferred[FlowTerms] = Deferred()
        self._value: ParkedValue | None = None
        self._returned: tuple[Message, BinaryIO] | None = None
        self._gone = gone
        self._channel = MessageChannel(reactor, messages, self._hear, self._lose)
        Deferred.fromCoroutine(self._run(peer)).addErrback(self._fail)

    async def _run(self, peer: Deferred[PeerConnection]) -> None:
        terms = await self._terms
        taken = await peer
        if self._aborted:
            taken.close()
            return
        flow = self._flow = Flow(self._relay, self._local, terms)
        flow.value, self._value = self._value, None
        flow.done.addCallback(self._tell, "peer")
        flow.released.addCallback(self._tell, "closed")
        for end in (flow.done, flow.released):
            end.addCallback(self._finish, flow)
        if terms.window_bytes is not None:
            self._say(flow, over=RUNNING)
        flow.attach(taken)
        if self._superseded is not None:
            self._relay.detach(flow, self._superseded)

    async def _local_over(self, _orderly: bool) -> None:
        assert self._flow is not None
        self._say(self._flow, over="local", reason=self._flow.reason)

    def _hear(self, message: Message, files: list[Any]) -> None:
        if "ask" in message:
            self._say_returned()
            self._say_positions(message["ask"])
        elif KEPT in message:
            self._drop()
        elif "abort" in message:
            self._abort(message["abort"])
        elif "park" in message:
            self._park(message["park"])
        else:
            if files:
                self._value = read_value(message["value"], files[0])
            self._terms.callback(read_terms(message, self._local_over, self._parked))

    def _abort(self, reason: str) -> None:
        self._aborted = True
        if self._flow is not None:
            self._flow.abort(reason)
        else:
            self._drop()

    def _park(self, reason: str) -> None:
        """Another connection, in whatever worker, takes the place of ours."""
        self._superseded = reason
        if self._flow is not None:
            self._relay.detach(self._flow, reason)

    def _parked(self, reason: str) -> None:
        """Our connection is lost: whoever has the next one goes on."""
        assert self._flow is not None, "it runs"
        self._relay.take_away(self._flow, lambda value: self._pass_on(reason, value))

    def _pass_on(self, reason: str, value: ParkedValue | None) -> None:
        if value is None:
            return  # it has ended meanwhile, which is told in the usual way
        self._flow = None
        counts = {"in": value.taken, "out": value.sent, "at": time.monotonic()}
        try:
            numbers, file = write_value(value)
            self._returned = {**counts, "over": PARKED, "reason": reason, "value": numbers}, file
            self._say_returned()
        except OSError as error:
            log.error("a flow cannot be parked, and ends: {reason}", reason=str(error))
            self._drop()
        self._local.close()

    def _say_returned(self) -> None:
        """Until the daemon says that it keeps the value, another one may ask for it."""
        if self._returned is not None:
            message, file = self._returned
            self._channel.send(message, [file])

    def _say_positions(self, number: object) -> None:
        """For a daemon that has found this flow. What waits is counted before what was read: nothing is missed."""
        queued = 0 if self._local.fileno() < 0 else count_unread(self._local)
        flow = self._flow
        bytes_in, bytes_out, taken = (flow.bytes_in, flow.bytes_out, flow.bytes_taken) if flow else (0, 0, 0)
        counts = {"in": bytes_in, "out": bytes_out, "taken": taken, "queued": queued}
        state = {"terms": self._terms.called, "runs": flow is not None, "ends": self._ends}
        self._channel.send({**counts, "asked": number, **state})

    def _lose(self) -> None:
        """Nobody hears of the flow any more, and nobody could end it: it ends now, unless it is over."""
        flow, self._aborted = self._flow, True
        if self._returned is not None:
            self._returned[1].close()
        if flow is None:
            self._local.close()
            if not self._terms.called:
                self._terms.callback(FlowTerms())
        elif not (flow.done.called and flow.released.called):
            flow.abort()
        self._gone(self)

    def count(self) -> None:
        """Tell how many bytes there were, if that has changed."""
        flow = self._flow
        if flow is not None and (flow.bytes_in, flow.bytes_out) != self._told:
            self._say(flow)

    def _tell(self, result: Result, event: str) -> Result:
        assert self._flow is not None, "a flow that was passed on tells nothing"
        self._say(self._flow, over=event)
        return result

    def _say(self, flow: Flow, **more: Any) -> None:
        self._told = flow.bytes_in, flow.bytes_out
        if more.get("over") in ENDS:
            self._ends.append((more["over"], more.get("reason")))
        self._channel.send({"in": flow.bytes_in, "out": flow.bytes_out, **more})

    def _finish(self, result: Result, flow: Flow) -> Result:
        if flow.done.called and flow.released.called:
            self._channel.finish()
        return result

    def _fail(self, failure: Failure) -> None:
        if self._flow is None and not self._aborted and failure.check(ConnectionLost) is not None:
            self._pass_on("the connection was lost before it was used", self._value)
        if self._returned is None:
            self._drop()
        if failure.check(ConnectionLost) is None:
            log.failure("unexpected failure at the start of a flow", failure)

    def _drop(self) -> None:
        """It never began, or another one has it; the daemon sees the channel end."""
        self._local.close()
        self._channel.close()


class WorkerService:
    """Args: channel: a socket whose other end the daemon has. finished: called when the daemon has ended."""

    def __init__(
        self, reactor: Reactor, channel: socket.socket, relay: PassingRelay, finished: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._relay = relay
        self._context: TlsContext | None = None
        self._handshake_s = 0.0
        self._flows: set[GrantedFlow] = set()
        self._is_retired = False
        self._channel = MessageChannel(reactor, channel, self._hear, finished)
        self._counting = LoopingCall(self._count)
        self._counting.clock = reactor
        self._counting.start(COUNT_S, now=False)

    def _hear(self, message: Message, sockets: list[socket.socket]) -> None:
        if "connection" in message:
            self._take_connection(sockets)
            return
        if "retire" in message:
            self._is_retired = True
            return
        self._handshake_s = message["handshake_s"]
        try:
            self._context = load(message["certificate"].encode("latin-1"), message["key"].encode("latin-1"))
        except TunnelError as error:
            log.error("certificate and key cannot be used: {reason}", reason=error.text)
            if self._context is None:
                self._channel.close()
        else:
            self._channel.send({"ready": True})

    def _take_connection(self, sockets: list[socket.socket]) -> None:
        """Where no descriptor was left for it, that is the end of this connection alone."""
        if len(sockets) == 2 and self._context is not None:
            self._take(self._context, *sockets)
            return
        log.error("a connection cannot be taken: {count} of 2 sockets came", count=len(sockets))
        for sock in sockets:
            sock.close()

    def _take(self, context: TlsContext, sock: socket.socket, plaintext: socket.socket) -> None:
        connection = SSL.Connection(context.context, None)
        connection.set_accept_state()
        forwarder = PlaintextForwarder(self._reactor, plaintext, self._granted)
        tls = TlsProtocol(connection, forwarder, self._reactor, self._handshake_s)
        transport = ReceivedTransport(sock, tls, self._reactor)
        try:
            tls.makeConnection(transport)
        except OSError:
            transport.abortConnection()  # the peer has gone already
            return
        transport.startReading()

    def _granted(self, local: socket.socket, messages: socket.socket, peer: Deferred[PeerConnection]) -> None:
        self._flows.add(GrantedFlow(self._reactor, self._relay, local, messages, peer, self._flows.discard))

    def _count(self) -> None:
        self._channel.send({"alive": True})
        for flow in list(self._flows):
            flow.count()
        if self._is_retired and not self._flows:
            self._channel.close()


def load(certificate: bytes, key: bytes) -> TlsContext:
    """Certificate and key, PEM, by way of files that only this process has. Raises: TunnelError."""
    numbers = [_remember(data) for data in (certificate, key)]
    try:
        return TlsContext(*(Path(f"/proc/self/fd/{number}") for number in numbers))
    finally:
        for number in numbers:
            os.close(number)


def _remember(data: bytes) -> int:
    number = os.memfd_create("mtunnel")
    os.fchmod(number, 0o600)
    os.write(number, data)
    return number
