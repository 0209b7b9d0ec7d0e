"""A relay from websockets to a UNIX socket as everybody writes it first: `onMessage` in, `sendMessage` out.

python -m bench.autobahn_relay LISTEN_ENDPOINT UNIX_SOCKET
"""

from __future__ import annotations

import sys
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol, serverFromString
from twisted.internet.protocol import Protocol

any_reactor: Any = reactor


class Local(Protocol):
    """The UNIX side."""

    transport: Any

    def __init__(self, websocket: Any) -> None:
        self._websocket = websocket

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Pass it on."""
        self._websocket.sendMessage(data, isBinary=True)

    def connectionLost(self, reason: Any = None) -> None:  # noqa: ARG002, N802
        """End the other side."""
        self._websocket.sendClose()


class Websocket(WebSocketServerProtocol):
    """The network's side."""

    local: Local | None = None

    def onConnect(self, request: Any) -> str | None:  # noqa: N802
        """Speak `binary` where that is asked for."""
        return "binary" if "binary" in request.protocols else None

    def onOpen(self) -> None:  # noqa: N802
        """Connect the UNIX side."""
        self.early: list[bytes] = []
        endpoint = UNIXClientEndpoint(any_reactor, sys.argv[2])
        connectProtocol(endpoint, Local(self)).addCallback(self._connected)

    def _connected(self, local: Local) -> None:
        self.local = local
        for payload in self.early:
            self.onMessage(payload, True)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:  # noqa: ARG002, N802, N803
        """Pass it on."""
        if self.local is None or self.local.transport is None:
            self.early.append(payload)
        else:
            self.local.transport.write(payload)

    def onClose(self, *_: Any) -> None:  # noqa: N802
        """End the other side."""
        if self.local is not None and self.local.transport is not None:
            self.local.transport.loseConnection()


def main() -> None:
    """Serve until killed."""
    make_factory: Any = WebSocketServerFactory
    factory = make_factory(protocols=["binary"])
    factory.protocol = Websocket
    serverFromString(any_reactor, sys.argv[1]).listen(factory)
    any_reactor.run()


if __name__ == "__main__":
    main()
