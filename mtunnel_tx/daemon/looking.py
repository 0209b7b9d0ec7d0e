"""One look at the running daemon: what `mtunnel status` and the status page show."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from mtunnel_tx import __version__
from mtunnel_tx.config import Settings
from mtunnel_tx.net.admission import Admission
from mtunnel_tx.stream.native import find_native
from mtunnel_tx.tunnel.registry import Registry
from mtunnel_tx.watch.hoststatus import HostStatus, Usage
from mtunnel_tx.watch.move import MoveState


@dataclass(frozen=True, slots=True, kw_only=True)
class Looking:
    """What a look is made of.

    addresses: where the daemon listens. workers: the processes that carry streams. moves: those that come and go, and
    those that ended lately. pages: how many are kept up to date.
    """

    settings: Settings
    registry: Registry
    admission: Admission
    addresses: Callable[[], Sequence[str]]
    workers: Callable[[], Sequence[Mapping[str, int]]]
    moves: Callable[[], Awaitable[Sequence[MoveState]]]
    pages: Callable[[], int]

    async def look(self) -> HostStatus:
        """How things are now: everything is read at one moment, after the files of outgoing moves."""
        moves = tuple(await self.moves())
        return HostStatus(
            version=__version__,
            pid=os.getpid(),
            node=self.settings.node,
            listening=tuple(self.addresses()),
            workers=tuple(self.workers()),
            relay=find_native().summary(),
            is_draining=self.registry.draining,
            survives_restart=bool(self.settings.workers and self.settings.limits.restart_s),
            tunnels=tuple(self.registry.live()),
            moves=moves,
            held=dict(self.registry.held),
            limits=self._usage(),
        )

    def _usage(self) -> Mapping[str, Usage]:
        limits, tunnels = self.settings.limits, self.registry.live()
        tokens = [tunnel.token for tunnel in tunnels]
        return {
            "connections": Usage(self.admission.taken, limits.connections),
            "tunnels": Usage(len(tunnels), limits.tunnels),
            "tunnels_per_token": Usage(max(map(tokens.count, tokens), default=0), limits.tunnels_per_token),
            "streams_per_tunnel": Usage(max((one.streams for one in tunnels), default=0), limits.streams_per_tunnel),
            "page.streams": Usage(self.pages(), self.settings.page.streams),
        }
