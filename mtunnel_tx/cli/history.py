"""`mtunnel history`: the moves that are over, also where no daemon runs."""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtunnel_tx.cli.program import read_vmid
from mtunnel_tx.config import Settings
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.local import make_history
from mtunnel_tx.watch.history import FinishedMove

_DESCRIPTION = """\
Show the moves that are over, the newest last: when, which VM, from or to where, and what became of it. `--json` prints
a list of objects: vmid, kind, direction (in, out), token, peer, upid, since_s (seconds since the epoch), duration_s,
outcome, reason, problem, bytes_in, bytes_out, phases (names to seconds after the begin)."""
_SINCE = "since a date (2026-11-28, 2026-11-28T10:00), or so long ago (30m, 12h, 7d, 4w)"
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGE = re.compile(r"(\d{1,6})([mhdw])")
WIDTH = 200
HEADINGS = ("WHEN", "VMID", "", "PEER", "OUTCOME", "TIME", "MiB IN", "MiB OUT", "TOKEN")


def configure(subparsers: Any) -> None:
    """Add `history` to the commands of `mtunnel`."""
    parser = subparsers.add_parser("history", help="show the moves that are over", description=_DESCRIPTION)
    parser.add_argument("--since", type=read_since, metavar="WHEN", help=_SINCE)
    parser.add_argument("--vmid", type=read_vmid, metavar="VMID", help="of this VM only")
    parser.add_argument("--limit", type=_positive, default=100, metavar="N", help="so many at most (default: 100)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def read_since(text: str) -> float:
    """Returns: seconds since the epoch. Raises: ArgumentTypeError."""
    if age := _AGE.fullmatch(text):
        return time.time() - int(age[1]) * _UNITS[age[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a date nor a time like 12h or 7d") from error


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 to 1000000")
    return int(text)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print what the file says. Returns: the exit code."""
    try:
        moves = make_history(settings).find(since_s=args.since, vmid=args.vmid, limit=args.limit)
    except sqlite3.Error as error:
        raise BackendFailed(f"the history cannot be read: {error}") from error
    moves.reverse()
    if args.json:
        print(json.dumps([asdict(move) for move in moves], indent=2))
    elif moves:
        Console(width=None if sys.stdout.isatty() else WIDTH).print(_table(moves))
    else:
        print("no moves")
    return 0


def _table(moves: Iterable[FinishedMove]) -> Table:
    table = Table(*HEADINGS, box=None, pad_edge=False)
    for move in moves:
        when = datetime.fromtimestamp(move.since_s).astimezone().isoformat(" ", "seconds")[:19]
        sizes = [f"{size / (1 << 20):.1f}" for size in (move.bytes_in, move.bytes_out)]
        outcome = ": ".join(filter(None, (move.outcome, move.problem or move.reason)))
        took = str(timedelta(seconds=round(move.duration_s)))
        # As Text, brackets are no markup.
        table.add_row(*map(Text, (when, str(move.vmid), move.direction, move.peer, outcome, took, *sizes, move.token)))
    return table
