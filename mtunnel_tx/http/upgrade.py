"""From an HTTP request to a flow: the 101 is sent, then the connection leaves HTTP for good."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.internet.error import ConnectionLost
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mtunnel_tx.errors import WrongState
from mtunnel_tx.http.handshake import Handshake, with_header
from mtunnel_tx.http.resumptions import Resumption, Resumptions
from mtunnel_tx.net.kinds import Reactor, Request
from mtunnel_tx.ports.streams import Route
from mtunnel_tx.stream.flow import Flow, FlowTerms, Relay
from mtunnel_tx.stream.limits import FlowLimits, impatient
from mtunnel_tx.stream.peer import PeerConnection, take_over
from mtunnel_tx.wire.resuming import HEADER, write_offer

log = Logger()


def expect_nothing(_flow: Flow) -> None:
    """For those whose flows end with this process."""


async def upgrade(
    request: Request, handshake: Handshake, local: socket.socket, route: Route, *, relay: Relay,
    limits: FlowLimits, reactor: Reactor, resumption: Resumption | None = None,
    expect: Callable[[Flow], None] = expect_nothing,
) -> Flow:  # fmt: skip
    """Turn a request into a flow between its connection and a UNIX socket.

    Args: request: a twisted.web request, nothing answered yet. handshake: of this request. local: connected; it belongs
    to the flow from now on, and is closed if there will be none. resumption: of a flow that outlives its connection.
    expect: called before the peer hears of the flow.
    Returns: the flow, running; the request must not be touched any more.
    Raises: TunnelError: refused, to be answered as HTTP; ConnectionLost: there is nobody left to answer.
    """
    flow = Flow(relay, local, make_terms(route, resumption, limits=limits))
    answer = handshake.answer
    if resumption is not None:
        resumption.begin(flow)
        answer = with_header(answer, HEADER, write_offer(resumption.offer))
    try:
        await check_connected(request, reactor)
        route.opened(flow)
    except BaseException:
        local.close()
        raise
    expect(flow)
    try:
        peer = await leave_http(request, answer)
    except BaseException:
        flow.drop()
        raise
    flow.attach(peer)
    return flow


async def go_on_unused(
    request: Request, handshake: Handshake, flow: Flow, resumptions: Resumptions,
    expect: Callable[[Flow], None] = expect_nothing,
) -> None:  # fmt: skip
    """Let a request's connection carry a flow that was opened, and whose peer has not heard of it.

    Under another name: what was said of the first one, to whomever, is void. Raises: as `upgrade`.
    """
    await check_connected(request, resumptions.clock)
    resumption = resumptions.renew(flow) if flow.is_unused else None
    if resumption is None:
        raise WrongState("somebody was faster")
    expect(flow)
    offer = resumption.offer
    peer = await leave_http(request, with_header(handshake.answer, HEADER, write_offer(offer)))
    if resumption.offer is not offer:
        peer.close()  # somebody has asked again
        return
    flow.attach(peer)


def make_terms(route: Route, resumption: Resumption | None, *, limits: FlowLimits) -> FlowTerms:
    """How a flow to this route is to be run. Args: resumption: None: it ends with its connection."""

    async def closed(orderly: bool) -> None:
        await route.closed(orderly=orderly)

    def owner() -> dict[str, Any]:
        lasting = None if resumption is None else resumption.lasting.as_json()
        return {"vmid": route.vmid, "suffix": route.kind.suffix, "resume": lasting}

    terms = FlowTerms(
        urgent=route.kind.urgent,
        ends_with_local=route.kind.ends_both,
        limits=limits,
        closed=closed,
        owner=owner if route.kind.suffix else None,
    )
    if resumption is None:
        return terms
    return replace(
        terms,
        limits=impatient(limits),
        window_bytes=resumption.offer.window_bytes,
        park_s=resumption.offer.park_s,
        parked=resumption.parked,
        resumed=resumption.resumed,
    )


async def check_connected(request: Request, reactor: Reactor) -> None:
    """Wait until everything that came with the request is with its channel. Raises: ConnectionLost: the client left.

    What followed a request in the same segment reaches the channel only after this iteration of the reactor.
    """
    await deferLater(reactor, 0)
    if request.channel is None:
        raise ConnectionLost("connection lost before the upgrade")


async def leave_http(request: Request, answer: bytes) -> PeerConnection:
    """Answer a request, and take its connection from its channel. Raises: ConnectionLost.

    A channel keeps what came after a request for the next one, and gives it to `setLineMode` when the first is done.
    """
    channel = request.channel
    leftover: list[bytes] = []
    place = getattr(channel.transport, "place", None)
    if place is not None:
        place.carry()
    channel.persistent = True
    channel.setLineMode = leftover.append
    channel.requestDone(request)
    channel.setTimeout(None)
    transport, channel.transport = channel.transport, None
    transport.unregisterProducer()
    return await take_over(transport, answer, b"".join(leftover))
