"""Streams driven by the reactor: slower than the pump, without threads, and the same in everything else."""

from __future__ import annotations

import socket

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.net.kinds import Reactor, Result
from mtunnel_tx.ports.clock import Timer
from mtunnel_tx.stream.engine import MakeEngine, best_engine
from mtunnel_tx.stream.link import Link, make_stream
from mtunnel_tx.stream.mask import Unmask, best_unmask
from mtunnel_tx.stream.peer import Peer
from mtunnel_tx.stream.sides import Blocks
from mtunnel_tx.stream.stream import Stream, Tools

log = Logger()


@implementer(IReadWriteDescriptor)
class _Descriptor:
    """One socket of a stream, as the reactor wants it."""

    def __init__(self, reactor: Reactor, sock: socket.socket, turn: _Turns) -> None:
        self._reactor = reactor
        self._number = sock.fileno()
        self._turn = turn
        self._reads = self._writes = False

    def fileno(self) -> int:
        return self._number

    def logPrefix(self) -> str:
        return "stream"

    def doRead(self) -> None:
        self._turn.take()

    def doWrite(self) -> None:
        self._turn.take()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor saw an end and forgot the socket; the stream finds out what it was."""
        self.want(reads=False, writes=False)
        self._turn.take()

    def want(self, *, reads: bool, writes: bool) -> None:
        """Tell the reactor what to wait for."""
        if reads != self._reads:
            (self._reactor.addReader if reads else self._reactor.removeReader)(self)
        if writes != self._writes:
            (self._reactor.addWriter if writes else self._reactor.removeWriter)(self)
        self._reads, self._writes = reads, writes


class _Turns:
    """Runs one stream and keeps the reactor and the link informed."""

    def __init__(self, reactor: Reactor, link: Link, stream: Stream) -> None:
        self._reactor = reactor
        self._link = link
        self._stream = stream
        self._peer = _Descriptor(reactor, stream.peer, self)
        self._local = _Descriptor(reactor, stream.local, self)
        self._timer: Timer | None = None
        self._told_local = self._told_peer = self._told_closed = False

    def take(self) -> None:
        """Let the stream move its bytes, then wait for what it names."""
        if self._told_local and self._told_closed:
            return
        self._stream.service()
        interest = self._stream.interest()
        self._peer.want(reads=interest.peer_reads, writes=interest.peer_writes)
        self._local.want(reads=interest.local_reads, writes=interest.local_writes)
        self._set_timer()
        self._tell()

    def cancel(self) -> None:
        self._stream.give_up("cancelled")
        self.take()

    def _set_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        due_s = self._stream.next_call_s()
        if due_s is not None:
            self._timer = self._reactor.callLater(max(0.0, due_s - self._reactor.seconds()), self.take)

    def _tell(self) -> None:
        if self._stream.is_local_over and not self._told_local:
            self._told_local = True
            self._link.local_over(self._stream.ends.reason)
        if self._stream.is_peer_over and not self._told_peer:
            self._told_peer = True
            self._link.peer_over()
        if self._stream.is_peer_closed and not self._told_closed:
            self._told_closed = True
            self._link.peer_closed()


class ReactorRelays:
    """Runs streams on the reactor.

    Args: reactor: IReactorFDSet and IReactorTime. unmask, engine: the best there are where None.
    """

    def __init__(self, reactor: Reactor, unmask: Unmask | None = None, engine: MakeEngine | None = None) -> None:
        self._reactor = reactor
        self._tools = Tools(
            blocks=Blocks(), unmask=unmask or best_unmask(), engine=engine or best_engine(), now=reactor.seconds
        )
        self._running: dict[Link, _Turns] = {}

    def start(self, link: Link, peer: Peer) -> None:
        stream = make_stream(link, peer, self._tools)
        link.stream = stream
        turns = self._running[link] = _Turns(self._reactor, link, stream)
        for end in (link.done, link.released):
            end.addBoth(self._forget, link)
        if link.aborted:
            stream.give_up("cancelled")
        turns.take()

    def cancel(self, link: Link) -> None:
        if link in self._running:
            self._running[link].cancel()

    async def stop(self) -> None:
        links = list(self._running)
        for link in links:
            link.abort()
        for link in links:
            await link.ended()
            await link.released

    def _forget(self, result: Result, link: Link) -> Result:
        """Both ends are needed: the UNIX side may have to wait for its last bytes longer than the peer."""
        if link.done.called and link.released.called:
            del self._running[link]
        return result
