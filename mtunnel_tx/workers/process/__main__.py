"""python -m mtunnel_tx.workers.process NAME: started by the daemon, whose end of a channel is the standard input.

NAME is shown by `ps`.
"""

from __future__ import annotations

import signal
import socket
import sys
from typing import Any

import twisted.internet.reactor
from twisted.logger import FileLogObserver, LogEvent, Logger, eventAsText, globalLogBeginner

from mtunnel_tx.net.reactor import prepare
from mtunnel_tx.stream.pump import Pump
from mtunnel_tx.workers.process.confinement import confine
from mtunnel_tx.workers.process.service import WorkerService

log = Logger()
reactor: Any = twisted.internet.reactor
THREADS = 1
"""There is one worker for each core that may be used; a second pump thread would only compete with the first."""


def main() -> None:
    """Work until the daemon has ended, however it ended."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    observer: Any = FileLogObserver(sys.stderr, _show)
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    prepare(reactor)
    channel = socket.socket(fileno=sys.stdin.fileno())
    WorkerService(reactor, channel, Pump(reactor, threads=THREADS), _stop)
    for missing in confine():
        log.warn("{missing}", missing=missing)
    reactor.run()


def _stop() -> None:
    if reactor.running:
        reactor.stop()
    else:
        reactor.callWhenRunning(reactor.stop)


def _show(event: LogEvent) -> str | None:
    """Format without the time, which the daemon's log adds."""
    text = eventAsText(event, includeTimestamp=False, includeSystem=False)
    return f"{text}\n" if text else None


if __name__ == "__main__":
    main()
