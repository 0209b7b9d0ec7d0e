"""`mtunnel drain`: an upgrade without loss: the daemon takes no new tunnels, and ends with its last one."""

from __future__ import annotations

import argparse
from typing import Any

from mtunnel_tx.cli.output import add_json, answer
from mtunnel_tx.cli.status import PATIENCE_S, ask_daemon
from mtunnel_tx.config import Settings

_DESCRIPTION = """\
Let the daemon take no new tunnels and end, with exit status 0, when the last one is over. Virtual machines that it
started go on running."""


def configure(subparsers: Any) -> None:
    """Add `drain` to the commands of `mtunnel`."""
    text = "let the daemon end when its last tunnel has ended"
    parser = subparsers.add_parser("drain", help=text, description=_DESCRIPTION)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Tell the daemon, print how many tunnels it waits for. Returns: the exit code."""
    count = ask_daemon(settings, {"cmd": "drain"}, PATIENCE_S)["tunnels"]
    waiting = f"ends after {count} tunnel{'s' if count > 1 else ''}" if count else "ends now"
    answer(args, {"tunnels": count}, f"no new tunnels are taken; the daemon {waiting}")
    return 0
