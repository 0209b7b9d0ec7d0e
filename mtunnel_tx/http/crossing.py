"""A websocket that is forwarded to another daemon: two flows, joined by a socket pair.

An end in order passes from one flow to the other by itself: a Close frame becomes the end of file of a socket, and that
becomes a Close frame again. A failure must not look like an end in order: the flow that fails first aborts the other
one before it closes its socket of the pair.
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
    """Both flows, each aborted when the other one fails."""

    def __init__(self) -> None:
        self.near: Flow | None = None
        self.far: Flow | None = None
        self.is_broken = False

    async def near_closed(self, orderly: bool) -> None:
        await self._abort_too(self.far, orderly)

    async def far_closed(self, orderly: bool) -> None:
        await self._abort_too(self.near, orderly)

    async def _abort_too(self, other: Flow | None, orderly: bool) -> None:
        """The first one to fail waits until the other has closed its socket, which so never sees an end of file."""
        if orderly or self.is_broken:
            return
        self.is_broken = True
        if other is not None:
            other.abort()
            await other.ended()


class NearRoute:
    """Where the client's own flow leads (ports.Route): to the pair."""

    kind = FORWARDED
    file = Path("crossing")
    vmid = 0
    token = upid = ""

    def __init__(self, crossing: Crossing) -> None:
        self._crossing = crossing

    def check_room(self) -> None:
        """The other node checks that."""

    def unused(self) -> TunnelFlow | None:
        """None: the other node looks for it."""
        return None

    def opened(self, flow: TunnelFlow) -> None:
        """The client's flow is about to run. Raises: Unreachable: the other flow has ended already."""
        if self._crossing.is_broken:
            raise Unreachable("the other side ended the connection")
        assert isinstance(flow, Flow)
        self._crossing.near = flow

    def parked(self, reason: str, waited_s: float) -> None:
        """Each of both flows ends with its connection."""

    def resumed(self, waited_s: float) -> None:
        """The same."""

    async def closed(self, *, orderly: bool) -> None:
        """The client's flow has ended."""
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
