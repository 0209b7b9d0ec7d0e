"""From an HTTP request to a stream: the 101 is sent, then the connection leaves HTTP for good."""

from __future__ import annotations

import socket

from twisted.internet.error import ConnectionLost
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mtunnel_tx.http.handshake import Handshake
from mtunnel_tx.net.kinds import Reactor, Request
from mtunnel_tx.ports.streams import Route
from mtunnel_tx.stream.link import Link, Relays, Terms
from mtunnel_tx.stream.peer import Peer, take_over
from mtunnel_tx.stream.stream import StreamLimits

log = Logger()


async def upgrade(
    request: Request, handshake: Handshake, local: socket.socket, route: Route, *, relays: Relays,
    limits: StreamLimits, reactor: Reactor,
) -> Link:  # fmt: skip
    """Turn a request into a stream between its connection and a UNIX socket.

    Args: request: a twisted.web request, nothing answered yet. handshake: of this request. local: connected; it belongs
    to the stream from now on, and is closed where there will be none.
    Returns: the stream, running; the request must not be touched any more.
    Raises: TunnelError: refused, to be answered as HTTP; ConnectionLost: there is nobody left to answer.
    """
    link = Link(relays, local, _terms(route, limits))
    try:
        # What followed the request in the same segment reaches the channel only after this turn of the reactor.
        await deferLater(reactor, 0)
        if request.channel is None:
            raise ConnectionLost("connection lost before the upgrade")
        route.opened(link)
    except BaseException:
        local.close()
        raise
    try:
        peer = await _leave_http(request, handshake.answer)
    except BaseException:
        link.drop()
        raise
    link.start(peer)
    return link


def _terms(route: Route, limits: StreamLimits) -> Terms:
    async def closed(orderly: bool) -> None:
        await route.closed(orderly=orderly)

    return Terms(
        urgent=route.kind.urgent,
        ends_with_local=route.kind.ends_both,
        limits=limits,
        closed=closed,
    )


async def _leave_http(request: Request, answer: bytes) -> Peer:
    """Take the connection from the request's channel.

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
