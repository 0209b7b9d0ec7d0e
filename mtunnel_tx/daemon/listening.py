"""The ports that a daemon listens on."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger

from mtunnel_tx.errors import TunnelError

log = Logger()


class Listeners:
    """All ports of a daemon, opened and closed together."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._ports: list[Any] = []  # IListeningPort, which is no type for mypy

    @property
    def are_open(self) -> bool:
        """Whether any port is."""
        return bool(self._ports)

    async def open(self, endpoints: Sequence[str], factory: Any) -> None:
        """Listen. Args: endpoints: Twisted's endpoint strings. Raises: TunnelError: `cannot listen on 'E': REASON`."""
        for text in endpoints:
            try:
                self._ports.append(await serverFromString(self._reactor, text).listen(factory))
                _lengthen_queue(self._ports[-1])
            except Exception as error:
                raise TunnelError(f"cannot listen on '{text}': {_reason(error)}") from error
        log.info("listening on {addresses}", addresses=", ".join(self.addresses()))

    async def close(self) -> None:
        """Take no more connections; those that are open stay."""
        for port in self._ports:
            stopping = port.stopListening()
            if isinstance(stopping, Deferred):
                await stopping

    def addresses(self) -> list[str]:
        """Where the daemon listens, as `HOST:PORT` or a path."""
        return [_shown(port.getHost()) for port in self._ports]


def _lengthen_queue(port: Any) -> None:
    """Let as many connections wait as the kernel allows. Twisted's 50 are few when many sources come at once: who finds
    no room tries again after a second, or later.
    """
    sock = getattr(port, "socket", None)
    if isinstance(sock, socket.socket):
        sock.listen(socket.SOMAXCONN)


def _reason(error: Exception) -> str:
    """Why nothing listens; where systemd holds the socket, only a look-up fails."""
    if isinstance(error, KeyError):
        return f"systemd passed no socket named {error}"
    return "systemd passed fewer sockets" if isinstance(error, IndexError) else str(error)


def _shown(address: Any) -> str:
    """`HOST:PORT` of an address, or a socket's path."""
    host = getattr(address, "host", None)
    return f"{host}:{address.port}" if host else os.fsdecode(getattr(address, "name", b"") or b"?")
