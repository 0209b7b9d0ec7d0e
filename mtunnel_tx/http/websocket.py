"""The last steps before a websocket: everything that can be refused is refused here, as plain HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.web.http import Request

from mtunnel_tx.errors import BackendFailed, Unreachable
from mtunnel_tx.http.handshake import Handshake, NoWebsocket, check_handshake
from mtunnel_tx.http.parameters import read_header
from mtunnel_tx.http.replies import Reply, data_reply, plain_reply
from mtunnel_tx.ports.streams import Route

Upgrader = Callable[[Request, Handshake, Route], Awaitable[None]]
"""Connects to the route's socket, answers 101 and relays from then on; returns once the request is taken over.

Raises, before anything was written: BackendFailed: nobody listens on the UNIX socket. WrongState: the tunnel has its
command connection already. ConnectionLost: the client has gone.
"""


async def open_websocket(request: Request, route: Route, socket: str, upgrader: Upgrader) -> Reply | None:
    """Answer a request with a valid ticket.

    Args: socket: its wire name, as sent. Returns: the refusal, or the answer to one that asks for no upgrade; None:
    the connection is a websocket now. Raises: BadRequest: autobahn refuses the handshake. Unreachable, WrongState.
    """
    if read_header(request, b"upgrade") is None:
        return data_reply({"socket": socket})
    try:
        handshake = check_handshake(request)
        await upgrader(request, handshake, route)
    except NoWebsocket as error:
        return plain_reply(error.status, error.text)
    except BackendFailed as error:
        raise Unreachable(error.text) from error
    return None
