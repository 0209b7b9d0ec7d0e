"""What the reactor knows of a running stream, and how its end is told, in the right order.

A relay (`relay.ReactorRelays`, `pump.Pump`) moves the bytes and tells the `Link` when the UNIX side is over, when the
peer is over, and when the peer's socket may be closed. An abort is told to the route before the UNIX socket is closed,
so that an import child dies before it could take the end of its input for a good one.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mtunnel_tx.stream.ends import Ends
from mtunnel_tx.stream.peer import Peer, grow_buffer
from mtunnel_tx.stream.sides import make_side
from mtunnel_tx.stream.stream import Stream, StreamLimits, Tools
from mtunnel_tx.wire.frames import Role

log = Logger()


async def nobody(orderly: bool) -> None:
    """For a stream that no route wants to hear of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a stream is to be run.

    urgent: a few bytes for which somebody waits: not to queue behind payload. closed: is awaited with whether it ended
    in order.
    """

    urgent: bool = False
    role: Role = Role.SERVER
    ends_with_local: bool = False
    ends_with_peer: bool = False
    limits: StreamLimits = field(default_factory=StreamLimits)
    closed: Callable[[bool], Awaitable[None]] = nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a stream ended; `reason` is empty where that was in order."""

    orderly: bool
    bytes_in: int
    bytes_out: int
    reason: str = ""


class Traffic(Protocol):
    """What a running stream has carried."""

    @property
    def bytes_in(self) -> int: ...

    @property
    def bytes_out(self) -> int: ...


class Relays(Protocol):
    """Runs streams."""

    def start(self, link: Link, peer: Peer) -> None:
        """From now on the bytes move; `link` hears of the ends, on the reactor."""

    def cancel(self, link: Link) -> None:
        """Let the stream of this link give up."""

    async def stop(self) -> None:
        """Cancel all streams, wait for their ends, give back threads."""


class Link:
    """One websocket and its UNIX socket, from before the upgrade to the end; a `ports.Stream`.

    Args: local: the connected UNIX socket; it belongs to the link. `reason`: why it was aborted. `done` fires with the
    Outcome when both sides have been told and the UNIX side is closed, `released` when the peer's socket is closed too.
    """

    def __init__(self, relays: Relays, local: socket.socket, terms: Terms) -> None:
        self.local = local
        self.terms = terms
        self.done: Deferred[Outcome] = Deferred()
        self.released: Deferred[None] = Deferred()
        self.stream: Traffic | None = None
        self.aborted = False
        self._relays = relays
        self._peer: Peer | None = None
        self._open_ends = 2
        self.reason: str | None = None
        local.setblocking(False)
        grow_buffer(local)

    @property
    def bytes_in(self) -> int:
        return self.stream.bytes_in if self.stream else 0

    @property
    def bytes_out(self) -> int:
        return self.stream.bytes_out if self.stream else 0

    async def ended(self) -> bool:
        """Wait for the end. Returns: whether it was in order."""
        told: Deferred[bool] = Deferred()

        def tell(outcome: Outcome) -> Outcome:
            told.callback(outcome.orderly)
            return outcome

        self.done.addCallback(tell)
        return await told

    def abort(self) -> None:
        """End both sides now."""
        self.aborted = True
        if self._peer is not None:
            self._relays.cancel(self)

    def start(self, peer: Peer) -> None:
        """Join the two sides; both end where the system has no thread or no descriptor left for that."""
        self._peer = peer
        try:
            self._relays.start(self, peer)
        except (OSError, RuntimeError) as error:
            log.error("a stream could not be started: {reason}", reason=str(error))
            self.local_over("it could not be started")
            self.peer_over()
            self.peer_closed()

    def drop(self) -> None:
        """It came to nothing before the start: close the UNIX side."""
        self._open_ends = 1
        self.local_over("the connection was lost before the upgrade")

    def local_over(self, reason: str | None) -> None:
        """The relay is done with the UNIX side; it may go on with the peer for a moment."""
        self.reason = reason
        Deferred.fromCoroutine(self._close_local(reason)).addErrback(
            lambda failure: log.failure("unexpected failure at the end of a stream", failure)
        )

    def peer_over(self) -> None:
        """The peer has been told everything; it may take a moment to see it."""
        self._end_one()

    def peer_closed(self) -> None:
        """The relay is done with the peer's socket."""
        if self._peer is not None:
            self._peer.close()
        self.released.callback(None)

    async def _close_local(self, reason: str | None) -> None:
        try:
            if reason is not None:
                await self.terms.closed(False)
            self.local.close()
            if reason is None:
                await self.terms.closed(True)
        finally:
            self.local.close()
            self._end_one()

    def _end_one(self) -> None:
        self._open_ends -= 1
        if self._open_ends == 0:
            outcome = Outcome(
                orderly=self.reason is None,
                bytes_in=self.bytes_in,
                bytes_out=self.bytes_out,
                reason=self.reason or "",
            )
            self.done.callback(outcome)


def make_stream(link: Link, peer: Peer, tools: Tools) -> Stream:
    """The machinery for one link."""
    terms = link.terms
    return Stream(
        peer=peer.sock,
        side=make_side(peer.sock, peer.leftover, tools.blocks, peer.connection, tools.engine),
        local=link.local,
        ends=Ends(
            half_close_s=terms.limits.half_close_s,
            ends_with_local=terms.ends_with_local,
            ends_with_peer=terms.ends_with_peer,
        ),
        role=terms.role,
        limits=terms.limits,
        tools=tools,
    )
