"""The command connection of a tunnel: a UNIX socket on which lines go to its Answerer."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IReactorUNIX
from twisted.internet.tcp import Connection

from mtunnel_tx.config import Limits
from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.net.linesocket import LineFactory, LineListening, listen_lines
from mtunnel_tx.ports.lines import CommandAnswerer, Listening


async def listen_commands(
    reactor: IReactorUNIX, path: Path, answerer: CommandAnswerer, limits: Limits | None = None
) -> Listening:
    """Listen for one tunnel's command connection (ports.Listen); a stale file at `path` is replaced.

    Whether another connection may come is for the answerer to say; one that it refuses is closed at once.
    Raises: BackendFailed: `can't listen on 'PATH' - REASON`.
    """
    return await listen_lines(reactor, path, lambda: answerer, limits or Limits(), answerer)


def resume_commands(
    reactor: Reactor, path: Path, answerer: CommandAnswerer, sock: socket.socket, pending: bytes, unsaid: bytes, *,
    limits: Limits,
) -> Listening:  # fmt: skip
    """See ports.Resume."""
    factory = LineFactory(reactor, lambda: answerer, limits, answerer)
    connection: Any = factory.build(answerer)
    sock.setblocking(False)
    transport = Connection(sock, connection, reactor)
    transport.connected = 1
    connection.makeConnection(transport)
    transport.startReading()
    connection.go_on(unsaid, pending)
    return LineListening(path, partial(path.unlink, missing_ok=True), factory)
