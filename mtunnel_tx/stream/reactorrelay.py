"""Flows run by the reactor: slower than the pump, without threads, and the same in everything else.

The contract tests run it beside the pump; `mtunnel websocket-tunnel` uses it, as it starts faster.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.ports.clock import Timer
from mtunnel_tx.stream.carrier import Carrier, ThreadTools
from mtunnel_tx.stream.engine import MakeEngine, best_engine
from mtunnel_tx.stream.flow import Flow, TakenAway
from mtunnel_tx.stream.mask import Unmask, best_unmask
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.stream.running import RunningFlow
from mtunnel_tx.stream.runningset import RunningSet
from mtunnel_tx.stream.sides import Blocks

log = Logger()


@implementer(IReadWriteDescriptor)
class _Descriptor:
    """One socket of a flow, for the reactor. Args: ready: called when the socket may be ready."""

    def __init__(self, reactor: Reactor, sock: socket.socket, ready: Callable[[], None]) -> None:
        self._reactor = reactor
        self._number = sock.fileno()
        self._ready = ready
        self._reads = self._writes = False

    def fileno(self) -> int:
        return self._number

    def logPrefix(self) -> str:
        return "flow"

    def doRead(self) -> None:
        self._ready()

    def doWrite(self) -> None:
        self._ready()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor saw an end and forgot the socket; the flow finds out what it was."""
        self.want(reads=False, writes=False)
        self._ready()

    def want(self, *, reads: bool, writes: bool) -> None:
        """Tell the reactor what to wait for."""
        if reads != self._reads:
            (self._reactor.addReader if reads else self._reactor.removeReader)(self)
        if writes != self._writes:
            (self._reactor.addWriter if writes else self._reactor.removeWriter)(self)
        self._reads, self._writes = reads, writes


class _ReactorFlow:
    """Runs one flow, and keeps the reactor and the flow informed."""

    def __init__(self, reactor: Reactor, flow: Flow, running: RunningFlow) -> None:
        self.running = running
        self._reactor = reactor
        self._flow = flow
        self._local = _Descriptor(reactor, running.local, self.move)
        self._peer: _Descriptor | None = None
        self._carrier: Carrier | None = None
        self._timer: Timer | None = None
        self._told_local = self._told_peer = False

    def attach(self, peer: PeerConnection) -> None:
        if self.running.attach(peer):
            self._flow.carried()
            self.move()
        else:
            self._flow.carrier_closed(peer)

    def move(self) -> None:
        """Let the flow move its bytes, then wait for what it names."""
        if self._told_local and self._told_peer and self._carrier is None:
            return
        self.running.service()
        if self.running.carrier is not self._carrier:
            self._change_carrier()
        interest = self.running.interest()
        if self._peer is not None:
            self._peer.want(reads=interest.peer_reads, writes=interest.peer_writes)
        self._local.want(reads=interest.local_reads, writes=interest.local_writes)
        self._set_timer()
        self._tell()

    def _change_carrier(self) -> None:
        former, carrier = self._carrier, self.running.carrier
        self._carrier = carrier
        if former is not None and self._peer is not None:
            self._peer.want(reads=False, writes=False)
            self._flow.carrier_closed(former.peer)
        self._peer = None if carrier is None else _Descriptor(self._reactor, carrier.sock, self.move)
        if carrier is None and self.running.ends.parked is not None:
            self._flow.parked(self.running.ends.parked)

    def _set_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        due_s = self.running.next_call_s()
        if due_s is not None:
            self._timer = self._reactor.callLater(max(0.0, due_s - self._reactor.seconds()), self.move)

    def _tell(self) -> None:
        if self.running.is_local_over and not self._told_local:
            self._told_local = True
            self._flow.local_over(self.running.ends.reason)
        if self.running.is_peer_over and not self._told_peer:
            self._told_peer = True
            self._flow.peer_over()


class ReactorRelay:
    """Runs flows on the reactor (flow.Relay).

    Args: reactor: IReactorFDSet and IReactorTime. unmask, engine: the best there are where None.
    """

    def __init__(self, reactor: Reactor, unmask: Unmask | None = None, engine: MakeEngine | None = None) -> None:
        self._reactor = reactor
        self._tools = ThreadTools(
            blocks=Blocks(), unmask=unmask or best_unmask(), engine=engine or best_engine(), now=reactor.seconds
        )
        self._running: RunningSet[_ReactorFlow] = RunningSet()

    def attach(self, flow: Flow, peer: PeerConnection) -> None:
        job = self._running.find(flow) or self._begin(flow)
        job.attach(peer)

    def detach(self, flow: Flow, reason: str) -> None:
        """Take the carrier of a flow away; the flow is parked, unless it ends already."""
        job = self._running.find(flow)
        if job is not None:
            job.running.detach(reason)
            job.move()

    def take_away(self, flow: Flow, told: TakenAway) -> None:
        """Stop running a parked flow, which goes on elsewhere. Args: told: hears what it goes on with, or None."""
        job = self._running.find(flow)
        value = job.running.take_away() if job is not None else None
        if value is not None:
            self._running.remove(flow)
        told(value)

    def cancel(self, flow: Flow) -> None:
        job = self._running.find(flow)
        if job is not None:
            job.running.cancel(flow.abort_reason)
            job.move()

    async def stop(self) -> None:
        await self._running.stop()

    def _begin(self, flow: Flow) -> _ReactorFlow:
        running = RunningFlow(flow.local, flow.terms, self._tools, flow.take_value())
        flow.traffic = running
        job = _ReactorFlow(self._reactor, flow, running)
        self._running.add(flow, job)
        if flow.aborted:
            running.cancel(flow.abort_reason)
            job.move()
        return job
