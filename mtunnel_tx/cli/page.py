"""`mtunnel page`: a link that opens the daemon's status page, once."""

from __future__ import annotations

import argparse
from typing import Any

from mtunnel_tx.cli.output import add_json, answer
from mtunnel_tx.cli.status import PATIENCE_S, ask_daemon
from mtunnel_tx.config import Settings

_DESCRIPTION = """\
Print the address of the running daemon's status page, with a key that logs in once, within two minutes. Whoever has it
may do on the page what you may do with mtunnel settle and drain. The page is served to browsers on this host, unless
page.reach says otherwise; from elsewhere: ssh -L 8016:127.0.0.1:8016 HOST. The browser warns of the daemon's
own certificate: compare its fingerprint with that of mtunnel endpoint."""


def configure(subparsers: Any) -> None:
    """Add `page` to the commands of `mtunnel`."""
    text = "print a link to the status page, good for one log-in"
    parser = subparsers.add_parser("page", help=text, description=_DESCRIPTION)
    add_json(parser)
    parser.add_argument("--host", default="", help="name or address in the link (default: where the daemon listens)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Ask the daemon for a link and print it. Returns: the exit code."""
    link = ask_daemon(settings, {"cmd": "page", "host": args.host}, PATIENCE_S)["link"]
    answer(args, {"link": link}, link)
    return 0
