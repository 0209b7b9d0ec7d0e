"""Asks before something is lost for good: at a terminal; elsewhere --yes has to be given."""

from __future__ import annotations

import argparse
import signal
import sys

from mtunnel_tx.checks import clean
from mtunnel_tx.cli.program import STOPPING
from mtunnel_tx.errors import BadRequest, WrongState

_YES = ("y", "yes")


def add_yes(parser: argparse.ArgumentParser) -> None:
    """Let an action be told not to ask."""
    parser.add_argument("--yes", action="store_true", help="do not ask")


def agree(args: argparse.Namespace, what: str) -> None:
    """Go on only where somebody wants it; Ctrl-C is a no, and another signal ends the program.

    Args: what: a sentence about what is lost. Raises: BadRequest: there is nobody to ask. WrongState: a no.
    """
    if args.yes:
        return
    if not sys.stdin.isatty():
        raise BadRequest("--yes is needed where nobody can be asked")
    # The command's own handlers only note a signal, and the question would wait on. Nothing was begun yet.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOPPING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        print(f"{clean(what)}\nGo on? [y/N] ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        answer = ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if answer.strip().lower() not in _YES:
        raise WrongState("nothing was changed")
