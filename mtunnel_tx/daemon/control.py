"""What `mtunnel status`, `settle` and `drain` ask the running daemon for, through its control socket."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mtunnel_tx import __version__
from mtunnel_tx.errors import BadRequest, WrongState
from mtunnel_tx.net.controlsocket import ControlCommand
from mtunnel_tx.stream.native import find_native
from mtunnel_tx.tunnel.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """Answers the commands of the control socket.

    addresses: where the daemon listens. workers: the processes that carry streams. is_recovered: what a crash left has
    been looked at. end: called when a drained daemon's last tunnel has ended. moves: those that come and go, and
    those that ended lately.
    """

    registry: Registry
    addresses: Callable[[], Sequence[str]]
    workers: Callable[[], Sequence[Mapping[str, int]]]
    is_recovered: Callable[[], bool]
    end: Callable[[], None]
    moves: Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]

    def commands(self) -> Mapping[str, ControlCommand]:
        """By their names."""
        return {"status": self._status, "settle": self._settle, "drain": self._drain}

    async def _status(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "listening": self.addresses(),
            "workers": self.workers(),
            "relay": find_native().summary(),
            "draining": self.registry.draining,
            "tunnels": [asdict(tunnel) for tunnel in self.registry.live()],
            "moves": await self.moves(),
            "held": {str(vmid): reason for vmid, reason in sorted(self.registry.held.items())},
        }

    async def _settle(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        vmid, discard = request.get("vmid"), request.get("discard")
        if not isinstance(vmid, int) or not isinstance(discard, bool):
            raise BadRequest("settle takes a number `vmid` and a truth value `discard`")
        if not self.is_recovered():
            raise WrongState("what a crash left is being looked at; try again once the port is open")
        return {"left": await self.registry.settle(vmid, discard=discard)}

    async def _drain(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take no new tunnels, and end when the last one has ended."""
        self.registry.drain(self.end)
        return {"tunnels": len(self.registry.live())}
