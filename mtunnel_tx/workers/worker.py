"""One worker process, as the daemon sees it."""

from __future__ import annotations

import socket

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mtunnel_tx.checks import clean
from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.ports.storage import Child
from mtunnel_tx.workers.channel import Message, MessageChannel, close_unasked
from mtunnel_tx.workers.plaintext import PlaintextTransport

log = Logger()

LINE_S = 600.0
MOST_MISSED = 3
"""A worker sends a message every second. One that sent none during so many beats hangs, and is killed."""


class WorkerProcess:
    """See the module. `ready` fires when it has its certificate; `load`: connections that may be busy.

    Args: sock: our end of its channel. is_old: it runs another release of this program: it gets no connections, and
    ends when it has no flow any more. `connections` and `quiet` hold inodes of plaintext sockets; the quiet ones carry
    commands and cost nothing.
    """

    def __init__(
        self, reactor: Reactor, number: int, sock: socket.socket, child: Child, *, is_old: bool = False
    ) -> None:
        self.number = number
        self.child = child
        self.is_old = is_old
        self.ready: Deferred[None] = Deferred()
        self.last_line = "it said nothing"
        self.connections: dict[int, PlaintextTransport] = {}
        self.quiet: set[int] = set()
        self.is_open = True
        self.missed, self.most_missed = 0, MOST_MISSED
        self.channel = MessageChannel(reactor, sock, self._hear, self._close)

    @property
    def load(self) -> int:
        return len(self.connections) - len(self.quiet)

    @property
    def takes_connections(self) -> bool:
        return self.is_open and self.ready.called and not self.is_old

    def forget(self, inode: int) -> None:
        """This plaintext socket is closed."""
        self.connections.pop(inode, None)
        self.quiet.discard(inode)

    def _hear(self, message: Message, sockets: list[socket.socket]) -> None:
        close_unasked(sockets)
        self.missed, self.most_missed = 0, MOST_MISSED
        if "ready" in message and not self.ready.called:
            self.ready.callback(None)

    def _close(self) -> None:
        """Nothing can be said to it any more: where it does not end by itself, it has to."""
        self.is_open = False
        Deferred.fromCoroutine(self.child.kill()).addErrback(report_failure)

    async def read(self) -> int:
        """Log its output, up to its end. Returns: its exit code."""
        while not self.child.exhausted():
            line = await self.child.next_line(LINE_S)
            if line is not None:
                self.last_line = clean(line.rstrip("\n"))
                log.info("worker {number}: {line}", number=self.number, line=self.last_line)
        return await self.child.ended()


def report_failure(failure: Failure) -> None:
    """Of work that nobody waits for; that it was cancelled is no news."""
    if failure.check(CancelledError) is None:
        log.failure("unexpected failure while a worker was watched", failure)
