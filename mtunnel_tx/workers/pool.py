"""The worker processes of a daemon: started, given certificate and connections, started again when they end."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from mtunnel_tx.errors import BackendFailed, TimedOut
from mtunnel_tx.net.admission import Admission
from mtunnel_tx.net.kinds import Inner, Reactor
from mtunnel_tx.ports.holding import Kept, LivingFlow, Store
from mtunnel_tx.ports.storage import Child
from mtunnel_tx.stream.flow import Flow, Relay
from mtunnel_tx.tls.certificate import Certificate
from mtunnel_tx.workers.channel import make_pair
from mtunnel_tx.workers.living import Finder, find_flows
from mtunnel_tx.workers.passing import PassingFactory
from mtunnel_tx.workers.plaintext import AcceptedClient, PlaintextTransport
from mtunnel_tx.workers.program import RELEASE, WORKER, WORKERS
from mtunnel_tx.workers.relay import WorkerRelay, inode_of
from mtunnel_tx.workers.worker import WorkerProcess, report_failure

log = Logger()

READY_S = 60.0
RESTART_S, LONGEST_RESTART_S = 0.1, 30.0
BEAT_S = 10.0
"""How often it is counted which workers have said nothing."""
MOST_SILENT = int(READY_S / BEAT_S)
"""So many beats a worker that was begun here has for its first message."""
STABLE_S = 60.0
"""A worker that has run for this long is started again at once, without the delay of those that end early."""

Spawn = Callable[[int, Store | None], Child]
"""Starts a worker whose standard input is this descriptor, in a store if there is one. Raises: BackendFailed."""
Find = Callable[[WorkerRelay], Finder]


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
        """Start all. One of an earlier daemon's that has ended, or hangs, is replaced as it would be later.

        Raises: BackendFailed: with the last output of one that was begun here, and ended; TimedOut: it was not ready.
        """
        self._certificate = certificate
        found = list(self._workers.values())
        for worker in found:
            worker.ready.addErrback(lambda failure: failure.trap(ConnectionDone))
            self._retire(worker) if worker.is_old else self._send_certificate(worker)
        missing = range(sum(not worker.is_old for worker in found), self._count)
        begun = [self._begin(number) for number in missing]
        for worker in (*found, *begun):
            self._keepers.append(Deferred.fromCoroutine(self._keep(worker)).addErrback(report_failure))
        self._beat.start(BEAT_S, now=False)
        await self._wait_until_ready(begun)

    async def _wait_until_ready(self, workers: Sequence[WorkerProcess]) -> None:
        readiness = gatherResults([worker.ready for worker in workers], consumeErrors=True)
        readiness.addTimeout(READY_S, self._reactor, onTimeoutCancel=_late)
        try:
            await readiness
        except FirstError as error:
            said, reason = workers[error.index].last_line, self._explain()
            why = said if reason is None else f"{reason}; it said: {said}"
            raise BackendFailed(f"worker process cannot start: {why}") from error

    async def go_on(self, store: Store, kept: Kept, find: Find) -> Sequence[LivingFlow]:
        """Run workers so that they outlive us, and take those of an earlier daemon. Returns: its flows."""
        self._store = self.relay.store = store
        names = [name for name in kept.programs if name.startswith(WORKER) and name in kept.names]
        strangers = [name for name in kept.programs if name.startswith(WORKERS) and not name.startswith(WORKER)]
        if strangers:
            log.warn("{count} workers of another version are ended, with their streams", count=len(strangers))
        entries = [entry for name in names if (entry := await _read_entry(store, name)) is not None]
        for number, (is_old, name, sock) in enumerate(sorted(entries, key=lambda entry: entry[0])):
            worker = WorkerProcess(self._reactor, number + is_old * self._count, sock, store.adopt(name), is_old=is_old)
            self._workers[worker.number] = worker
        return await find_flows(find(self.relay), store, kept)

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
        return [
            {
                "pid": one.child.pid,
                "connections": len(one.connections) + len(self.relay.adopted(one.child.pid)),
                "busy": self._load(one),
            }
            for one in able
        ]

    def _load(self, worker: WorkerProcess) -> int:
        """Connections that may be busy; those of an earlier daemon's flows have no plaintext socket here."""
        return worker.load + sum(not flow.is_urgent for flow in self.relay.adopted(worker.child.pid))

    def _begin(self, number: int) -> WorkerProcess:
        ours, theirs = make_pair()
        with theirs:
            try:
                child = self._spawn(theirs.fileno(), self._store)
            except BackendFailed:
                ours.close()
                raise
        if self._store is not None:
            self._store.put(child.name, RELEASE, [ours])
        worker = self._workers[number] = WorkerProcess(self._reactor, number, ours, child)
        worker.most_missed = MOST_SILENT
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

    def _retire(self, worker: WorkerProcess) -> None:
        log.info("worker process {pid} is of another release: it carries on what it has", pid=worker.child.pid)
        worker.channel.send({"retire": True})

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
        if not self._stopping and not worker.is_old:
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
        return PassingFactory(self, site, admission)

    def find(self) -> WorkerProcess | None:
        """The worker with the fewest busy connections; None: no worker takes any."""
        able = [worker for worker in self._workers.values() if worker.takes_connections]
        return min(able, key=self._load, default=None)

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
            if worker.is_open and worker.missed > worker.most_missed:
                self._kill(worker, "hangs")

    def _disobeyed(self, pid: int) -> None:
        for worker in self._workers.values():
            if worker.is_open and worker.child.pid == pid:
                self._kill(worker, "does not end a flow")

    def _kill(self, worker: WorkerProcess, reason: str) -> None:
        log.error("worker {number} {reason}: it is killed", number=worker.number, reason=reason)
        Deferred.fromCoroutine(worker.child.kill()).addErrback(report_failure)

    def _note(self, inode: int, flow: Flow) -> int:
        """Flows that carry commands do not count as load. Returns: the worker's process; 0: its connection is gone."""
        for worker in self._workers.values():
            if inode in worker.connections:
                if flow.terms.urgent:
                    worker.quiet.add(inode)
                return worker.child.pid
        return 0


async def _read_entry(store: Store, name: str) -> tuple[bool, str, socket.socket] | None:
    """Whether a worker is of another release, and its channel; None: it cannot be used, and is ended unadopted."""
    try:
        release, (sock,) = await store.get(name)
    except (BackendFailed, LookupError, TypeError, ValueError) as error:
        log.warn("a worker of an earlier daemon is ended, with its streams: {reason}", reason=str(error))
        return None
    return release != RELEASE, name, sock


def _late(_result: object, timeout_s: float) -> None:
    raise TimedOut(f"worker process is not ready within {timeout_s:g} s")
