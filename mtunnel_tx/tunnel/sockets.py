"""The sockets of a tunnel: wire names, the files behind them, and the relays that use them.

The path that a peer sends is a name to look up here, never a path to open.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import Deferred

from mtunnel_tx.errors import WrongState
from mtunnel_tx.ports.clock import Clock
from mtunnel_tx.ports.events import ByteCount
from mtunnel_tx.ports.holding import LivingFlow
from mtunnel_tx.ports.streams import TunnelFlow
from mtunnel_tx.pve.guestlayout import GuestLayout
from mtunnel_tx.wire.socketkinds import COMMANDS, SOCKET_KINDS, SocketFolder, SocketKind, find_socket_kind

Ended = Callable[[bool], Awaitable[None]]
_OWN_SUFFIXES = [re.escape(kind.suffix) for kind in SOCKET_KINDS if kind.folder is SocketFolder.TUNNEL]
_OURS = re.compile(rf"([1-9][0-9]*)({'|'.join(_OWN_SUFFIXES)})")

WORKING_KINDS = tuple(kind for kind in SOCKET_KINDS if kind is not COMMANDS)
"""All but the command connection, which ends after the last replies."""


def remove_stale(runtime_dir: Path, but: Collection[int] = ()) -> None:
    """Remove the sockets that tunnels of an earlier daemon left, but some VMIDs'; a QEMU's own may be in use."""
    for file in runtime_dir.glob("*"):
        match = _OURS.fullmatch(file.name)
        if match and int(match[1]) not in but:
            file.unlink(missing_ok=True)


async def _ignore(_orderly: bool) -> None:
    """For sockets where nothing depends on the end of a relay."""


def _nobody(*_: object) -> None:
    """Nobody is told yet."""


@dataclass(slots=True, kw_only=True, eq=False)
class Socket:
    """One socket of a live tunnel; `ended(orderly)` hears of the end of each relay that leads to it."""

    kind: SocketKind
    name: str
    file: Path
    ended: Ended = _ignore


class SocketTable:
    """All sockets of one tunnel by wire name, and all relays that lead to them.

    Args: folders: of the tunnel's own sockets, and of those that QEMU makes. `upid`: of the tunnel's task. `parked`,
    `resumed`: are called for each flow that loses its connection, with the reason and how long ago, and that has
    another one.
    """

    def __init__(
        self, layout: GuestLayout, vmid: int, token: str, folders: tuple[Path, Path], most_streams: int
    ) -> None:
        self._layout = layout
        self.vmid = vmid
        self.token = token
        self.most_streams = most_streams
        self.routes: list[SocketRoute] = []
        self.flows = 0
        self._count_before = ByteCount(0, 0)
        self.upid = ""
        self.parked: Callable[[SocketRoute, str, float], object] = _nobody
        self.resumed: Callable[[SocketRoute, float], object] = _nobody
        self._began: Callable[[SocketRoute], object] = _nobody
        self._ended: Callable[[SocketRoute, bool], object] = _nobody
        self._own_dir, self._machine_dir = folders
        self._sockets: dict[str, Socket] = {}

    def watch(self, began: Callable[[SocketRoute], object], ended: Callable[[SocketRoute, bool], object]) -> None:
        """Have `began` called for each flow, and `ended` with whether its end was orderly."""
        self._began, self._ended = began, ended

    def name(self, kind: SocketKind) -> str:
        """The wire name, e.g. `/run/qemu-server/100.storage`."""
        return self._layout.socket_name(self.vmid, kind.suffix)

    def file(self, kind: SocketKind) -> Path:
        """The socket file on this host."""
        folder = self._machine_dir if kind.folder is SocketFolder.MACHINE else self._own_dir
        return folder / f"{self.vmid}{kind.suffix}"

    def add(self, kind: SocketKind, *, ended: Ended = _ignore) -> Socket:
        """Let websockets lead to a socket from now on."""
        socket = Socket(kind=kind, name=self.name(kind), file=self.file(kind), ended=ended)
        self._sockets[socket.name] = socket
        return socket

    def lead_back(self, flow: LivingFlow, *, ended: Ended = _ignore) -> None:
        """Count in a flow that was one before this daemon began; its socket may be no other flow's any more."""
        kind = find_socket_kind(f"{self.vmid}{flow.suffix}")
        found = self.find(self.name(kind))
        socket = found or Socket(kind=kind, name=self.name(kind), file=self.file(kind), ended=ended)
        flow.adopt(SocketRoute(self, socket, has_room=True))

    def find(self, name: str) -> Socket | None:
        """The socket of a wire name, written with one slash in front."""
        return self._sockets.get(name)

    def suffixes(self) -> list[str]:
        """Of the sockets that websockets may lead to."""
        return [socket.kind.suffix for socket in self._sockets.values()]

    def drop(self, kind: SocketKind) -> None:
        """Forget a socket; a relay that runs through it goes on."""
        self._sockets.pop(self.name(kind), None)

    def abort_streams(self, kinds: Collection[SocketKind] = WORKING_KINDS) -> None:
        """End all relays to sockets of these kinds: a relay never outlives its tunnel."""
        for route in list(self.routes):
            if route.kind in kinds:
                route.abort()

    async def wait_for_end(self, kind: SocketKind, clock: Clock, wait_s: float) -> None:
        """Wait until no relay leads to a socket of this kind; one that takes longer is aborted."""
        for route in [route for route in self.routes if route.kind is kind]:
            timer = clock.callLater(wait_s, route.abort)
            await route.over
            if timer.active():
                timer.cancel()

    def traffic(self) -> ByteCount:
        """Payload bytes from and to the peer, all flows of this tunnel together."""
        counts = [self._count_before, *(route.traffic() for route in self.routes)]
        return ByteCount(sum(count.bytes_in for count in counts), sum(count.bytes_out for count in counts))

    def count_in(self, route: SocketRoute) -> None:
        """A flow has begun."""
        self.flows += 1
        route.number = self.flows
        self.routes.append(route)
        self._began(route)

    def count_out(self, route: SocketRoute, orderly: bool) -> None:
        """A flow has ended; nothing happens where it was none."""
        if route in self.routes:
            before, last = self._count_before, route.traffic()
            self._count_before = ByteCount(before.bytes_in + last.bytes_in, before.bytes_out + last.bytes_out)
            self.routes.remove(route)
            self._ended(route, orderly)
            route.over.callback(None)


