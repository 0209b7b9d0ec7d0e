"""`mtunnel status`: what the running daemon does, and what waits for a decision; also where no daemon runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.python.threadpool import ThreadPool

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.journal import COMING, LEAVING, FileJournal
from mtunnel_tx.backends.programs import HostPrograms
from mtunnel_tx.cli.moves import moves_table
from mtunnel_tx.cli.output import warn
from mtunnel_tx.config import Settings
from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.net.controlsocket import ask
from mtunnel_tx.net.reactor import prepare
from mtunnel_tx.ports.journal import Journal
from mtunnel_tx.source.amounts import format_time
from mtunnel_tx.source.journal import describe_standing
from mtunnel_tx.tunnel.ledger import fold
from mtunnel_tx.watch.leaving import read_leaving
from mtunnel_tx.watch.shape import move_json, read_move

PATIENCE_S = 10.0
WIDTH = 200
"""Columns where nobody watches: rows are not to be broken."""
HEADINGS = ("VMID", "STATE", "FOR", "STREAMS", "IN", "OUT", "TOKEN")


def configure(subparsers: Any) -> None:
    """Add `status` to the commands of `mtunnel`."""
    description = "Show the tunnels of the running daemon. Exit code 1: none answers."
    parser = subparsers.add_parser("status", help="show the tunnels of the running daemon", description=description)
    parser.add_argument("--json", action="store_true", help="the daemon's answer as it is")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Ask the daemon and print what it says. Returns: the exit code."""
    try:
        status = ask_daemon(settings, {"cmd": "status"}, PATIENCE_S)
    except BackendFailed as error:
        return _show_absence(args, settings, error)
    except TunnelError as error:
        if not args.json:
            raise
        print(json.dumps({"success": False, "msg": error.text}))
        return 1
    status |= {"departures": find_departures(settings)}
    status.setdefault("moves", [])
    if args.json:
        print(json.dumps(status, indent=2, sort_keys=True))
    else:
        show(status, datetime.now(UTC), make_console())
    return 0


def make_console() -> Console:
    """Standard output, for tables."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def find_departures(settings: Settings) -> dict[int, str]:
    """The VMs that a program sends from here, or that one has left half sent; no daemon knows them."""
    return describe_standing(_journal(settings, LEAVING), HostPrograms())


def _journal(settings: Settings, prefix: str) -> FileJournal:
    no_reactor: Any = None  # nothing is written, so no thread is needed
    return FileJournal(ReactorThreads(no_reactor, ThreadPool(0)), settings.state_dir, prefix)


def ask_daemon(settings: Settings, request: Mapping[str, Any], patience_s: float) -> dict[str, Any]:
    """Send one command through the control socket; blocks, once in a process.

    Returns: its reply. Raises: BackendFailed: no daemon answers. TunnelError: it refused.
    """
    replies: list[dict[str, Any]] = []
    errors: list[TunnelError] = []

    async def call(reactor: Any) -> None:
        prepare(reactor)
        try:
            replies.append(await ask(reactor, settings.runtime_dir / "control.sock", request, patience_s))
        except TunnelError as error:
            errors.append(error)

    try:
        react(lambda reactor: Deferred.fromCoroutine(call(reactor)))
    except SystemExit:
        for error in errors:
            raise error from None
    return _accepted(replies[0])


def _accepted(reply: dict[str, Any]) -> dict[str, Any]:
    if reply.get("success") is not True:
        raise TunnelError(str(reply.get("msg", "the daemon's reply cannot be read")))
    return reply


def show(status: Mapping[str, Any], now: datetime, console: Console) -> None:
    """Print the daemon's reply for people."""
    listening = ", ".join(status.get("listening", [])) or "nowhere yet"
    drain = ", takes no new tunnels" if status.get("draining") else ""
    head = f"mtunnel-tx {status['version']}, pid {status['pid']}, listening on {listening}{drain}"
    console.print(Text(head), soft_wrap=True)
    if "relay" in status:
        console.print(Text(f"streams run by: {status['relay']}"), soft_wrap=True)
    for worker in status.get("workers", []):
        line = f"worker process {worker['pid']}: {worker['connections']} connections, {worker['busy']} of them busy"
        console.print(Text(line), soft_wrap=True)
    if status["tunnels"]:
        console.print(_table(status["tunnels"], now))
        for line in _parked_lines(status["tunnels"], now):
            console.print(Text(line), soft_wrap=True)
    else:
        console.print("no tunnels")
    if moves := [read_move(move) for move in status.get("moves", [])]:
        console.print(moves_table(moves))
    for vmid, reason in status.get("held", {}).items():
        console.print(Text(f"VM {vmid} waits for 'mtunnel settle {vmid}': {reason}"), soft_wrap=True)
    for vmid, text in status.get("departures", {}).items():
        console.print(Text(f"VM {vmid} {text}"), soft_wrap=True)


def _parked_lines(tunnels: list[dict[str, Any]], now: datetime) -> Iterator[str]:
    """`VM 200: memory has lost its connection, waiting (0:12 of 10:00)`."""
    for tunnel in tunnels:
        for flow in tunnel.get("parked", ()):
            waited = f"{format_time(now.timestamp() - flow['since'])} of {format_time(flow['park_s'])}"
            yield f"VM {tunnel['vmid']}: {flow['socket']} has lost its connection, waiting ({waited})"


def _table(tunnels: list[dict[str, Any]], now: datetime) -> Table:
    table = Table(*HEADINGS, box=None, pad_edge=False)
    for tunnel in tunnels:
        age = timedelta(seconds=int(now.timestamp() - tunnel["since"]))
        sizes = [f"{tunnel[name] / (1 << 20):.1f} MiB" for name in ("bytes_in", "bytes_out")]
        cells = (str(tunnel["vmid"]), tunnel["state"], str(age), str(tunnel["streams"]), *sizes, tunnel["token"])
        # As Text, brackets are no markup.
        table.add_row(*map(Text, cells))
    return table


def _show_absence(args: argparse.Namespace, settings: Settings, error: TunnelError) -> int:
    journal = _journal(settings, COMING)
    waiting, unreadable = _standing(journal)
    departures = {} if unreadable else find_departures(settings)
    moves = read_leaving(settings.runtime_dir, HostPrograms())
    if args.json:
        known = {"journals": waiting, "departures": departures, "moves": [move_json(move) for move in moves]}
        more = {"journals_msg": unreadable} if unreadable else {}
        print(json.dumps({"success": False, "msg": error.text, **known, **more}))
        return 1
    for reason in filter(None, (error.text, unreadable)):
        warn(args, reason)
    for vmid in waiting:
        print(
            f"VM {vmid}: a tunnel did not end{describe_journal(journal, vmid)}; the daemon looks after it at its start"
        )
    for vmid, text in departures.items():
        print(f"VM {vmid} {text}")
    if moves:
        make_console().print(moves_table(moves))
    return 1


def _standing(journal: Journal) -> tuple[list[int], str]:
    """Returns: the VMIDs that have a journal, and why nobody knows, else an empty text."""
    try:
        return journal.standing(), ""
    except TunnelError as error:
        return [], error.text


def describe_journal(journal: Journal, vmid: int) -> str:
    """Returns: whose tunnel it was, how far it came and what it made, as far as the journal can be read."""
    try:
        owed = fold(vmid, journal.read(vmid) or [])
    except TunnelError as error:
        return f" ({error.text})"
    come = "given up by its source" if owed.handed_over else "may have run here" if owed.resuming else "not handed over"
    made = f", made {' '.join(owed.volumes)}" if owed.volumes else ""
    return f" ({owed.token or 'nobody'}, {come}{made})"
