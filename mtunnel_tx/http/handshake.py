"""The websocket handshake of a request: checked once, before anything else is done for it.

Autobahn does the handshake on a transport in memory. It is given the head of the request and nothing else, and what it
sends is kept as our answer. So none of the stream's bytes ever pass through it, and nothing of it is left afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionRequest

from mtunnel_tx.errors import BadRequest, TunnelError
from mtunnel_tx.http.clienthandshake import SUBPROTOCOL, WEBSOCKET_VERSION
from mtunnel_tx.http.parameters import read_header
from mtunnel_tx.net.kinds import Request


class NoWebsocket(TunnelError):
    """The request cannot become a websocket; the text is Proxmox's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshake:
    """The websocket request of a client, checked.

    key: its Sec-WebSocket-Key. protocol: the subprotocol that was chosen, if any. answer: the whole 101 response.
    """

    key: str
    protocol: str | None
    answer: bytes


class _CapturedTransport:
    """Keeps what autobahn sends."""

    def __init__(self) -> None:
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent += data

    def loseConnection(self) -> None:
        """There is no connection here."""


def check_handshake(request: Request) -> Handshake:
    """Check a request that has an Upgrade header, and make the answer.

    Raises: NoWebsocket (500): another protocol or version, or no key. BadRequest (400): autobahn refuses it.
    """
    _check_words(request)
    server = _ServerHandshake()
    server.factory = _server_factory()
    transport = _CapturedTransport()
    server.makeConnection(transport)
    server.dataReceived(_head(request))
    if server.refusal is not None or not transport.sent:
        raise BadRequest(f"websocket handshake failed: {server.refusal or 'incomplete request'}")
    return Handshake(key=_text(request, b"sec-websocket-key"), protocol=server.chosen, answer=transport.sent)


def with_header(answer: bytes, name: str, value: str) -> bytes:
    """The answer, with one header more."""
    head, end, rest = answer.partition(b"\r\n\r\n")
    return head + f"\r\n{name}: {value}".encode("ascii") + end + rest


def _check_words(request: Request) -> None:
    """Refuse in Proxmox's words what autobahn would refuse in its own."""
    protocols = _text(request, b"upgrade").lower()
    if "websocket" not in [item.strip() for item in protocols.split(",")]:
        raise NoWebsocket(f"unable to upgrade to protocol '{protocols}'")
    version = _text(request, b"sec-websocket-version")
    if version != WEBSOCKET_VERSION:
        raise NoWebsocket(f"unsupported websocket-version '{version}'")
    if not _text(request, b"sec-websocket-key"):
        raise NoWebsocket("missing websocket-key")


def _text(request: Request, name: bytes) -> str:
    return read_header(request, name) or ""


class _ServerHandshake(WebSocketServerProtocol):
    """Autobahn's server, up to the 101."""

    refusal: str | None = None
    chosen: str | None = None

    def onConnect(self, request: ConnectionRequest) -> str | None:
        self.chosen = SUBPROTOCOL if SUBPROTOCOL in request.protocols else None
        return self.chosen

    def failHandshake(
        self,
        reason: str,
        code: int = 400,
        responseHeaders: object = None,  # noqa: N803
    ) -> None:
        self.refusal = reason


@cache
def _server_factory() -> Any:
    """The settings of all handshakes. There is nothing to wait for, so the reactor it demands may be any object."""
    make_factory: Any = WebSocketServerFactory
    factory: Any = make_factory(protocols=[SUBPROTOCOL], server="", reactor=object())
    factory.setProtocolOptions(openHandshakeTimeout=0)
    return factory


def _head(request: Request) -> bytes:
    """The head that autobahn is to see: it insists on `Connection: Upgrade`, which not all clients of Proxmox send."""
    headers = request.requestHeaders.getAllRawHeaders()
    lines = [b" ".join((request.method, request.uri, request.clientproto)), b"Connection: Upgrade"]
    lines += [name + b": " + b",".join(values) for name, values in headers if name.lower() != b"connection"]
    return b"\r\n".join((*lines, b"", b""))
