"""A TCP port that leads to a VM's screen, which QEMU offers at a UNIX socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.protocols.portforward import ProxyClientFactory, ProxyFactory, ProxyServer

from mtunnel_tx.errors import BackendFailed


class _Viewer(ProxyServer):
    """A viewer's connection: Twisted's own forwarding, but to a UNIX socket."""

    factory: Any
    transport: Any

    def connectionMade(self) -> None:  # noqa: N802
        self.transport.pauseProducing()
        client = ProxyClientFactory()
        client.setServer(self)
        self.factory.reactor.connectUNIX(str(self.factory.path), client)


class _Viewers(ProxyFactory):
    protocol = _Viewer

    def __init__(self, reactor: Any, path: Path) -> None:
        super().__init__(str(path), 0)
        self.reactor = reactor
        self.path = path


class VncPort:
    """A port that viewers connect to."""

    def __init__(self, port: Any) -> None:
        self._port = port

    @property
    def shown(self) -> str:
        """`ADDRESS:PORT`."""
        address = self._port.getHost()
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{host}:{address.port}"

    async def close(self) -> None:
        """Take no more connections."""
        await maybeDeferred(self._port.stopListening)


async def listen_vnc(path: Path, address: str, port: int) -> VncPort:
    """Args: path: the UNIX socket. port: 0 for any. Raises: BackendFailed: the port cannot be had."""
    from twisted.internet import reactor

    ports: Any = reactor
    try:
        return VncPort(ports.listenTCP(port, _Viewers(reactor, path), interface=address))
    except CannotListenError as error:
        raise BackendFailed(f"cannot listen on {address}:{port}: {error.socketError}") from error
