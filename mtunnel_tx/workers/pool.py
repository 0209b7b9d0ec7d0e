"""The worker processes of a daemon: started, given certificate and connections, started again when they end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
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
from mtunnel_tx.net.admission import Admission, address_of
from mtunnel_tx.net.kinds import Inner, Reactor
from mtunnel_tx.ports.holding import Kept, Store
from mtunnel_tx.ports.storage import Child
from mtunnel_tx.stream.flow import Flow, Relay
from mtunnel_tx.tls.certificate import Certificate
from mtunnel_tx.workers.channel import Message, MessageChannel, close_unasked, make_pair
from mtunnel_tx.workers.living import FoundFlow, find_flows
from mtunnel_tx.workers.plaintext import AcceptedClient, PlaintextTransport
from mtunnel_tx.workers.program import WORKER
from mtunnel_tx.workers.relay import WorkerRelay, inode_of

log = Logger()

READY_S = 60.0
LINE_S = 600.0
RESTART_S, LONGEST_RESTART_S = 0.1, 30.0
BEAT_S, MOST_MISSED = 10.0, 3
"""A worker sends a message every second. One that sent none during MOST_MISSED beats hangs, and is killed."""
STABLE_S = 60.0
"""A worker that has run for this long is started again at once, without the delay of those that end early."""

Spawn = Callable[[int, Store | None], Child]
"""Starts a worker whose standard input is this descriptor, in a store if there is one. Raises: BackendFailed."""


class WorkerProcess:
    """One worker, as the daemon sees it. `ready` fires when it has its certificate; `load`: connections that may be
    busy.

    Args: sock: our end of its channel. `connections` and `quiet` hold inodes of plaintext sockets; the quiet ones carry
    commands and cost nothing.
    """

    def __init__(self, reactor: Reactor, number: int, sock: socket.socket, child: Child) -> None:
        self.number = number
        self.child = child
        self.ready: Deferred[None] = Deferred()
        self.last_line = "it said nothing"
        self.connections: dict[int, PlaintextTransport] = {}
        self.quiet: set[int] = set()
        self.is_open = True
        self.missed = 0
        self.channel = MessageChannel(reactor, sock, self._hear, self._close)

    @property
    def load(self) -> int:
        return len(self.connections) - len(self.quiet)

    @property
    def takes_connections(self) -> bool:
        return self.is_open and self.ready.called

    def forget(self, inode: int) -> None:
        """This plaintext socket is closed."""
        self.connections.pop(inode, None)
        self.quiet.discard(inode)

    def _hear(self, message: Message, sockets: list[socket.socket]) -> None:
        close_unasked(sockets)
        self.missed = 0
        if "ready" in message and not self.ready.called:
            self.ready.callback(None)

    def _close(self) -> None:
        """Nothing can be said to it any more: where it does not end by itself, it has to."""
        self.is_open = False
        Deferred.fromCoroutine(self.child.kill()).addErrback(_report)

    async def read(self) -> int:
        """Log its output, up to its end. Returns: its exit code."""
        while not self.child.exhausted():
            line = await self.child.next_line(LINE_S)
            if line is not None:
                self.last_line = clean(line.rstrip("\n"))
                log.info("worker {number}: {line}", number=self.number, line=self.last_line)
        return await self.child.ended()


class WorkerPool:
    """All workers; `relay` runs flows in them.

    Args: count: how many. here: runs flows whose TLS is in this process. handshake_s: limit of a TLS handshake.
    explain: tells why a worker could not start, where that can be seen.
    """

    def __init__(
        self,
        reactor: Reactor,
        *,
        count: int,
        spawn: Spawn,
        here: Relay,
        handshake_s: float,
        explain: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.relay = WorkerRelay(reactor, here, self._disobeyed, self._note)
        self._reactor = reactor
        self._count = count
        self._spawn = spawn
        self._explain = explain
        self._handshake_s = handshake_s
        self._certificate: Certificate | None = None
        self._workers: dict[int, WorkerProcess] = {}
        self._keepers: list[Deferred[None]] = []
        self._stopping = False
        self._store: Store | None = None
        self._beat = LoopingCall(self._check_beats)
        self._beat.clock = reactor

    async def start(self, certificate: Certificate) -> None:
        """Start all. Raises: BackendFailed: with the last output of one that ended; TimedOut."""
        self._certificate = certificate
        found = list(self._workers.values())
        for worker in found:
            self._send_certificate(worker)
        workers = found + [self._begin(number) for number in range(len(found), self._count)]
        for worker in workers:
            self._keepers.append(Deferred.fromCoroutine(self._keep(worker)).addErrback(_report))
        self._beat.start(BEAT_S, now=False)
        readiness = gatherResults([worker.ready for worker in workers], consumeErrors=True)
        readiness.addTimeout(READY_S, self._reactor, onTimeoutCancel=_late)
        try:
            await readiness
        except FirstError as error:
            said, reason = workers[error.index].last_line, self._explain()
            why = said if reason is None else f"{reason}; it said: {said}"
            raise BackendFailed(f"worker process cannot start: {why}") from error

    async def go_on(self, store: Store, kept: Kept) -> Sequence[FoundFlow]:
        """Run workers so that they outlive us, and take those of an earlier daemon. Returns: their flows."""
        self._store = self.relay.store = store
        names = [name for name in kept.programs if name.startswith(WORKER) and name in kept.names]
        for number, name in enumerate(names):
            _, (sock,) = await store.get(name)
            self._workers[number] = WorkerProcess(self._reactor, number, sock, store.adopt(name))
        return await find_flows(self._reactor, self.relay, store, kept)

    async def leave(self) -> None:
        """Let all workers be: they wait for the next daemon."""
        self._stopping = True
        if self._beat.running:
            self._beat.stop()
        await self.relay.leave()

    def certify(self, certificate: Certificate) -> None:
        """Give all workers another certificate, for new connections."""
        self._certificate = certificate
        for worker in self._workers.values():
            self._send_certificate(worker)

    async def stop(self) -> None:
        """End all workers; their flows have ended before."""
        self._stopping = True
        if self._beat.running:
            self._beat.stop()
        for worker in self._workers.values():
            worker.channel.close()
            await worker.child.kill()
        for keeper in self._keepers:
            keeper.cancel()
            await keeper

    def status(self) -> list[dict[str, int]]:
        """For each worker that takes connections: process id, connections, and those of them that may be busy."""
        able = [worker for worker in self._workers.values() if worker.takes_connections]
        return [{"pid": one.child.pid, "connections": len(one.connections), "busy": one.load} for one in able]

    def _begin(self, number: int) -> WorkerProcess:
        ours, theirs = make_pair()
        with theirs:
            try:
                child = self._spawn(theirs.fileno(), self._store)
            except BackendFailed:
                ours.close()
                raise
        if self._store is not None:
            self._store.put(child.name, None, [ours])
        worker = self._workers[number] = WorkerProcess(self._reactor, number, ours, child)
        self._send_certificate(worker)
        return worker

    def _send_certificate(self, worker: WorkerProcess) -> None:
        assert self._certificate is not None
        worker.channel.send(
            {
                "certificate": self._certificate.certificate.decode("latin-1"),
                "key": self._certificate.key.decode("latin-1"),
                "handshake_s": self._handshake_s,
            }
        )

    async def _keep(self, worker: WorkerProcess) -> None:
        """Start a worker again whenever it ends; the delay doubles each time it ends early."""
        delay_s = RESTART_S
        while True:
            since_s = self._reactor.seconds()
            await self._wait_for_end(worker)
            if self._reactor.seconds() - since_s >= STABLE_S:
                delay_s = RESTART_S
            successor = None
            while successor is None and not self._stopping and worker.number < self._count:
                await deferLater(self._reactor, delay_s)
                delay_s = min(2 * delay_s, LONGEST_RESTART_S)
                successor = self._begin_again(worker.number)
            if successor is None:
                return
            worker = successor

    async def _wait_for_end(self, worker: WorkerProcess) -> None:
        code = await worker.read()
        worker.channel.close()
        if self._store is not None:
            self._store.drop(worker.child.name)
        if not worker.ready.called:
            worker.ready.errback(ConnectionDone("it has ended"))
        if not self._stopping:
            log.error("worker {number} has ended, code {code}", number=worker.number, code=code)

    def _begin_again(self, number: int) -> WorkerProcess | None:
        try:
            worker = self._begin(number)
        except BackendFailed as error:
            log.error("worker {number} cannot be started: {reason}", number=number, reason=error.text)
            return None
        worker.ready.addErrback(lambda failure: failure.trap(ConnectionDone))
        return worker

    # Connections

    def factory(self, site: Inner, admission: Admission) -> Factory:
        """The factory of a listening port: admits connections and passes them to workers."""
        return _PassingFactory(self, site, admission)

    def find(self) -> WorkerProcess | None:
        """The worker with the fewest busy connections; None: no worker takes any."""
        able = [worker for worker in self._workers.values() if worker.takes_connections]
        return min(able, key=lambda worker: worker.load, default=None)

    def pass_on(self, worker: WorkerProcess, sock: socket.socket, client: AcceptedClient, inner: Inner) -> None:
        """Give a connection to a worker; `sock` is duplicated. Raises: OSError: no descriptor is left."""
        ours, theirs = socket.socketpair()
        with theirs:
            worker.channel.send({"connection": True}, [sock, theirs])
        inode = inode_of(ours)
        transport = PlaintextTransport(ours, self._reactor, client, inner, partial(worker.forget, inode))
        worker.connections[inode] = transport

    def _check_beats(self) -> None:
        """Count beats, not seconds: after the whole host was suspended, no worker is to blame."""
        for worker in self._workers.values():
            worker.missed += 1
            if worker.takes_connections and worker.missed > MOST_MISSED:
                self._kill(worker, "hangs")

    def _disobeyed(self, inode: int) -> None:
        for worker in self._workers.values():
            if inode in worker.connections:
                self._kill(worker, "does not end a flow")

    def _kill(self, worker: WorkerProcess, reason: str) -> None:
        log.error("worker {number} {reason}: it is killed", number=worker.number, reason=reason)
        Deferred.fromCoroutine(worker.child.kill()).addErrback(_report)

    def _note(self, inode: int, flow: Flow) -> None:
        """Flows that carry commands do not count as load."""
        for worker in self._workers.values():
            if inode in worker.connections and flow.terms.urgent:
                worker.quiet.add(inode)


class _PassingFactory(Factory):
    """Asks for a place for each connection, and finds a worker that takes it."""

    noisy = False

    def __init__(self, pool: WorkerPool, site: Inner, admission: Admission) -> None:
        self._pool = pool
        self._site = site
        self._admission = admission

    def doStart(self) -> None:
        self._site.doStart()

    def doStop(self) -> None:
        self._site.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        """Returns: None: there is no place, or no worker."""
        worker = self._pool.find()
        if worker is None:
            log.warn("connection from {address} refused: no worker runs", address=address_of(addr))
            return None
        place = self._admission.enter(addr)
        if place is None:
            return None

        def pass_on(transport: Any) -> None:
            client = AcceptedClient(peer=transport.getPeer(), host=transport.getHost(), place=place)
            try:
                self._pool.pass_on(worker, transport.getHandle(), client, self._site.buildProtocol(addr))
            except OSError as error:
                log.warn("connection from {address} refused: {reason}", address=address_of(addr), reason=str(error))
                place.leave()

        return _PassedConnection(pass_on)


class _PassedConnection(Protocol):
    """An accepted connection that goes to a worker at once."""

    transport: Any

    def __init__(self, pass_on: Callable[[Any], None]) -> None:
        self._pass_on = pass_on

    def connectionMade(self) -> None:
        """Give it away, then close the daemon's descriptor without shutting the connection down."""
        self.transport.pauseProducing()
        self._pass_on(self.transport)
        os.close(self.transport.getHandle().detach())
        self.transport.connectionLost(Failure(ConnectionDone()))


def _late(_result: object, timeout_s: float) -> None:
    raise TimedOut(f"worker process is not ready within {timeout_s:g} s")


def _report(failure: Failure) -> None:
    if failure.check(CancelledError) is None:
        log.failure("unexpected failure while a worker was watched", failure)