class SocketRoute:
    """One websocket's way to a socket (ports.Route); `over` fires when its relay has ended.

    `number` counts the tunnel's flows, from 1 on; 0 before it is one. Args: has_room: it is counted already.
    """

    def __init__(self, table: SocketTable, socket: Socket, *, has_room: bool = False) -> None:
        self.kind = socket.kind
        self.file = socket.file
        self.vmid = table.vmid
        self.token = table.token
        self.upid = table.upid
        self.stream: TunnelFlow | None = None
        self.over: Deferred[None] = Deferred()
        self.number = 0
        self._table = table
        self._socket = socket
        self._has_room = has_room

    def check_room(self) -> None:
        """Raises: WrongState: there is no room for it."""
        if self._has_room:
            return
        taken = self._table.routes
        if self.kind.single and self._flows():
            raise WrongState(f"tunnel of VM {self.vmid} has its connection for {self.kind.name} already")
        if len(taken) >= self._table.most_streams:
            raise WrongState(f"too many streams in the tunnel of VM {self.vmid}")

    def unused(self) -> TunnelFlow | None:
        """A parked flow to the same socket, where that takes one, that has carried nothing.

        Who opened it never heard the answer, and asks again: the socket's owner still waits at that flow's end.
        """
        return next((flow for flow in self._flows() if self.kind.single and flow.is_unused), None)

    def _flows(self) -> list[TunnelFlow]:
        """To the same socket."""
        same = [route.stream for route in self._table.routes if route._socket is self._socket]
        return [flow for flow in same if flow is not None]

    def opened(self, flow: TunnelFlow) -> None:
        """Count the relay in. Raises: WrongState: others were faster."""
        self.check_room()
        self.stream = flow
        self._table.count_in(self)

    def traffic(self) -> ByteCount:
        """What it has carried up to now."""
        return ByteCount(self.stream.bytes_in, self.stream.bytes_out) if self.stream else ByteCount(0, 0)

    def parked(self, reason: str, waited_s: float) -> None:
        """The relay goes on without a connection; a UNIX side that is over has no interest in it."""
        if self in self._table.routes:
            self._table.parked(self, reason, waited_s)

    def resumed(self, waited_s: float) -> None:
        """It has one again."""
        if self in self._table.routes:
            self._table.resumed(self, waited_s)

    async def closed(self, *, orderly: bool) -> None:
        """The relay has ended; an importer hears of it before the UNIX socket is closed."""
        self._table.count_out(self, orderly)
        await self._socket.ended(orderly)

    def abort(self) -> None:
        """End the relay now."""
        if self.stream:
            self.stream.abort()
