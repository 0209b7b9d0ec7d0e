"""A storage program that runs many commands, one after another (`mtunnel-pvesm serve`); see pvesm/serving.py.

Such a program takes longer to start than to do what it is asked for, and a move asks for a dozen things. What is asked
for at the same time gets programs of its own. Each runs on until nobody has asked for a while.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mtunnel_tx.backends.child import PipedChild, spawn_child
from mtunnel_tx.backends.outputpipe import LONGEST_OUTPUT_BYTES
from mtunnel_tx.errors import BackendFailed, TimedOut
from mtunnel_tx.waiting import in_time, together

log = Logger()
IDLE_S = 60.0
MOST_IDLE = 4
_END = "\x1e"
_CLOSE_S = 5.0
_FAILED = 255
_LINE_BYTES = 64
"""What a line takes in memory beside its text."""
_UNKNOWN = "unknown command 'pvesm serve'"
"""What a program says that cannot be kept: Proxmox VE's own, or an earlier mtunnel-pvesm."""
Answer = tuple[int, str]
"""Exit code and output, both kinds."""


class KeptPrograms:
    """Runs commands in programs that are kept. Args: command: the program with its first arguments. environ: whole."""

    def __init__(
        self, reactor: Any, command: Sequence[str], environ: Mapping[str, str], *, idle_s: float = IDLE_S
    ) -> None:
        self._reactor = reactor
        self._argv = [*command, "serve"]
        self._environ = environ
        self._idle_s = idle_s
        self._idle: list[_Program] = []
        self._closed = False
        self._serves = True

    async def run(self, words: Sequence[str], timeout_s: float, name: str) -> Answer | None:
        """Run one command. Cancelled, or late, its program is killed.

        Returns: None: nothing was run, as this program does not know `serve`; it is not asked again.
        Raises: TimedOut. BackendFailed: the program has ended, or cannot be started.
        """
        if not self._serves:
            return None
        program = self._take(json.dumps(list(words)).encode("ascii") + b"\n")
        try:
            answer = await program.answer(timeout_s, name)
        except BaseException:
            await program.kill()
            raise
        if _UNKNOWN in answer[1]:
            await program.kill()
            self._learn()
            return None
        self._give_back(program)
        return answer

    def _learn(self) -> None:
        """Said once, and remembered: several commands may have been asked for at the same time."""
        if self._serves:
            log.info("{program} does not know 'serve': each command has a process", program=" ".join(self._argv[:-1]))
        self._serves = False

    async def close(self) -> None:
        """End all that are idle, and wait until they have ended; those at work end behind their command."""
        self._closed = True
        idle, self._idle = self._idle, []
        await together(*(program.close() for program in idle))

    def _take(self, request: bytes) -> _Program:
        """A program that has the request. Raises: BackendFailed: none can be started."""
        while self._idle:
            program = self._idle.pop()
            program.wake()
            if program.send(request):
                return program
            program.end()
        program = _Program(self._reactor, self._argv, self._environ)
        program.send(request)
        return program

    def _give_back(self, program: _Program) -> None:
        if self._closed or len(self._idle) >= MOST_IDLE:
            program.end()
            return
        self._idle.append(program)
        program.rest(self._idle_s, lambda: self._retire(program))

    def _retire(self, program: _Program) -> None:
        self._idle.remove(program)
        program.end()


class _Program:
    """One process. Raises: BackendFailed: it cannot be started."""

    def __init__(self, reactor: Any, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._timer: Any = None
        read_end, self._requests = os.pipe()
        try:
            self._child: PipedChild = spawn_child(
                reactor, argv, environ, stdin=read_end, limit_bytes=LONGEST_OUTPUT_BYTES
            )
        except BaseException:
            self.end()
            raise
        finally:
            os.close(read_end)

    def send(self, request: bytes) -> bool:
        """A request is far smaller than what an empty pipe takes at once. Returns: whether the program runs still."""
        try:
            os.write(self._requests, request)
        except OSError:
            return False
        return True

    async def answer(self, timeout_s: float, name: str) -> Answer:
        """To the request that was sent; of a program that ends, its own exit code. Raises: TimedOut, BackendFailed."""
        end_s = self._reactor.seconds() + timeout_s
        lines: list[str] = []
        size = 0
        while (line := await self._child.next_line(end_s - self._reactor.seconds())) is not None:
            if line.startswith(_END):
                return _read_code(line, name), "".join(lines)
            lines.append(line)
            size += len(line) + _LINE_BYTES
            if size > LONGEST_OUTPUT_BYTES:
                raise BackendFailed(f"'{name}' wrote more than {LONGEST_OUTPUT_BYTES} bytes")
        if not self._child.exhausted():
            raise TimedOut(f"'{name}' did not end within {timeout_s:g} s")
        return await self._child.ended() or _FAILED, "".join(lines)

    def rest(self, idle_s: float, over: Callable[[], None]) -> None:
        """Nobody asks; call `over` where nobody does for so long."""
        self._timer = self._reactor.callLater(idle_s, over)

    def wake(self) -> None:
        """Somebody asks."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def end(self) -> None:
        """Let it end: there are no more requests."""
        self.wake()
        if self._requests >= 0:
            os.close(self._requests)
            self._requests = -1

    async def close(self) -> None:
        """Let it end, and wait for that; it is killed where it does not."""
        self.end()
        await in_time(self._reactor, _CLOSE_S, Deferred.fromCoroutine(self._child.ended()))
        await self._child.kill()

    async def kill(self) -> None:
        """End it, and whatever it has started."""
        self.end()
        await self._child.kill()


def _read_code(line: str, name: str) -> int:
    try:
        return int(line.removeprefix(_END))
    except ValueError as error:
        raise BackendFailed(f"'{name}' ended without an exit code") from error
