"""The output of a child program, cut into lines, with a bound on what waits to be read."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

_READ_BYTES = 1 << 16
LONGEST_OUTPUT_BYTES = 64 << 20


@implementer(IReadDescriptor)
class OutputPipe:
    """The reading end of a child's output. Reading pauses while more than `limit_bytes` wait to be taken.

    Args: changed: called when there is more to take, or nothing more to come.
    """

    def __init__(self, reactor: Any, fd: int, limit_bytes: int, changed: Callable[[], None]) -> None:
        self.closed = False
        self._reactor = reactor
        self._fd = fd
        self._limit_bytes = limit_bytes
        self._changed = changed
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._waiting_bytes = 0
        os.set_blocking(fd, False)
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._fd

    def logPrefix(self) -> str:  # noqa: N802
        return "child output"

    def doRead(self) -> None:  # noqa: N802
        self._read_some()
        if self._waiting_bytes >= self._limit_bytes:
            self._reactor.removeReader(self)
        self._changed()

    def connectionLost(self, reason: Failure) -> None:  # noqa: N802, ARG002
        """The reactor reports an end of file, which may belong to a closed descriptor that had the same number.

        Within one turn of the reactor a number can be closed and reused, so only reading tells whether this pipe ended.
        """
        self._read_all()
        if not self.closed and self._waiting_bytes < self._limit_bytes:
            self._reactor.addReader(self)
        self._changed()

    def take(self) -> bytes | None:
        """The next line. An unfinished line is returned only if no more of it can come in."""
        full = self._waiting_bytes >= self._limit_bytes
        if self._lines:
            line = self._lines.popleft()
        elif self._rest and (self.closed or full):
            line, self._rest = self._rest, b""
        else:
            return None
        self._waiting_bytes -= len(line)
        if full and not self.closed and self._waiting_bytes < self._limit_bytes:
            self._reactor.addReader(self)
        return line

    def empty(self) -> bool:
        """Whether the pipe is closed and everything was taken."""
        return self.closed and not self._lines and not self._rest

    def finish(self) -> None:
        """Read what is in the pipe and close it: programs that the child started may hold the other end open."""
        self._read_all()
        self._close()
        self._changed()

    def _read_all(self) -> None:
        for _ in range(LONGEST_OUTPUT_BYTES // _READ_BYTES):
            if not self._read_some():
                break

    def _read_some(self) -> bool:
        """Returns: whether anything came."""
        if self.closed:
            return False
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close()
            return False
        self._waiting_bytes += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines.extend(line + b"\n" for line in lines)
        return True

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            self._reactor.removeReader(self)
            os.close(self._fd)
