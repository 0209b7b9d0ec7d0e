"""Flows that a worker runs: how the daemon gives them away, and how it hears of them.

The daemon keeps its own descriptor of the UNIX socket until the end of the flow was told in order. So whatever
happens to the worker, the input of an importer does not end before the importer was killed.

HTTP may have read bytes that belong to the flow, and more may be under way in the plaintext socket. The daemon sends
all of them back: the worker stops sending, closes its half of the plaintext socket, and receives its own bytes in
order, up to the end of file.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.checks import clean
from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.ports.clock import Timer
from mtunnel_tx.stream.flow import Flow, Relay
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.stream.runningset import RunningSet
from mtunnel_tx.workers.channel import Message, MessageChannel, close_unasked, make_pair, read_count
from mtunnel_tx.workers.plaintext import GRANT
from mtunnel_tx.workers.terms import write_terms

log = Logger()

OBEY_S = 5.0
"""A worker that was told to end a flow and has not done so by then is killed."""
GRANT_AGAIN_S = 0.05
LONGEST_REASON = 1000
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


class RemoteFlow:
    """One flow that a worker runs: what the worker has told of it, and what of that the flow was told.

    Args: disobeyed: called when the worker does not end the flow although it was told to.
    """

    def __init__(self, reactor: Reactor, flow: Flow, peer: PeerConnection, disobeyed: Callable[[], None]) -> None:
        self.bytes_in = self.bytes_out = self.kept_bytes = 0
        self._reactor = reactor
        self._flow = flow
        self._peer = peer
        self._disobeyed = disobeyed
        self._timer: Timer | None = None
        self._granted = False
        self._reason = WORKER_ENDED
        self._untold: dict[str, Callable[[], None]] = {
            "local": lambda: flow.local_over(self._reason),
            "peer": flow.peer_over,
            "closed": lambda: flow.carrier_closed(peer),
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
        """Give the flow to the worker, behind everything that HTTP has sent."""
        try:
            socket.send_fds(self._peer.sock, [GRANT], [self._flow.local.fileno(), self._theirs.fileno()])
        except BlockingIOError:
            self._timer = self._reactor.callLater(GRANT_AGAIN_S, self.grant)
        except OSError:
            self._channel.close()
        else:
            self._granted = True
            self._theirs.close()
            self._say_terms()

    def _say_terms(self) -> None:
        self._channel.send(write_terms(self._flow.terms))
        _SendBack(self._back, self._reactor, self._peer.leftover)

    def abort(self) -> None:
        """Tell the worker to end the flow."""
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

    def _hear(self, message: Message, sockets: list[socket.socket]) -> None:
        close_unasked(sockets)
        self.bytes_in, self.bytes_out = read_count(message, "in"), read_count(message, "out")
        event = message.get("over")
        if not isinstance(event, str) or event not in self._untold:
            return
        tell = self._untold.pop(event)
        if event == "local":
            self._flow.local_over(_read_reason(message))
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


def _read_reason(message: Message) -> str | None:
    reason = message.get("reason")
    return None if reason is None else clean(str(reason)[:LONGEST_REASON])


class WorkerRelay:
    """Runs flows in workers (flow.Relay); flows whose TLS is in this process go to `here`.

    Args: disobeyed: called with the inode of a plaintext socket whose worker does not end a flow. carried: called with
    the inode and the flow when a worker gets a flow.
    """

    def __init__(
        self, reactor: Reactor, here: Relay, disobeyed: Callable[[int], None], carried: Callable[[int, Flow], None]
    ) -> None:
        self._reactor = reactor
        self._here = here
        self._disobeyed = disobeyed
        self._carried = carried
        self._running: RunningSet[RemoteFlow] = RunningSet()

    def attach(self, flow: Flow, peer: PeerConnection) -> None:
        if peer.connection is not None:
            self._here.attach(flow, peer)
            return
        assert self._running.find(flow) is None, "a worker never gives up the carrier of a flow"
        inode = inode_of(peer.sock)
        self._carried(inode, flow)
        remote = RemoteFlow(self._reactor, flow, peer, lambda: self._disobeyed(inode))
        flow.traffic = remote
        self._running.add(flow, remote)
        if flow.aborted:
            remote.abort()
        else:
            remote.grant()

    def cancel(self, flow: Flow) -> None:
        remote = self._running.find(flow)
        if remote is not None:
            remote.abort()
        else:
            self._here.cancel(flow)

    async def stop(self) -> None:
        await self._running.stop()
        await self._here.stop()


def inode_of(sock: socket.socket) -> int:
    """The number that a socket has in common with its duplicates."""
    return os.fstat(sock.fileno()).st_ino
