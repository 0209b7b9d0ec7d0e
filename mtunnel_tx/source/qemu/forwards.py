"""UNIX sockets here that lead to the target's: each connection gets a websocket of its own, with its own ticket."""

from __future__ import annotations

import socket
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mtunnel_tx.source.links import JoinedSocket, Reactor
from mtunnel_tx.source.localsocket import LocalSocket
from mtunnel_tx.source.tunnel import TargetTunnel

log = Logger()


class _Forwarded:
    """One connection from here; `cut` ends it, whether it has reached the target or not."""

    def __init__(self, tunnel: TargetTunnel, remote: str, sock: socket.socket, ticket: str | None) -> None:
        self._link: JoinedSocket | None = None
        self._work = Deferred.fromCoroutine(self._join(tunnel, remote, sock, ticket)).addErrback(_report)

    async def _join(self, tunnel: TargetTunnel, remote: str, sock: socket.socket, ticket: str | None) -> None:
        self._link = await tunnel.connect_stream(remote, sock, ticket)

    def cut(self) -> None:
        if self._link is not None:
            self._link.abort()
        self._work.cancel()


class Forwards:
    """The forwards of one migration, all in one folder; `close` ends them with everything that goes through them."""

    def __init__(self, reactor: Reactor, tunnel: TargetTunnel, folder: Path, vmid: int) -> None:
        self._reactor = reactor
        self._tunnel = tunnel
        self._folder = folder
        self._vmid = vmid
        self._sockets: list[LocalSocket] = []
        self._remotes: dict[Path, str] = {}
        self._tickets: dict[Path, str] = {}
        self._forwarded: list[_Forwarded] = []
        self._fresh: dict[Path, _Forwarded] = {}

    def open(self, remote: str) -> Path:
        """Listen for connections to a socket of the target's. Returns: where. Raises: BackendFailed."""
        path = self._folder / f"{self._vmid}.out{len(self._sockets)}"
        self._sockets.append(LocalSocket(self._reactor, path, lambda sock: self._accept(path, sock)))
        self._remotes[path] = remote
        return path

    async def prepare(self, path: Path) -> None:
        """Reach the target, and have what the next connection from here needs. Raises: TunnelError."""
        self._fresh.pop(path, None)
        self._tickets[path] = await self._tunnel.ticket(self._remotes[path])

    def cut_fresh(self, path: Path) -> bool:
        """End the connection that came since `prepare`. Returns: whether one did; others there are left alone."""
        forwarded = self._fresh.pop(path, None)
        if forwarded is not None:
            forwarded.cut()
        return forwarded is not None

    def _accept(self, path: Path, sock: socket.socket) -> None:
        ticket = self._tickets.pop(path, None)
        forwarded = self._fresh[path] = _Forwarded(self._tunnel, self._remotes[path], sock, ticket)
        self._forwarded.append(forwarded)

    def close(self) -> None:
        """Stop listening, end what is still open."""
        for listening in self._sockets:
            listening.close()
        for forwarded in self._forwarded:
            forwarded.cut()


def _report(failure: Failure) -> None:
    if failure.check(CancelledError) is None:
        log.warn("cannot reach the target: {reason}", reason=failure.getErrorMessage())
