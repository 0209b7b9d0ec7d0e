"""All fronts of a daemon: started, given certificate and connections, started again when they end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BackendFailed, TimedOut
from mtunnel_tx.net.admission import Gate, address_of
from mtunnel_tx.net.kinds import Inner, Reactor
from mtunnel_tx.ports.storage import Child
from mtunnel_tx.stream.link import Link, Relays
from mtunnel_tx.tls.certificate import Certificate
from mtunnel_tx.workers.carrying import FrontRelays, inode_of
from mtunnel_tx.workers.channel import Channel, Message, make_pair
from mtunnel_tx.workers.lane import Lane, Visitor

log = Logger()

READY_S = 60.0
LINE_S = 600.0
AGAIN_S, LONGEST_AGAIN_S = 0.1, 30.0
BEAT_S, MOST_MISSED = 10.0, 3
"""A front that says nothing for so many beats stands still, and is killed; it says something every second."""
WELL_S = 60.0
"""Who has lived so long was well: its successor starts at once."""

Spawn = Callable[[int], Child]
"""Starts a front whose standard input is this descriptor. Raises: BackendFailed."""


class Front:
    """One process. `ready` fires when it has its certificate; `load`: connections that may be busy."""

    def __init__(self, reactor: Reactor, number: int, spawn: Spawn) -> None:
        self.number = number
        self.ready: Deferred[None] = Deferred()
        self.last_line = "it said nothing"
        self.lanes: dict[int, Lane] = {}
        self.quiet: set[int] = set()
        self.is_open = True
        self.missed = 0
        ours, theirs = make_pair()
        with theirs:
            try:
                self.child = spawn(theirs.fileno())
            except BackendFailed:
                ours.close()
                raise
        self.channel = Channel(reactor, ours, self._hear, self._close)

    @property
    def load(self) -> int:
        return len(self.lanes) - len(self.quiet)

    @property
    def takes(self) -> bool:
        """It can be given connections."""
        return self.is_open and self.ready.called

    def _hear(self, message: Message, _sockets: list[socket.socket]) -> None:
        self.missed = 0
        if "ready" in message and not self.ready.called:
            self.ready.callback(None)

    def _close(self) -> None:
        self.is_open = False

    async def read(self) -> int:
        """Log what it says, up to its end. Returns: its exit code."""
        while not self.child.exhausted():
            line = await self.child.next_line(LINE_S)
            if line is not None:
                self.last_line = clean(line.rstrip("\n"))
                log.info("front {number}: {line}", number=self.number, line=self.last_line)
        return await self.child.ended()


class Crew:
    """The fronts and what they carry; `relays` runs streams in them.

    Args: count: how many. here: runs streams whose TLS is our own. handshake_s: how long a TLS handshake may take.
    """

    def __init__(self, reactor: Reactor, *, count: int, spawn: Spawn, here: Relays, handshake_s: float) -> None:
        self.relays = FrontRelays(reactor, here, self._disobeyed, self._note)
        self._reactor = reactor
        self._count = count
        self._spawn = spawn
        self._handshake_s = handshake_s
        self._certificate: Certificate | None = None
        self._fronts: dict[int, Front] = {}
        self._keepers: list[Deferred[None]] = []
        self._stopping = False
        self._beat = LoopingCall(self._look)
        self._beat.clock = reactor

    async def start(self, certificate: Certificate) -> None:
        """Start all. Raises: BackendFailed: with what one of them said; TimedOut."""
        self._certificate = certificate
        fronts = [self._begin(number) for number in range(self._count)]
        for front in fronts:
            self._keepers.append(Deferred.fromCoroutine(self._keep(front)).addErrback(_report))
        self._beat.start(BEAT_S, now=False)
        readiness = gatherResults([front.ready for front in fronts], consumeErrors=True)
        readiness.addTimeout(READY_S, self._reactor, onTimeoutCancel=_late)
        try:
            await readiness
        except FirstError as error:
            raise BackendFailed(f"front process cannot start: {fronts[error.index].last_line}") from error

    def certify(self, certificate: Certificate) -> None:
        """Give all of them another certificate, for new connections."""
        self._certificate = certificate
        for front in self._fronts.values():
            self._tell_certificate(front)

    async def stop(self) -> None:
        """End all of them; their streams have ended before."""
        self._stopping = True
        if self._beat.running:
            self._beat.stop()
        for front in self._fronts.values():
            front.channel.close()
            await front.child.kill()
        for keeper in self._keepers:
            keeper.cancel()
            await keeper

    def status(self) -> list[dict[str, int]]:
        """Of each front that works its process, its connections, and those of them that may be busy."""
        able = [front for front in self._fronts.values() if front.takes]
        return [{"pid": front.child.pid, "connections": len(front.lanes), "busy": front.load} for front in able]

    def _begin(self, number: int) -> Front:
        front = self._fronts[number] = Front(self._reactor, number, self._spawn)
        self._tell_certificate(front)
        return front

    def _tell_certificate(self, front: Front) -> None:
        assert self._certificate is not None
        front.channel.send(
            {
                "certificate": self._certificate.certificate.decode("latin-1"),
                "key": self._certificate.key.decode("latin-1"),
                "handshake_s": self._handshake_s,
            }
        )

    async def _keep(self, front: Front) -> None:
        """Start a front again whenever it ends, later and later where it ends early."""
        delay_s = AGAIN_S
        while True:
            since_s = self._reactor.seconds()
            await self._wait_for_end(front)
            if self._reactor.seconds() - since_s >= WELL_S:
                delay_s = AGAIN_S
            again = None
            while again is None and not self._stopping:
                await deferLater(self._reactor, delay_s)
                delay_s = min(2 * delay_s, LONGEST_AGAIN_S)
                again = self._begin_again(front.number)
            if again is None:
                return
            front = again

    async def _wait_for_end(self, front: Front) -> None:
        code = await front.read()
        front.channel.close()
        if not front.ready.called:
            front.ready.errback(ConnectionDone("it has ended"))
        if not self._stopping:
            log.error("front {number} has ended, code {code}", number=front.number, code=code)

    def _begin_again(self, number: int) -> Front | None:
        try:
            front = self._begin(number)
        except BackendFailed as error:
            log.error("front {number} cannot be started: {reason}", number=number, reason=error.text)
            return None
        front.ready.addErrback(lambda failure: failure.trap(ConnectionDone))
        return front

    # Connections

    def factory(self, site: Inner, gate: Gate) -> Factory:
        """What listens on a port: counts connections in and passes them on."""
        return _Reception(self, site, gate)

    def find(self) -> Front | None:
        """The front with the fewest connections; None: there is none at all."""
        able = [front for front in self._fronts.values() if front.takes]
        return min(able, key=lambda front: front.load, default=None)

    def pass_on(self, front: Front, sock: socket.socket, visitor: Visitor, inner: Inner) -> None:
        """Give a connection away; `sock` is duplicated."""
        ours, theirs = socket.socketpair()
        with theirs:
            front.channel.send({"connection": True}, [sock, theirs])
        inode = inode_of(ours)
        front.lanes[inode] = Lane(ours, self._reactor, visitor, inner, lambda _lane: _forget(front, inode))

    def _look(self) -> None:
        """Beats are counted, not seconds: after a sleep of the whole host nobody is to be blamed."""
        for front in self._fronts.values():
            front.missed += 1
            if front.takes and front.missed > MOST_MISSED:
                self._kill(front, "stands still")

    def _disobeyed(self, inode: int) -> None:
        for front in self._fronts.values():
            if inode in front.lanes:
                self._kill(front, "does not end a stream")

    def _kill(self, front: Front, reason: str) -> None:
        log.error("front {number} {reason}: it is killed", number=front.number, reason=reason)
        Deferred.fromCoroutine(front.child.kill()).addErrback(_report)

    def _note(self, inode: int, link: Link) -> None:
        """A command connection costs a front nothing."""
        for front in self._fronts.values():
            if inode in front.lanes and link.terms.urgent:
                front.quiet.add(inode)


class _Reception(Factory):
    """Asks the gate for each connection, and finds it a front."""

    noisy = False

    def __init__(self, crew: Crew, site: Inner, gate: Gate) -> None:
        self._crew = crew
        self._site = site
        self._gate = gate

    def doStart(self) -> None:
        self._site.doStart()

    def doStop(self) -> None:
        self._site.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Returns: None where there is no room, or nobody to take it."""
        front = self._crew.find()
        if front is None:
            log.warn("connection from {address} refused: no front is there", address=address_of(addr))
            return None
        seat = self._gate.enter(addr)
        if seat is None:
            return None

        def pass_on(transport: Any) -> None:
            visitor = Visitor(peer=transport.getPeer(), host=transport.getHost(), seat=seat)
            try:
                self._crew.pass_on(front, transport.getHandle(), visitor, self._site.buildProtocol(addr))
            except OSError as error:
                log.warn("connection from {address} refused: {reason}", address=address_of(addr), reason=str(error))
                seat.leave()

        return _Arrival(pass_on)


class _Arrival(Protocol):
    """A connection that has come, on its way to a front."""

    transport: Any

    def __init__(self, pass_on: Callable[[Any], None]) -> None:
        self._pass_on = pass_on

    def connectionMade(self) -> None:
        """Give it away, then forget it without shutting it down."""
        self.transport.pauseProducing()
        self._pass_on(self.transport)
        os.close(self.transport.getHandle().detach())
        self.transport.connectionLost(Failure(ConnectionDone()))


def _forget(front: Front, inode: int) -> None:
    front.lanes.pop(inode, None)
    front.quiet.discard(inode)


def _late(_result: object, timeout_s: float) -> None:
    raise TimedOut(f"front process is not ready within {timeout_s:g} s")


def _report(failure: Failure) -> None:
    if failure.check(CancelledError) is None:
        log.failure("unexpected failure in the care for a front", failure)
