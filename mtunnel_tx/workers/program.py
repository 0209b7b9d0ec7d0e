"""How a worker process is started: our own program, without any privilege that the daemon may have."""

from __future__ import annotations

import os
import pwd
import secrets
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtunnel_tx import __version__
from mtunnel_tx.backends.child import spawn_child
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.ports.holding import Store
from mtunnel_tx.ports.storage import Child
from mtunnel_tx.workers.channel import VERSION
from mtunnel_tx.workers.reachable import find_closed

WORKERS = "worker/"
WORKER = f"{WORKERS}{VERSION}/"
"""How their names in a store begin. A worker that speaks another version is ended, with its flows."""
RELEASE = f"{__version__}, {Path(__file__).parents[1]}"
"""Of this program, and where it lies; a worker that runs another one gets no more connections."""
KEPT_VARIABLES = ("PATH", "LANG", "PYTHONPATH", "COVERAGE_PROCESS_START")


class WorkerProgram:
    """Starts worker processes.

    Args: user: whom they run as where the daemon runs as root. label: their last argument, shown by `ps`.
    """

    def __init__(self, reactor: Any, environ: Mapping[str, str], *, user: str, label: str) -> None:
        self._reactor = reactor
        self._env = {name: environ[name] for name in KEPT_VARIABLES if name in environ}
        self._user = user
        self._label = label

    def spawn(self, channel: int, store: Store | None = None) -> Child:
        """Start one.

        Args: channel: a descriptor, its standard input. store: where it runs, so that it outlives us; None: it is our
        child. Raises: BackendFailed.
        """
        program = (sys.executable, "-P", "-m", "mtunnel_tx.workers.process", self._label)
        identity = _identity(self._user) if os.geteuid() == 0 else ()
        argv = ("setpriv", *identity, "--no-new-privs", "--pdeathsig", "TERM", "--", *program)
        if store is None:
            return spawn_child(self._reactor, argv, self._env, stdin=channel)
        with socket.socket(fileno=os.dup(channel)) as stdin:
            return store.spawn(f"{WORKER}{secrets.token_hex(8)}", argv, self._env, stdin)

    def explain(self) -> str | None:
        """Why one that was started may not have run, for people; None: nobody knows."""
        return find_closed(self._user) if os.geteuid() == 0 else None


def _identity(user: str) -> tuple[str, ...]:
    """The options of `setpriv` that turn a process of root's into one of this user's. Raises: BackendFailed."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError as error:
        raise BackendFailed(f"user: there is no user '{user}', and `workers` must not run as root") from error
    if entry.pw_uid == 0:
        raise BackendFailed(f"user: '{user}' is root, and `workers` must not run as root")
    return ("--reuid", str(entry.pw_uid), "--regid", str(entry.pw_gid), "--clear-groups")
