"""Lines from a peer that is not trusted. Each byte is searched once, in whatever pieces it arrives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from twisted.internet.protocol import Protocol


class LineProtocol(Protocol, ABC):
    """Splits received data at line feeds. (Twisted's LineReceiver searches a long line again for each piece.)"""

    transport: Any
    longest_bytes = 1 << 20

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._kept_bytes = 0

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        *ends, rest = data.split(b"\n")
        for end in ends:
            if self._keep(end):
                self.take_line(b"".join(self._parts))
            self._drop()
        self._keep(rest)

    def _keep(self, part: bytes) -> bool:
        """Add to the current line. Returns: whether it is within `longest_bytes`."""
        self._parts.append(part)
        self._kept_bytes += len(part)
        if self._kept_bytes > self.longest_bytes:
            self._drop()
            self.take_too_much()
            return False
        return True

    def _drop(self) -> None:
        self._parts, self._kept_bytes = [], 0

    @abstractmethod
    def take_line(self, line: bytes) -> None:
        """A line, without its line feed."""

    def take_too_much(self) -> None:
        """A line is longer than `longest_bytes`; its data was dropped."""
        self.hang_up()

    def write_line(self, line: bytes) -> None:
        """Send a line; the line feed is added."""
        if self.transport is not None:
            self.transport.write(line + b"\n")

    def hang_up(self) -> None:
        """End the connection at once."""
        if self.transport is not None:
            self.transport.abortConnection()
