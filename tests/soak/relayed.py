"""`python -m tests.soak.relayed FOLDER [pump|reactor][,gc]`: what the relay's soak works on, a process of its own.

Real TLS, HTTP, upgrade and relay; each request `GET /NAME?abort_s=S` leads to the UNIX socket FOLDER/NAME, and is ended
by us after so many seconds where that is not 0. Says its port first, then one line of JSON about each stream's end.
With `gc` garbage is collected all the time, which brings out what holds memory that it should not.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

from twisted.internet import reactor as the_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import LoopingCall
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.http.handshake import check_handshake
from mtunnel_tx.http.upgrade import upgrade
from mtunnel_tx.stream.flow import Flow, FlowOutcome, Relay
from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.stream.pump import Pump
from mtunnel_tx.stream.reactorrelay import ReactorRelay
from mtunnel_tx.stream.unixside import dial
from mtunnel_tx.tls.certificate import make_certificate
from mtunnel_tx.tls.protocol import TlsContext, TlsFactory
from mtunnel_tx.wire.socketkinds import find_socket_kind

reactor: Any = the_reactor
RELAYS = {"pump": Pump, "reactor": ReactorRelay}
LIMITS = FlowLimits(half_close_s=300, linger_s=30)


class Route:
    """Where a stream leads."""

    vmid, token = 100, "soak@pve!t1"

    def __init__(self, file: Path) -> None:
        self.file = file
        self.kind = find_socket_kind(file.name)

    def opened(self, stream: object) -> None:
        """Everybody may."""

    async def closed(self, *, orderly: bool) -> None:
        """Nobody wants to know."""


class Upgrades(Resource):
    """Upgrades everything."""

    def __init__(self, folder: Path, relay: Relay) -> None:
        super().__init__()
        self.folder = folder
        self.relay = relay

    def getChild(self, path: bytes, request: Any) -> Resource:
        return self

    def render_GET(self, request: Any) -> int:
        Deferred.fromCoroutine(self.answer(request))
        return NOT_DONE_YET

    async def answer(self, request: Any) -> None:
        name, abort_s = request.path.decode().strip("/"), float(request.args[b"abort_s"][0])
        try:
            handshake = check_handshake(request)
            local = await dial(reactor, self.folder / name)
            flow = await upgrade(
                request, handshake, local, Route(self.folder / name), relay=self.relay, limits=LIMITS, reactor=reactor
            )
        except (ConnectionLost, TunnelError) as error:
            say(name=name, refused=str(error))
        else:
            self.follow(flow, name, abort_s)

    def follow(self, flow: Flow, name: str, abort_s: float) -> None:
        abort = reactor.callLater(abort_s, flow.abort) if abort_s else None

        def tell(outcome: FlowOutcome) -> None:
            if abort is not None and abort.active():
                abort.cancel()
            say(name=name, orderly=outcome.orderly, bytes_in=outcome.bytes_in, bytes_out=outcome.bytes_out)

        flow.done.addCallback(tell)


def say(**words: object) -> None:
    print(json.dumps(words), flush=True)


def main(folder: str, relay: str = "pump") -> None:
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    root = Path(folder)
    made = make_certificate("soak")
    for name, data in (("certificate.pem", made.certificate), ("key.pem", made.key)):
        (root / name).touch(mode=0o600)
        (root / name).write_bytes(data)
    context = TlsContext(root / "certificate.pem", root / "key.pem")
    name, _, collects = relay.partition(",")
    if collects:
        gc.set_threshold(20, 2, 2)
        LoopingCall(gc.collect).start(0.02)
    site = Site(Upgrades(root, RELAYS[name](reactor)))
    site.noisy = False
    port = reactor.listenTCP(0, TlsFactory(context, site, reactor), interface="127.0.0.1", backlog=256)
    reactor.callWhenRunning(say, port=port.getHost().port)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
