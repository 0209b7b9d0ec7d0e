"""UNIX sockets here that lead to the target's: each connection gets a websocket of its own, with its own ticket."""

from __future__ import annotations

import socket
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mtunnel_tx.source.links import JoinedSocket, Reactor
from mtunnel_tx.source.localsocket import LocalSocket
from mtunnel_tx.source.tunnel import TargetTunnel

log = Logger()


class Forwards:
    """The forwards of one migration, all in one folder; `close` ends them with everything that goes through them."""

    def __init__(self, reactor: Reactor, tunnel: TargetTunnel, folder: Path, vmid: int) -> None:
        self._reactor = reactor
        self._tunnel = tunnel
        self._folder = folder
        self._vmid = vmid
        self._sockets: list[LocalSocket] = []
        self._links: list[JoinedSocket] = []

    def open(self, remote: str) -> Path:
        """Listen for connections to a socket of the target's. Returns: where. Raises: BackendFailed."""
        path = self._folder / f"{self._vmid}.out{len(self._sockets)}"
        self._sockets.append(LocalSocket(self._reactor, path, lambda sock: self._accept(remote, sock)))
        return path

    def _accept(self, remote: str, sock: socket.socket) -> None:
        Deferred.fromCoroutine(self._join(remote, sock)).addErrback(
            lambda failure: log.warn("cannot reach the target: {reason}", reason=failure.getErrorMessage())
        )

    async def _join(self, remote: str, sock: socket.socket) -> None:
        self._links.append(await self._tunnel.connect_stream(remote, sock))

    def close(self) -> None:
        """Stop listening, end what is still open."""
        for listening in self._sockets:
            listening.close()
        for link in self._links:
            link.abort()
