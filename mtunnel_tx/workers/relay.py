"""Streams that a worker carries: how the daemon gives them away, and how it hears of them.

The daemon keeps its own descriptor of the UNIX socket until the end of the stream was told in order. So whatever
happens to the worker, the input of an importer does not end before the importer was killed.

HTTP may have read bytes that belong to the stream, and more may be under way in the plaintext socket. The daemon sends
all of them back: the worker stops sending, closes its half of the plaintext socket, and receives its own bytes in
order, up to the end of file.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.net.kinds import Reactor, Result
from mtunnel_tx.ports.clock import Timer
from mtunnel_tx.stream.link import Link, Relays
from mtunnel_tx.stream.peer import Peer
from mtunnel_tx.workers.channel import Message, MessageChannel, make_pair
from mtunnel_tx.workers.plaintext import GRANT

log = Logger()

OBEY_S = 5.0
"""A worker that was told to end a stream and has not done so by then is killed."""
GRANT_AGAIN_S = 0.05
WORKER_ENDED = "the process that carried it has ended"


@implementer(IHalfCloseableProtocol)
class _SendBack(Protocol):
    """Sends back what comes, then the end of file."""

    transport: Any

    def __init__(self, sock: socket.socket, reactor: Reactor, first: bytes) -> None:
        protocol: Any = self
        line = Connection(sock, protocol, reactor)
        line.connected = 1
        self.makeConnection(line)
        line.write(first)
        line.startReading()

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)

    def readConnectionLost(self) -> None:
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Never called: this side closes both halves at once."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The worker has everything, or has ended."""


class RemoteStream:
    """One stream that a worker carries: what the worker has told of it, and what of that the link was told.

    Args: disobeyed: called when the worker does not end the stream although it was told to.
    """

    def __init__(self, reactor: Reactor, link: Link, peer: Peer, disobeyed: Callable[[], None]) -> None:
        self.bytes_in = self.bytes_out = 0
        self._reactor = reactor
        self._link = link
        self._peer = peer
        self._disobeyed = disobeyed
        self._timer: Timer | None = None
        self._granted = False
        self._reason = WORKER_ENDED
        self._untold: dict[str, Callable[[], None]] = {
            "local": lambda: link.local_over(self._reason),
            "peer": link.peer_over,
            "closed": link.peer_closed,
        }
        ours, self._theirs = make_pair()
        try:
            self._back = peer.sock.dup()
        except OSError:
            ours.close()
            self._theirs.close()
            raise
        self._channel = MessageChannel(reactor, ours, self._hear, self._complete)

    def grant(self) -> None:
        """Give the stream to the worker, behind everything that HTTP has sent."""
        try:
            socket.send_fds(self._peer.sock, [GRANT], [self._link.local.fileno(), self._theirs.fileno()])
        except BlockingIOError:
            self._timer = self._reactor.callLater(GRANT_AGAIN_S, self.grant)
        except OSError:
            self._channel.close()
        else:
            self._granted = True
            self._theirs.close()
            self._say_terms()

    def _say_terms(self) -> None:
        terms = self._link.terms
        self._channel.send(
            {
                "role": terms.role.name,
                "urgent": terms.urgent,
                "ends_with_local": terms.ends_with_local,
                "ends_with_peer": terms.ends_with_peer,
                "limits": asdict(terms.limits),
            }
        )
        _SendBack(self._back, self._reactor, self._peer.leftover)

    def abort(self) -> None:
        """Tell the worker to end the stream."""
        self._stop_timer()
        if self._granted:
            self._channel.send({"abort": True})
            self._timer = self._reactor.callLater(OBEY_S, self._insist)
        else:
            self._reason = "cancelled"
            self._channel.close()

    def _insist(self) -> None:
        if "local" in self._untold:
            self._disobeyed()

    def _hear(self, message: Message, _sockets: list[socket.socket]) -> None:
        self.bytes_in, self.bytes_out = message["in"], message["out"]
        event = message.get("over")
        if event not in self._untold:
            return
        tell = self._untold.pop(event)
        if event == "local":
            self._link.local_over(message["reason"])
        else:
            tell()

    def _complete(self) -> None:
        """The worker will tell nothing more: report the ends that it has not told."""
        self._stop_timer()
        self._theirs.close()
        if not self._granted:
            self._back.close()
        while self._untold:
            self._untold.pop(next(iter(self._untold)))()

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


class WorkerRelay:
    """Runs streams in workers (link.Relays); streams whose TLS is in this process go to `here`.

    Args: disobeyed: called with the inode of a plaintext socket whose worker does not end a stream. carried: called
    with the inode and the link of each stream.
    """

    def __init__(
        self, reactor: Reactor, here: Relays, disobeyed: Callable[[int], None], carried: Callable[[int, Link], None]
    ) -> None:
        self._reactor = reactor
        self._here = here
        self._disobeyed = disobeyed
        self._carried = carried
        self._running: dict[Link, RemoteStream] = {}

    def start(self, link: Link, peer: Peer) -> None:
        if peer.connection is not None:
            self._here.start(link, peer)
            return
        inode = inode_of(peer.sock)
        self._carried(inode, link)
        remote = RemoteStream(self._reactor, link, peer, lambda: self._disobeyed(inode))
        link.stream = remote
        self._running[link] = remote
        for end in (link.done, link.released):
            end.addBoth(self._forget, link)
        if link.aborted:
            remote.abort()
        else:
            remote.grant()

    def cancel(self, link: Link) -> None:
        if link in self._running:
            self._running[link].abort()
        else:
            self._here.cancel(link)

    async def stop(self) -> None:
        links = list(self._running)
        for link in links:
            link.abort()
        ends: list[Deferred[Result]] = [end for link in links for end in (link.done, link.released)]
        await DeferredList(ends)
        await self._here.stop()

    def _forget(self, result: Result, link: Link) -> Result:
        if link.done.called and link.released.called:
            self._running.pop(link, None)
        return result


def inode_of(sock: socket.socket) -> int:
    """The number that a socket has in common with its duplicates."""
    return os.fstat(sock.fileno()).st_ino
