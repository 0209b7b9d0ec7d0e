"""A flow: the bytes between a peer and one UNIX socket, as the reactor knows it.

A relay (`pump.Pump`, `reactorrelay.ReactorRelay`, `workers.relay.WorkerRelay`) moves the bytes. It tells the flow when
the UNIX side is over, when the peer has been told everything, and when the socket of a carrier may be closed. After a
failure the route is told before the UNIX socket is closed, so that an importer is killed before it could take the end
of its input for a good one.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.stream.parkedvalue import ParkedValue
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.stream.sides import reset_on_close
from mtunnel_tx.stream.unixside import grow_buffer
from mtunnel_tx.wire.frames import Role

log = Logger()

CANCELLED = "cancelled"


async def tell_nobody(orderly: bool) -> None:
    """For a flow whose end no route wants to hear of."""


def ignore_parking(reason: str) -> None:
    """For a flow that is never parked."""


def ignore_resuming() -> None:
    """The same."""


FlowOwner = Callable[[], Mapping[str, Any]]
"""Returns: `vmid` and `suffix`, the tunnel's and its socket's, and what more its owner has to know again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowTerms:
    """How a flow is to be run.

    urgent: it carries few bytes, for which somebody waits: they must not queue behind payload. role: ours on the
    websocket. ends_with_local, ends_with_peer: see ends.Ends. closed: is awaited with whether the flow ended in order.
    window_bytes: None: the flow ends with its carrier. Else it is resumable: a lost carrier parks it, and so much of
    what the peer has not acknowledged is kept at most. parked: is called with the reason when the flow has lost its
    carrier and goes on without; resumed: when it has one again. park_s: how long it is parked at most, which its owner
    sees to. owner: tells by what another daemon knows it; None: it ends with this one.
    """

    urgent: bool = False
    role: Role = Role.SERVER
    ends_with_local: bool = False
    ends_with_peer: bool = False
    limits: FlowLimits = field(default_factory=FlowLimits)
    closed: Callable[[bool], Awaitable[None]] = tell_nobody
    window_bytes: int | None = None
    park_s: float = 0.0
    owner: FlowOwner | None = None
    parked: Callable[[str], None] = ignore_parking
    resumed: Callable[[], None] = ignore_resuming


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowOutcome:
    """How a flow ended; `reason` is empty where that was in order."""

    orderly: bool
    bytes_in: int
    bytes_out: int
    reason: str = ""


TakenAway = Callable[[ParkedValue | None], object]


class Traffic(Protocol):
    """What a running flow has carried: payload from (`in`) and to (`out`) the peer.

    `taken`: by the UNIX socket, of what has come. `kept`: to be sent again.
    """

    @property
    def bytes_in(self) -> int: ...

    @property
    def bytes_taken(self) -> int: ...

    @property
    def bytes_out(self) -> int: ...

    @property
    def kept_bytes(self) -> int: ...


class Relay(Protocol):
    """Runs flows."""

    def attach(self, flow: Flow, peer: PeerConnection) -> None:
        """Let a connection carry a flow; with its first one the flow begins to run, and hears of its ends.

        Raises: OSError, RuntimeError: the system has no descriptor or no thread left.
        """

    def cancel(self, flow: Flow) -> None:
        """End a flow now, for its `abort_reason`."""

    async def stop(self) -> None:
        """End all flows, wait for their ends, give back threads."""


