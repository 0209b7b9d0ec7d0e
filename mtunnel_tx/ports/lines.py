"""Sockets on which lines are answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol


class Answerer(Protocol):
    """What a command connection talks to: one line in, one reply out, one at a time."""

    async def answer(self, line: bytes) -> bytes:
        """Returns: the reply without its LF. Never raises."""

    def connected(self) -> bool:
        """Returns: False: this tunnel has its command connection already."""

    def disconnected(self) -> None:
        """The connection is over and every line that counts was answered."""


class Listening(Protocol):
    """A listening UNIX socket."""

    async def close(self) -> None:
        """Stop listening, end connections, remove the socket file."""


Listen = Callable[[Path, Answerer], Awaitable[Listening]]
"""Listen for a tunnel's command connection on a UNIX socket (mode 0600)."""
