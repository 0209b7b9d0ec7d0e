"""Flows of a client that outlive their connections: when one is lost, another one is dialled.

When it opens a websocket the target says whether it can do that (`wire/resuming.py`); where it says nothing, the flow
is a plain one.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure

from mtunnel_tx.errors import TunnelError, Unauthenticated, WrongState
from mtunnel_tx.http.client import EndedThere, NotReached, OpenedWebsocket, connect_websocket, read_answer_header
from mtunnel_tx.net.kinds import Reactor, Result
from mtunnel_tx.pve.maps import Endpoint
from mtunnel_tx.stream.flow import Flow, FlowTerms, Relay
from mtunnel_tx.stream.limits import FlowLimits, impatient
from mtunnel_tx.waiting import pause, within
from mtunnel_tx.wire.frames import Role
from mtunnel_tx.wire.resuming import HEADER, VERSION, AttachClaim, ResumeOffer, read_offer, write_claim

log = Logger()

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
AGAIN_S = 0.5
TRY_S = 20.0
"""For name, connection, TLS and answer of one try."""
STEADY_S = 0.5
"""A connection that lived so long was a good one: the next pause is a short one again."""
SOCKET_CALL, ATTACH_CALL = "mtunnelwebsocket", "mtunnelattach"


async def open_lasting_stream(
    reactor: Reactor, endpoint: Endpoint, path_query: str, sock: socket.socket, *, relay: Relay,
    limits: FlowLimits | None = None, ends_with_peer: bool = False, patience_s: float = 0.0,
) -> Flow:  # fmt: skip
    """As `client.open_stream`; where the target can do it, the flow outlives its connection.

    Args: patience_s: how long nobody may be there, as the daemon may be starting again.
    """

    async def dial_first() -> OpenedWebsocket:
        return await connect_websocket(reactor, endpoint, path_query, {HEADER: VERSION})

    try:
        opened = await _reach(reactor, dial_first, patience_s)
    except BaseException:
        sock.close()
        raise
    terms = FlowTerms(role=Role.CLIENT, limits=limits or FlowLimits(), ends_with_peer=ends_with_peer)
    offer = read_offer(read_answer_header(opened.head, HEADER))
    if offer is None:
        flow = Flow(relay, sock, terms)
    else:
        path = path_query.partition("?")[0].removesuffix(SOCKET_CALL) + f"{ATTACH_CALL}?id={offer.id}"

        async def dial(claim: AttachClaim) -> OpenedWebsocket:
            return await connect_websocket(reactor, endpoint, path, {HEADER: write_claim(claim)})

        flow = Redial(reactor, dial, offer).make_flow(relay, sock, terms)
    flow.attach(opened.peer)
    return flow


async def _reach(
    reactor: Reactor, dial: Callable[[], Awaitable[OpenedWebsocket]], patience_s: float
) -> OpenedWebsocket:
    """Dial until somebody is there. Raises: NotReached: for too long; TunnelError."""
    last_s = reactor.seconds() + patience_s
    while True:
        try:
            return await dial()
        except NotReached:
            if reactor.seconds() >= last_s:
                raise
        await pause(reactor, AGAIN_S)


class Redial:
    """Dials for one flow when it has lost its connection, until it has another one or its time is over.

    Args: dial: attaches a connection to the flow.
    """

    def __init__(
        self, reactor: Reactor, dial: Callable[[AttachClaim], Awaitable[OpenedWebsocket]], offer: ResumeOffer
    ) -> None:
        self._reactor = reactor
        self._dial = dial
        self._offer = offer
        self._flow: Flow | None = None
        self._generation = 0
        self._tries = 0
        self._attached_s = reactor.seconds()
        self._work: Deferred[None] | None = None

    def make_flow(self, relay: Relay, sock: socket.socket, terms: FlowTerms) -> Flow:
        """The flow of such terms, which can be resumed."""
        terms = replace(
            terms,
            limits=impatient(terms.limits),
            window_bytes=self._offer.window_bytes,
            park_s=self._offer.park_s,
            parked=self._parked,
        )
        flow = self._flow = Flow(relay, sock, terms)
        flow.done.addBoth(self._stop)
        return flow

    def _parked(self, reason: str) -> None:
        """Called when the flow has lost its connection."""
        assert self._flow is not None, "it runs"
        log.info("connection lost: {reason}", reason=reason)
        if self._reactor.seconds() - self._attached_s >= STEADY_S:
            self._tries = 0
        self._work = Deferred.fromCoroutine(self._go_on(self._flow))
        self._work.addErrback(_report)

    def _stop(self, result: Result) -> Result:
        if self._work is not None:
            self._work.cancel()
        return result

    async def _go_on(self, flow: Flow) -> None:
        last_s, problem = self._reactor.seconds() + self._offer.park_s, ""
        while self._reactor.seconds() < last_s:
            await pause(self._reactor, self._pause_s())
            self._tries += 1
            try:
                opened = await self._try()
            except EndedThere as end:
                flow.abort(None if end.orderly else end.text)
                return
            except (Unauthenticated, WrongState) as error:
                flow.abort(f"the target does not take the flow back: {error.text}")
                return
            except TunnelError as error:
                problem = f": {error.text}"
                continue
            self._attached_s = self._reactor.seconds()
            flow.attach(opened.peer)
            return
        flow.abort(f"no connection to the target for {self._offer.park_s:g} s{problem}")

    async def _try(self) -> OpenedWebsocket:
        self._generation += 1
        claim = AttachClaim(key=self._offer.key, generation=self._generation)

        async def dial() -> OpenedWebsocket:
            return await self._dial(claim)

        work: Deferred[OpenedWebsocket] = Deferred.fromCoroutine(dial())
        return await within(self._reactor, TRY_S, work, f"no answer within {TRY_S:g} s")

    def _pause_s(self) -> float:
        """At once; then longer and longer, and never two sources at the same time."""
        if self._tries == 0:
            return 0.0
        longest_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._tries, 10))
        return longest_s * random.uniform(0.5, 1.0)  # noqa: S311


def _report(failure: Failure) -> Any:
    if not failure.check(CancelledError, ConnectingCancelledError):
        log.failure("unexpected failure while a connection is dialled", failure=failure)
