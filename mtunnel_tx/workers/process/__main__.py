"""python -m mtunnel_tx.workers.process NAME: started by the daemon, whose end of a channel is the standard input.

NAME is for whoever reads `ps`.
"""

from __future__ import annotations

import signal
import socket
import sys
from typing import Any

import twisted.internet.reactor
from twisted.logger import FileLogObserver, LogEvent, eventAsText, globalLogBeginner

from mtunnel_tx.net.epoll import close_hole
from mtunnel_tx.stream.pump import Pump
from mtunnel_tx.workers.process.service import FrontProcess

reactor: Any = twisted.internet.reactor
THREADS = 1
"""The fronts are as many as there are to be threads; one is better than two that wait for each other."""


def main() -> None:
    """Work until the daemon has gone, however it went."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    observer: Any = FileLogObserver(sys.stderr, _show)
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    close_hole(reactor)
    channel = socket.socket(fileno=sys.stdin.fileno())
    FrontProcess(reactor, channel, Pump(reactor, threads=THREADS), _stop)
    reactor.run()


def _stop() -> None:
    if reactor.running:
        reactor.stop()
    else:
        reactor.callWhenRunning(reactor.stop)


def _show(event: LogEvent) -> str | None:
    """The daemon's log has the time."""
    text = eventAsText(event, includeTimestamp=False, includeSystem=False)
    return f"{text}\n" if text else None


if __name__ == "__main__":
    main()
