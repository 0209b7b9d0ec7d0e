"""`twistd mtunnel` with a part exchanged, for comparison only.

python -m bench.launch CONFIG [--plain] [--relays pump|reactor] [--shared]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

from twisted.scripts import twistd

from mtunnel_tx.daemon import service as daemon
from mtunnel_tx.stream.pump import Pump
from mtunnel_tx.stream.reactorrelay import ReactorRelay
from mtunnel_tx.tunnel import sockets
from mtunnel_tx.tunnel.sockets import Socket
from mtunnel_tx.wire.socketkinds import DISK_IMPORT, SocketKind

SHARED = {DISK_IMPORT: replace(DISK_IMPORT, single=False)}
RELAYS = {"pump": Pump, "reactor": ReactorRelay}


def _shared_socket(*, kind: SocketKind, **fields: Any) -> Socket:
    return Socket(kind=SHARED.get(kind, kind), **fields)


def exchange(*, plain: bool, relays: str | None, shared: bool) -> None:
    """Give the daemon other parts: no TLS, one way to run streams or the other, many streams for one import."""
    parts: Any = daemon
    if plain:
        parts.TlsFactory = lambda _context, site, *_, **__: site
    if shared:
        names: Any = sockets
        names.Socket = _shared_socket
    if relays is not None:
        for name in ("Pump", "ReactorRelay"):
            if hasattr(parts, name):
                setattr(parts, name, RELAYS[relays])


def main() -> None:
    """Exchange the parts, then be twistd."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--relays", choices=RELAYS)
    parser.add_argument("--shared", action="store_true")
    options = parser.parse_args()
    exchange(plain=options.plain, relays=options.relays, shared=options.shared)
    sys.argv = ["twistd", "-n", "--pidfile=", "mtunnel", "--config", options.config]
    twistd.run()


if __name__ == "__main__":
    main()
