"""`twistd mtunnel`: the options of the daemon, and its process."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import twisted.internet.reactor
from twisted.application.service import IService, MultiService, Service
from twisted.python import usage

from mtunnel_tx.config import Settings, load_settings
from mtunnel_tx.daemon import Daemon, make_tls
from mtunnel_tx.errors import TunnelError

reactor: Any = twisted.internet.reactor


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
    settings: Settings

    def postOptions(self) -> None:
        """Read the file, try certificate and key. Raises: UsageError: `FILE: KEY: reason`."""
        path = self["config"]
        try:
            self.settings = load_settings(Path(path) if path else None, os.environ)
            make_tls(self.settings)
        except TunnelError as error:
            raise usage.UsageError(error.text) from error


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
    services = MultiService()
    daemon = Daemon(options.settings, reactor, _end_in_failure)
    daemon.setServiceParent(services)
    HangUp(daemon).setServiceParent(services)
    return services


def _end_in_failure(reason: str) -> None:
    """End the process with exit status 1, which twistd itself never does, after everything was stopped in order."""
    print(f"mtunnel: {reason}", file=sys.stderr)
    reactor.addSystemEventTrigger("after", "shutdown", os._exit, 1)
    reactor.callWhenRunning(reactor.stop)
