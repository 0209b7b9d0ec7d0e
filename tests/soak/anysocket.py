"""`python -m tests.soak.anysocket CONFIG`: the real daemon, but its websockets lead to any UNIX socket in its folder.

A websocket to `/run/NAME` leads to `sockets/NAME` beside the configuration file, for every token and without a tunnel.
What its routes hear goes to `told`, one line of JSON each.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import twisted.internet.reactor
from twisted.logger import globalLogBeginner, textFileLogObserver

from mtunnel_tx.config import load_settings
from mtunnel_tx.daemon.service import Daemon
from mtunnel_tx.ports.streams import Route
from mtunnel_tx.tunnel.registry import Registry
from mtunnel_tx.wire.socketkinds import find_socket_kind

reactor: Any = twisted.internet.reactor


class AnyRoute:
    """Where one of them leads (ports.streams.Route)."""

    def __init__(self, root: Path, name: str, vmid: int, token: str) -> None:
        self.file = root / "sockets" / name
        self.kind = find_socket_kind(name)
        self.vmid, self.token, self.upid = vmid, token, "UPID:soak:"
        self._told = root / "told"

    def unused(self) -> None:
        """Each connection has one of its own there."""

    def check_room(self) -> None:
        """There is room."""

    def opened(self, flow: object) -> None:
        """Everybody may."""

    def parked(self, reason: str, waited_s: float) -> None:
        self._say(parked=reason)

    def resumed(self, waited_s: float) -> None:
        self._say(resumed=waited_s)

    async def closed(self, *, orderly: bool) -> None:
        self._say(orderly=orderly)

    def _say(self, **words: object) -> None:
        with self._told.open("a") as file:
            file.write(json.dumps({"name": self.file.name, **words}) + "\n")


def main(config: str) -> None:
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    file = Path(config)

    def route(_: Registry, vmid: int, path: str, token: str, ticket: str) -> Route:
        return AnyRoute(file.parent, Path(path).name, vmid, token)

    Registry.route = route  # type: ignore[method-assign]
    daemon = Daemon(load_settings(file, os.environ), reactor, lambda _: os._exit(1))
    reactor.addSystemEventTrigger("before", "shutdown", daemon.stopService)
    reactor.callWhenRunning(daemon.startService)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
