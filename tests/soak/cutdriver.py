"""`python -m tests.soak.cutdriver NODE ENDPOINT FOLDER PORT THREADS BYTES_S QUIET_S`: clients behind a proxy.

Reads one line of JSON for each round (the arguments of `Driver.round`), and answers with what came of it.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from twisted.internet import reactor as the_reactor
from twisted.logger import globalLogBeginner, textFileLogObserver

from mtunnel_tx.pve.maps import parse_endpoint
from mtunnel_tx.stream.pump import Pump
from tests.soak.lasting import Driver, Pace, through

reactor: Any = the_reactor


def serve(driver: Driver) -> None:
    for line in sys.stdin:
        driver.round(**json.loads(line))
        said = {"lasted": [asdict(one) for one in driver.lasted], "void": driver.void, "wrong": driver.wrong}
        print(json.dumps(said), flush=True)
    reactor.callFromThread(reactor.stop)


def main(node: str, endpoint: str, folder: str, port: str, threads: str, bytes_s: str, quiet_s: str) -> None:
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    driver = Driver(
        through(parse_endpoint(endpoint), int(port)),
        node,
        Path(folder),
        relay=Pump(reactor),
        pace=Pace(float(bytes_s)),
        threads=int(threads),
        quiet_s=float(quiet_s),
    )
    reactor.callWhenRunning(threading.Thread(target=serve, args=(driver,), daemon=True).start)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