class Flow:
    """One flow, from before its first carrier to its end (ports.streams.TunnelFlow).

    `value`: what a parked flow that was run elsewhere goes on with. `is_local_told`: its UNIX side is over.

    Args: local: the connected UNIX socket; the flow closes it. `reason`: why it failed. `done` fires with the
    FlowOutcome when the peer has been told everything and the UNIX side is closed, `released` when the sockets of all
    carriers are closed too. `local_closed` is called when the UNIX socket is closed. `traffic`: what counts its bytes;
    None before its first carrier.
    """

    def __init__(self, relay: Relay, local: socket.socket, terms: FlowTerms) -> None:
        self.local = local
        self.terms = terms
        self.done: Deferred[FlowOutcome] = Deferred()
        self.released: Deferred[None] = Deferred()
        self.traffic: Traffic | None = None
        self.aborted = self.is_local_told = False
        self.value: ParkedValue | None = None
        self.abort_reason: str | None = CANCELLED
        self.reason: str | None = None
        self._relay = relay
        self._is_started = self._is_local_closed = self._is_peer_over = False
        self._carriers = 0
        self._is_parked = False
        self.local_closed: Callable[[], None] = ignore_resuming
        self._watchers: list[tuple[Callable[[str, float], object], Callable[[], object]]] = []
        local.setblocking(False)
        grow_buffer(local)

    @property
    def bytes_in(self) -> int:
        return self.traffic.bytes_in if self.traffic else 0

    @property
    def bytes_taken(self) -> int:
        return self.traffic.bytes_taken if self.traffic else 0

    @property
    def bytes_out(self) -> int:
        return self.traffic.bytes_out if self.traffic else 0

    @property
    def kept_bytes(self) -> int:
        return self.traffic.kept_bytes if self.traffic else 0

    @property
    def is_unused(self) -> bool:
        """It is parked, and has carried nothing."""
        return self._is_parked and self.bytes_in == self.bytes_out == self.kept_bytes == 0

    def take_value(self) -> ParkedValue | None:
        """What to go on with, for the one who runs the flow: nobody else keeps the bytes."""
        value, self.value = self.value, None
        return value

    async def ended(self) -> bool:
        """Wait for the end. Returns: whether it was in order."""
        told: Deferred[bool] = Deferred()

        def tell(outcome: FlowOutcome) -> FlowOutcome:
            told.callback(outcome.orderly)
            return outcome

        self.done.addCallback(tell)
        return await told

    def abort(self, reason: str | None = CANCELLED) -> None:
        """End both sides now. Args: reason: None: the peer says that it has ended in order; so it has, or it fails."""
        self.aborted = True
        self.abort_reason = reason
        if self._is_started:
            self._relay.cancel(self)

    def watch(self, parked: Callable[[str, float], object], resumed: Callable[[], object]) -> None:
        """Have `parked` called with the reason, and for how long it may be so, and `resumed` when that is over."""
        self._watchers.append((parked, resumed))

    def attach(self, peer: PeerConnection) -> None:
        """Let a connection carry the flow; one that comes when the flow is over is closed.

        A flow that cannot be started for want of threads or descriptors ends.
        """
        if self.done.called and self.released.called:
            reset_on_close(peer.sock)
            peer.close()
            return
        is_first, self._is_started = not self._is_started, True
        self._carriers += 1
        try:
            self._relay.attach(self, peer)
        except (OSError, RuntimeError) as error:
            log.error("a connection cannot carry its flow: {reason}", reason=str(error))
            if is_first:
                self.local_over("it could not be started")
                self.peer_over()
            self.carrier_closed(peer)

    def go_on(self, *, is_carried: bool) -> None:
        """It has run for an earlier daemon. Args: is_carried: by a carrier that is not in this process."""
        self._is_started = True
        self._carriers += is_carried

    def drop(self) -> None:
        """It never had a carrier: close the UNIX side."""
        self.local_over("the connection was lost before the upgrade")
        self.peer_over()

    # What the relay tells

    def local_over(self, reason: str | None) -> None:
        """The relay does not use the UNIX socket any more; it may still use the carrier. Args: why the flow failed."""
        self.is_local_told = True
        self.reason = reason
        Deferred.fromCoroutine(self._close_local(reason)).addErrback(
            lambda failure: log.failure("unexpected failure at the end of a flow", failure)
        )

    def peer_over(self) -> None:
        """The peer has been told everything, or cannot be told; its socket may still be open for a moment."""
        self._is_peer_over = True
        self._finish()

    def carrier_closed(self, peer: PeerConnection | None) -> None:
        """The relay does not use this connection any more. Args: peer: None: it is in another process."""
        if peer is not None:
            peer.close()
        self._carriers -= 1
        self._finish()

    def parked(self, reason: str) -> None:
        """The flow has lost its carrier, and goes on when it is given another one."""
        self._is_parked = True
        self.terms.parked(reason)
        for parked, _ in self._watchers:
            parked(reason, self.terms.park_s)

    def carried(self) -> None:
        """The relay uses the connection that it was given last."""
        if self._is_parked:
            self._is_parked = False
            self.terms.resumed()
            for _, resumed in self._watchers:
                resumed()

    async def _close_local(self, reason: str | None) -> None:
        try:
            if reason is not None:
                await self.terms.closed(False)
            self.local.close()
            if reason is None:
                await self.terms.closed(True)
        finally:
            self.local.close()
            self._is_local_closed = True
            self.local_closed()
            self._finish()

    def _finish(self) -> None:
        if not self._is_peer_over:
            return
        if self._is_local_closed and not self.done.called:
            self.done.callback(self._outcome())
        if self._carriers == 0 and not self.released.called:
            self.released.callback(None)

    def _outcome(self) -> FlowOutcome:
        return FlowOutcome(
            orderly=self.reason is None,
            bytes_in=self.bytes_in,
            bytes_out=self.bytes_out,
            reason=self.reason or "",
        )
