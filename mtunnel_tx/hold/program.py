"""A program that the holder has started: its output by lines, until the daemon has dealt with them, and its end."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence

from mtunnel_tx.hold.shelf import Refused
from mtunnel_tx.sessions import kill_session

OUTPUT_BYTES = 1 << 20
LONGEST_LINE_BYTES = 1 << 14
"""One message has to hold a line, whatever its bytes are in JSON: six characters for each of them at the most."""
LINE_COST_BYTES = 64
READ_BYTES = 1 << 15
PIPE_BYTES = 1 << 16
"""What is in a pipe at the most, unless somebody has made it larger."""


class HeldProgram:
    """See the module. `lines[0]` has the number `first`; `code`: None: it runs.

    Args: stdin: a descriptor; None: nothing. Raises: Refused: it cannot be started.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], stdin: int | None) -> None:
        try:
            self._process = subprocess.Popen(
                argv, env=dict(env), stdin=subprocess.DEVNULL if stdin is None else stdin, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise Refused(str(error)) from error
        assert self._process.stdout is not None
        self.pid = self._process.pid
        self.output = self._process.stdout.fileno()
        self.ending = os.pidfd_open(self.pid)
        self.code: int | None = None
        self.first = 0
        self.lines: deque[bytes] = deque()
        self._rest = b""
        self._waiting_bytes = 0
        self._is_drained = False
        os.set_blocking(self.output, False)

    @property
    def reads(self) -> bool:
        """There is output to wait for, and room for it."""
        return not self._is_drained and self._waiting_bytes < OUTPUT_BYTES

    @property
    def next_number(self) -> int:
        """That of the line that comes next."""
        return self.first + len(self.lines)

    def read(self) -> None:
        """Take some output."""
        try:
            data = os.read(self.output, READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._add(data)
        else:
            self._drain()

    def _add(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._keep(line + b"\n")
        while len(self._rest) >= LONGEST_LINE_BYTES:
            self._keep(self._rest[:LONGEST_LINE_BYTES])
            self._rest = self._rest[LONGEST_LINE_BYTES:]

    def _keep(self, line: bytes) -> None:
        for begin in range(0, len(line), LONGEST_LINE_BYTES):
            piece = line[begin : begin + LONGEST_LINE_BYTES]
            self.lines.append(piece)
            self._waiting_bytes += len(piece) + LINE_COST_BYTES

    def _drain(self) -> None:
        """No more output will be taken."""
        if not self._is_drained:
            self._is_drained = True
            if self._rest:
                self._keep(self._rest)
                self._rest = b""

    def told(self, number: int) -> None:
        """The daemon has dealt with every line before this number."""
        while self.lines and self.first < number:
            self._waiting_bytes -= len(self.lines.popleft()) + LINE_COST_BYTES
            self.first += 1

    def end(self) -> None:
        """It has ended: take what is still in the pipe, which programs of its own may hold open, and write to."""
        self.code = self._process.wait()
        for _ in range(PIPE_BYTES // READ_BYTES):
            self.read()
        self._drain()

    def kill(self) -> None:
        """End it and all that it has started."""
        if self.code is None:
            kill_session(self.pid)

    def close(self) -> None:
        """Forget it, ended or not."""
        assert self._process.stdout is not None
        self._process.stdout.close()
        os.close(self.ending)
