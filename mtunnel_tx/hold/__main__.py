"""`python -m mtunnel_tx.hold RESTART_S RUNTIME_DIR`; standard input is the listening socket.

The directory is for `ps` only.
"""

from __future__ import annotations

import signal
import socket
import sys

from mtunnel_tx.hold.service import HolderService


def main() -> None:
    """Serve until there is no daemon any more."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    HolderService(socket.socket(fileno=sys.stdin.fileno()), float(sys.argv[1])).run()


if __name__ == "__main__":
    main()
