"""Sockets on which lines are answered."""

from __future__ import annotations

import socket
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


class Scribe(Protocol):
    """Notes what comes over a command connection before anybody looks at it."""

    def accepted(self, sock: socket.socket) -> None:
        """This is the connection; it stays the caller's."""

    def heard(self, data: bytes) -> None:
        """These bytes have come."""

    def spoil(self) -> None:
        """Something has come that cannot be noted."""


class CommandAnswerer(Answerer, Scribe, Protocol):
    """What the command connection of a tunnel talks to."""


class Listening(Protocol):
    """A listening UNIX socket."""

    async def close(self) -> None:
        """Stop listening, end connections, remove the socket file."""


Listen = Callable[[Path, CommandAnswerer], Awaitable[Listening]]
"""Listen for a tunnel's command connection on a UNIX socket (mode 0600)."""

Resume = Callable[[Path, CommandAnswerer, socket.socket, bytes, bytes], Listening]
"""Go on with the command connection of an earlier daemon's tunnel, which belongs to the callee from then on.

Takes the path that it was accepted at, the socket, bytes that came and were not answered, and bytes to be sent first.
"""
