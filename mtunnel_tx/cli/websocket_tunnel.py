"""`mtunnel websocket-tunnel`: the helper that a Proxmox source runs, between its pipes and websockets."""

from __future__ import annotations

import argparse
import socket
import sys
from typing import Any

from twisted.internet.stdio import StandardIO
from twisted.logger import (
    FilteringLogObserver,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)

from mtunnel_tx.cli.dialling import patience_of
from mtunnel_tx.cli.program import run_reactor
from mtunnel_tx.http.redial import open_lasting_stream
from mtunnel_tx.source.helper.orders import Websocket
from mtunnel_tx.source.helper.program import Helper
from mtunnel_tx.stream.flow import Flow
from mtunnel_tx.stream.reactorrelay import ReactorRelay

_DESCRIPTION = """\
A drop-in for `proxmox-websocket-tunnel`, which `qm remote-migrate` starts with pipes; it is not for people. JSON lines
come in on standard input: `connect` and `forward` with "control":true are for the helper, every other line goes to the
target, and its reply comes out on standard output. Complaints go to standard error. It ends when its input does."""


def configure(subparsers: Any) -> None:
    """Add `websocket-tunnel` to the commands of `mtunnel`."""
    parser = subparsers.add_parser(
        "websocket-tunnel",
        help="carry a Proxmox source's commands and streams, over its standard input and output",
        description=_DESCRIPTION,
    )
    parser.set_defaults(run=run, load=lambda _path, _environ: None)


def run(args: argparse.Namespace, _settings: None) -> int:
    """Serve the source until it has gone. Returns: the exit status."""
    from twisted.internet import reactor

    if not getattr(args, "verbose", False):
        _log_to_stderr()
    return run_reactor(reactor, lambda: _serve(reactor))


def _log_to_stderr() -> None:
    """Only what went wrong: sources show standard error to their operator."""
    wanted: Any = LogLevelFilterPredicate(defaultLogLevel=LogLevel.warn)
    observer: Any = FilteringLogObserver(_to_stderr(), [wanted])
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False, discardBuffer=True)


def _to_stderr() -> Any:
    return textFileLogObserver(sys.stderr)


async def _serve(reactor: Any) -> int:
    relay = ReactorRelay(reactor)

    async def open_websocket(websocket: Websocket, sock: socket.socket) -> Flow:
        path_query = websocket.path_query
        patience_s = patience_of(path_query)
        return await open_lasting_stream(
            reactor, websocket.endpoint, path_query, sock, relay=relay, patience_s=patience_s
        )

    helper = Helper(reactor, open_websocket)
    StandardIO(helper, reactor=reactor)
    try:
        await helper.done
        await helper.end()
    finally:
        helper.abort()
        await relay.stop()
        await helper.flush()
    return 0
