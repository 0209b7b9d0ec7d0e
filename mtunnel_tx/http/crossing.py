"""A websocket that goes on to another daemon: two streams, back to back on a pair of sockets.

An end in order passes from one to the other by itself: a Close frame becomes the end of file of a socket, and that a
Close frame again. An abort must not look like one, so whoever aborts takes the other along before its socket closes.
"""

from __future__ import annotations

import socket
from pathlib import Path

from mtunnel_tx.errors import Unreachable
from mtunnel_tx.http.client import open_stream
from mtunnel_tx.http.handshake import check_handshake
from mtunnel_tx.http.upgrade import upgrade
from mtunnel_tx.net.kinds import Reactor, Request
from mtunnel_tx.ports.streams import TunnelFlow
from mtunnel_tx.pve.maps import Endpoint
from mtunnel_tx.stream.flow import Flow, Relay
from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.wire.socketkinds import FORWARDED


class Crossing:
    """Both streams, each told when the other one breaks."""

    def __init__(self) -> None:
        self.near: Flow | None = None
        self.far: Flow | None = None
        self.is_broken = False

    async def near_closed(self, orderly: bool) -> None:
        await self._take_along(self.far, orderly)

    async def far_closed(self, orderly: bool) -> None:
        await self._take_along(self.near, orderly)

    async def _take_along(self, other: Flow | None, orderly: bool) -> None:
        """The first one to break waits until the other has let go of the pair, and does not meet its end of file."""
        if orderly or self.is_broken:
            return
        self.is_broken = True
        if other is not None:
            other.abort()
            await other.ended()


class NearRoute:
    """Where the client's own stream leads (ports.Route): into the pair."""

    kind = FORWARDED
    file = Path("crossing")
    vmid = 0
    token = ""

    def __init__(self, crossing: Crossing) -> None:
        self._crossing = crossing

    def check_room(self) -> None:
        """Whether there is any is for the other node to say."""

    def opened(self, flow: TunnelFlow) -> None:
        """The client's stream is about to run. Raises: Unreachable: there is nothing left that it could lead to."""
        if self._crossing.is_broken:
            raise Unreachable("the other side ended the connection")
        assert isinstance(flow, Flow)
        self._crossing.near = flow

    async def closed(self, *, orderly: bool) -> None:
        """The client's stream has ended."""
        await self._crossing.near_closed(orderly)


async def cross_over(
    request: Request, endpoint: Endpoint, headers: dict[str, str], *, relay: Relay, limits: FlowLimits,
    reactor: Reactor,
) -> None:  # fmt: skip
    """Open a websocket at the endpoint for this very request, then upgrade the request itself.

    Raises: TunnelError: `STATUS REASON` where the other side refused; ConnectionLost: the client has gone.
    """
    handshake = check_handshake(request)
    crossing = Crossing()
    here, there = socket.socketpair()
    try:
        far = crossing.far = await open_stream(
            reactor, endpoint, request.uri.decode("ascii"), there,
            relay=relay, limits=limits, headers=headers, closed=crossing.far_closed,
        )  # fmt: skip
    except BaseException:
        here.close()
        raise
    try:
        await upgrade(request, handshake, here, NearRoute(crossing), relay=relay, limits=limits, reactor=reactor)
    except BaseException:
        far.abort()
        raise
