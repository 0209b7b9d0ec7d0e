"""The command connection of a tunnel: a UNIX socket on which lines go to its Answerer."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.interfaces import IReactorUNIX

from mtunnel_tx.config import Limits
from mtunnel_tx.net.linesocket import listen_lines
from mtunnel_tx.ports.lines import Answerer, Listening


async def listen_commands(
    reactor: IReactorUNIX, path: Path, answerer: Answerer, limits: Limits | None = None
) -> Listening:
    """Listen for one tunnel's command connection (ports.Listen); a stale file at `path` is replaced.

    Whether another connection may come is for the answerer to say; one that it refuses is closed at once.
    Raises: BackendFailed: `can't listen on 'PATH' - REASON`.
    """
    return await listen_lines(reactor, path, lambda: answerer, limits or Limits())
