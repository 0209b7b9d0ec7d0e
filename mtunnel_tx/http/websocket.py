"""The last checks before a websocket: everything that can be refused is refused here, as plain HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.web.http import Request

from mtunnel_tx.errors import BackendFailed, Unreachable
from mtunnel_tx.http.parameters import read_header
from mtunnel_tx.http.replies import Reply, data_reply, plain_reply
from mtunnel_tx.http.upgrade import asks_for_websocket
from mtunnel_tx.ports.streams import Route

WEBSOCKET_VERSION = "13"

Upgrader = Callable[[Request, Route], Awaitable[None]]
"""Dials the route's socket, answers 101 and relays from then on; returns once the request is taken over.

Raises, before anything was written: BackendFailed: nobody listens on the UNIX socket. WrongState: the tunnel has its
command connection already. ConnectionLost: the client has gone.
"""


async def open_websocket(request: Request, route: Route, socket: str, upgrader: Upgrader) -> Reply | None:
    """Answer a request with a valid ticket.

    Args: socket: its wire name, as sent. Returns: the refusal, or the answer to one that asks for no upgrade; None:
    the connection is a websocket now. Raises: Unreachable, WrongState.
    """
    asked = read_header(request, b"upgrade")
    if asked is None:
        return data_reply({"socket": socket})
    complaint = _complaint(request, asked)
    if complaint is not None:
        return plain_reply(500, complaint)
    try:
        await upgrader(request, route)
    except BackendFailed as error:
        raise Unreachable(error.text) from error
    return None


def _complaint(request: Request, asked: str) -> str | None:
    version = read_header(request, b"sec-websocket-version") or ""
    if not asks_for_websocket(asked):
        return f"unable to upgrade to protocol '{asked.lower()}'"
    if version != WEBSOCKET_VERSION:
        return f"unsupported websocket-version '{version}'"
    if not read_header(request, b"sec-websocket-key"):
        return "missing websocket-key"
    return None
