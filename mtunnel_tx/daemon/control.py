"""What `mtunnel status`, `settle`, `drain` and `page` ask the running daemon for, through its control socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mtunnel_tx.errors import BadRequest, WrongState
from mtunnel_tx.net.controlsocket import ControlCommand
from mtunnel_tx.tunnel.registry import Registry
from mtunnel_tx.watch.hoststatus import HostStatus, status_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """Answers the commands of the control socket.

    look: the daemon's status. is_recovered: what a crash left has been looked at. end: called when a drained daemon's
    last tunnel has ended. make_link: `https://…` of the status page, for one log-in; takes the name or address of this
    host, empty: the default one.
    """

    registry: Registry
    look: Callable[[], Awaitable[HostStatus]]
    is_recovered: Callable[[], bool]
    end: Callable[[], None]
    make_link: Callable[[str], str]

    def commands(self) -> Mapping[str, ControlCommand]:
        """By their names."""
        return {"status": self._status, "settle": self._settle, "drain": self._drain, "page": self._page}

    async def _status(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        return status_json(await self.look())

    async def _page(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        host = request.get("host", "")
        if not isinstance(host, str):
            raise BadRequest("page takes a text `host`")
        return {"link": self.make_link(host)}

    async def _settle(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        vmid, discard = request.get("vmid"), request.get("discard")
        if not isinstance(vmid, int) or not isinstance(discard, bool):
            raise BadRequest("settle takes a number `vmid` and a truth value `discard`")
        return {"left": await self.settle(vmid, discard)}

    async def settle(self, vmid: int, discard: bool) -> list[str]:
        """Decide about a held VM. Returns: the volumes that stay. Raises: WrongState: not yet."""
        if not self.is_recovered():
            raise WrongState("what a crash left is being looked at; try again once the port is open")
        return await self.registry.settle(vmid, discard=discard)

    def drain(self) -> None:
        """Take no new tunnels, and end when the last one has ended."""
        self.registry.drain(self.end)

    async def _drain(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.drain()
        return {"tunnels": len(self.registry.live())}
