"""`twistd mtunnel`: the options of the daemon, and its process."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import twisted.internet.reactor
from twisted.application.internet import TimerService
from twisted.application.service import IService, MultiService, Service
from twisted.logger import globalLogBeginner, globalLogPublisher
from twisted.python import usage

from mtunnel_tx.backends.systemd import JournalObserver, Notifier
from mtunnel_tx.config import Settings, load_settings
from mtunnel_tx.daemon.compose import make_tls
from mtunnel_tx.daemon.log import quieten
from mtunnel_tx.daemon.service import Daemon
from mtunnel_tx.errors import TunnelError, os_reason
from mtunnel_tx.net.reactor import prepare
from mtunnel_tx.tunnel import audit

reactor: Any = twisted.internet.reactor
BEAT_S = 10.0


class Options(usage.Options):
    """What `twistd mtunnel` takes on its command line; `settings` is there after parsing."""

    synopsis = "[options]"
    longdesc = (
        "Receives virtual machines that a Proxmox VE cluster, or `mtunnel migrate`, sends. All settings are in the"
        " configuration file; `mtunnel init` makes a first one."
    )
    optParameters = [
        [
            "config",
            "c",
            None,
            "configuration file; else $MTUNNEL_CONFIG, else /etc/mtunnel/mtunnel.toml"
            " (not root: $XDG_CONFIG_HOME/mtunnel/mtunnel.toml)",
        ]
    ]
    optFlags = [["debug", None, "also log each request and each child program"]]
    settings: Settings

    def postOptions(self) -> None:
        """Read the file, try certificate and key. Raises: UsageError: `FILE: KEY: reason`."""
        path = self["config"]
        try:
            self.settings = load_settings(Path(path) if path else None, os.environ)
            make_tls(self.settings)
        except TunnelError as error:
            raise usage.UsageError(error.text) from error
        except OSError as error:
            raise usage.UsageError(os_reason(error)) from error


class Supervision(TimerService):
    """Tells systemd that we live and what we do, and its journal what tunnels did."""

    def __init__(self, notifier: Notifier, daemon: Daemon, journal: JournalObserver) -> None:
        super().__init__(min(BEAT_S, (notifier.watchdog_s or BEAT_S) / 3), self._tell)
        self._notifier = notifier
        self._daemon = daemon
        self._journal = journal

    def startService(self) -> None:
        """Begin; the records of tunnels that end with us are still written."""
        observer: Any = self._journal
        if self._journal.is_heard(os.environ):
            globalLogPublisher.addObserver(observer)
        super().startService()

    def _tell(self) -> None:
        self._notifier.alive()
        self._notifier.status(self._daemon.summary())


class HangUp(Service):
    """Lets SIGHUP read certificate and key again."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def startService(self) -> None:
        """Take the signal; the reactor does the work."""
        super().startService()
        signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(self._daemon.reload))

    def stopService(self) -> None:
        """Give the signal back."""
        super().stopService()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def makeService(options: Options) -> IService:
    """Build the daemon; it acts in startService only."""
    prepare(reactor)
    if not options["debug"]:
        quieten(globalLogBeginner)
    services: Any = MultiService()
    notifier = Notifier(os.environ, os.getpid())
    daemon = Daemon(options.settings, reactor, _end_in_failure, notifier=notifier)
    daemon.setServiceParent(services)
    Supervision(notifier, daemon, JournalObserver(audit.__name__, audit.FIELDS)).setServiceParent(services)
    HangUp(daemon).setServiceParent(services)
    service: IService = services
    return service


def _end_in_failure(reason: str) -> None:
    """End the process with exit status 1, which twistd itself never does, after everything was stopped in order."""
    print(f"mtunnel: {reason}", file=sys.stderr)
    reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
    reactor.callWhenRunning(reactor.stop)
