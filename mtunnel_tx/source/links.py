"""The seams of a source: websockets that others open for it, and those who want to see how it goes on."""

from __future__ import annotations

import socket
from typing import Any, Protocol

from mtunnel_tx.ports import Clock

Json = Any
"""A JSON value of a peer: whoever reads it checks it."""


class Reactor(Clock, Protocol):
    """What a source needs of the reactor (IReactorTime, IReactorFDSet, IReactorSocket)."""

    def addReader(self, reader: object) -> object: ...

    def removeReader(self, reader: object) -> object: ...

    def addWriter(self, writer: object) -> object: ...

    def removeWriter(self, writer: object) -> object: ...

    def adoptStreamConnection(self, descriptor: int, family: int, factory: object) -> object: ...


class Link(Protocol):
    """A local socket joined with a websocket, in both directions."""

    def abort(self) -> None:
        """End both sides now, without a Close frame: nobody may take what has arrived for the whole."""

    async def ended(self) -> bool:
        """Wait for the end. Returns: whether both directions ended in an orderly way."""


class Dial(Protocol):
    """Open a websocket at the target and join it with a local socket."""

    async def __call__(self, path_query: str, sock: socket.socket) -> Link:
        """Takes `sock` over, whatever happens. `path_query` starts with `/api2/json`.

        End of file on `sock` is sent on as Close once every byte is out; Close there is end of file here.
        Frames are masked, unfragmented, of at most 131072 bytes. Raises: TunnelError.
        """


class Progress(Protocol):
    """Those who watch."""

    def say(self, text: str) -> None:
        """One line, clean."""

    def begin(self, label: str, total_bytes: int) -> None:
        """A disk's stream begins."""

    def advance(self, size_bytes: int) -> None:
        """More of it has gone out."""

    def finish(self) -> None:
        """The stream has ended, well or not."""
