"""From an HTTP request to a stream: autobahn does the handshake, then the connection leaves HTTP for good.

Autobahn works on a transport in memory: it is given the request's head, nothing else, and its answer is what we send.
So none of the stream's bytes ever passes through it, and nothing of it is left behind afterwards.
"""

from __future__ import annotations

import socket
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionRequest
from twisted.internet.error import ConnectionLost
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BadRequest, TunnelError
from mtunnel_tx.net.kinds import Reactor, Request
from mtunnel_tx.ports.streams import Route
from mtunnel_tx.stream.link import Link, Relays, Terms
from mtunnel_tx.stream.peer import Peer, take_over
from mtunnel_tx.stream.stream import StreamLimits

log = Logger()

SUBPROTOCOL = "binary"


def asks_for_websocket(upgrade: str) -> bool:
    """Whether an Upgrade header, a list, names what we can become."""
    return "websocket" in [item.strip().lower() for item in upgrade.split(",")]


def check_handshake(request: Request, reactor: Reactor) -> None:
    """Refuse whatever `upgrade` would, before somebody is dialled whom a connection without bytes would end.

    Raises: TunnelError.
    """
    check_upgrade(request)
    shake_hands(request, reactor)


def check_upgrade(request: Request) -> None:
    """Refuse what cannot become a websocket, in Proxmox's words.

    Args: request: a twisted.web request that has an Upgrade header. Raises: TunnelError (500).
    """
    protocol = _header(request, b"upgrade")
    if not asks_for_websocket(protocol):
        raise TunnelError(f"unable to upgrade to protocol '{protocol}'")
    version = _header(request, b"sec-websocket-version")
    if version != "13":
        raise TunnelError(f"unsupported websocket-version '{version}'")
    if not _header(request, b"sec-websocket-key"):
        raise TunnelError("missing websocket-key")


def _header(request: Request, name: bytes) -> str:
    return clean((request.getHeader(name) or b"").decode("latin-1").strip())


class CapturedTransport:
    """Keeps what autobahn would send."""

    def __init__(self) -> None:
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent += data

    def loseConnection(self) -> None:
        """There is nothing to lose."""


class _Handshake(WebSocketServerProtocol):
    """Autobahn's server up to the 101."""

    refusal: str | None = None

    def onConnect(self, request: ConnectionRequest) -> str | None:
        return SUBPROTOCOL if SUBPROTOCOL in request.protocols else None

    def failHandshake(
        self,
        reason: str,
        code: int = 400,
        responseHeaders: object = None,  # noqa: N803
    ) -> None:
        self.refusal = reason


def shake_hands(request: Request, reactor: Reactor) -> bytes:
    """Let autobahn answer the handshake.

    Returns: the whole 101 response. Raises: BadRequest.
    """
    make_factory: Any = WebSocketServerFactory
    factory = make_factory(protocols=[SUBPROTOCOL], server="", reactor=reactor)
    factory.setProtocolOptions(openHandshakeTimeout=0)
    handshake = _Handshake()
    handshake.factory = factory
    transport = CapturedTransport()
    handshake.makeConnection(transport)
    handshake.dataReceived(_head(request))
    if handshake.refusal is not None or not transport.sent:
        raise BadRequest(f"websocket handshake failed: {handshake.refusal or 'incomplete request'}")
    return transport.sent


def _head(request: Request) -> bytes:
    """What autobahn is to see: it insists on `Connection: Upgrade`, which not all of Proxmox's clients send."""
    headers = request.requestHeaders.getAllRawHeaders()
    lines = [b" ".join((request.method, request.uri, request.clientproto)), b"Connection: Upgrade"]
    lines += [name + b": " + b",".join(values) for name, values in headers if name.lower() != b"connection"]
    return b"\r\n".join((*lines, b"", b""))


async def upgrade(
    request: Request, local: socket.socket, route: Route, *, relays: Relays, limits: StreamLimits, reactor: Reactor
) -> Link:
    """Turn a request into a stream between its connection and a UNIX socket.

    Args: request: a twisted.web request, nothing answered yet. local: connected; it belongs to the stream from now on,
    and is closed where there will be none.
    Returns: the stream, running; the request must not be touched any more.
    Raises: TunnelError: refused, to be answered as HTTP; ConnectionLost: there is nobody left to answer.
    """
    link = Link(relays, local, _terms(route, limits))
    try:
        check_upgrade(request)
        answer = shake_hands(request, reactor)
        # What followed the request in the same segment reaches the channel only after this turn of the reactor.
        await deferLater(reactor, 0)
        if request.channel is None:
            raise ConnectionLost("connection lost before the upgrade")
        route.opened(link)
    except BaseException:
        local.close()
        raise
    try:
        peer = await _leave_http(request, answer)
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
    channel.persistent = True
    channel.setLineMode = leftover.append
    channel.requestDone(request)
    channel.setTimeout(None)
    transport, channel.transport = channel.transport, None
    transport.unregisterProducer()
    return await take_over(transport, answer, b"".join(leftover))
