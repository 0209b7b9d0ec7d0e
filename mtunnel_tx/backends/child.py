"""Child programs; the daemon starts them only here.

Each child runs in a session of its own (`setsid`). No user, group or folder is given to Twisted, so that it can use
posix_spawn instead of fork. stdout and stderr share one pipe, which keeps the order of their lines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from mtunnel_tx.backends.outputpipe import LONGEST_OUTPUT_BYTES, OutputPipe
from mtunnel_tx.checks import clean_lines
from mtunnel_tx.errors import BackendFailed, TimedOut, os_reason
from mtunnel_tx.sessions import kill_session
from mtunnel_tx.waiting import Occasion, in_time

log = Logger()
OUTPUT_BYTES = 1 << 20
_INPUT_BYTES = 1 << 12
_TAIL_BYTES = 4096
_LINE_BYTES = 64
"""What a line takes in memory beside its text."""


class _Ending(ProcessProtocol):
    """Tells how the process ended."""

    def __init__(self, ended: Callable[[int], None]) -> None:
        self._ended = ended

    def processEnded(self, reason: Failure) -> None:  # noqa: N802
        value = reason.value
        if not isinstance(value, ProcessTerminated):
            self._ended(0)
        else:
            self._ended(value.exitCode if value.signal is None else -value.signal)


def _shown(argv: Sequence[str]) -> str:
    """A program and its action, `qemu-img info`, as logs show it: no more words, which could be secret."""
    words = argv[argv.index("--") + 1 :] if argv[0] == "prlimit" and "--" in argv else argv
    action = [word for word in words[1:2] if word.isalpha()]
    return " ".join([Path(words[0]).name, *action])


class PipedChild:
    """A running program (ports.Child); made by `spawn_child`."""

    def __init__(self, reactor: Any, name: str) -> None:
        self.pid = 0
        self.name = ""
        self.taken = 0
        self._reactor = reactor
        self._name = self._shown = name
        self._output: OutputPipe | None = None
        self._code: int | None = None
        self._change = Occasion()

    def start(self, argv: Sequence[str], env: Mapping[str, str], fds: Mapping[int, int], output: OutputPipe) -> None:
        """Run it. Raises: BackendFailed: the system refuses."""
        self._output = output
        words = ["setsid", "--", *argv]
        try:
            process = self._reactor.spawnProcess(_Ending(self._end), "setsid", words, env=dict(env), childFDs=dict(fds))
        except (OSError, ValueError) as error:
            output.finish()
            raise BackendFailed(f"unable to start '{self._name}': {error}") from error
        self.pid = process.pid or self.pid
        self._shown = _shown(argv)
        log.debug("child {name} started, pid {pid}", name=self._shown, pid=self.pid)

    async def next_line(self, wait_s: float) -> str | None:
        """See ports.Child."""
        assert self._output is not None
        end_s = self._reactor.seconds() + wait_s
        while (line := self._output.take()) is None:
            left_s = end_s - self._reactor.seconds()
            if self.exhausted() or left_s <= 0:
                return None
            await in_time(self._reactor, left_s, self._change.wait())
        return line.decode("utf-8", "replace")

    def exhausted(self) -> bool:
        """See ports.Child."""
        return self._code is not None and (self._output is None or self._output.empty())

    async def ended(self) -> int:
        """See ports.Child."""
        while self._code is None:
            await self._change.wait()
        return self._code

    async def kill(self) -> None:
        """See ports.Child."""
        if self._code is None:
            kill_session(self.pid)
        await self.ended()

    def changed(self) -> None:
        """Wake all waiters in the next turn of the reactor: a child may be reaped while `spawnProcess` still runs."""
        self._change.happen_soon(self._reactor)

    def _end(self, code: int) -> None:
        self._code = code
        log.debug("child {name} ended, pid {pid}, code {code}", name=self._shown, pid=self.pid, code=code)
        if self._output is not None:
            self._output.finish()
        self.changed()


def spawn_child(
    reactor: Any,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    limit_bytes: int = OUTPUT_BYTES,
    given: bytes = b"",
    stdin: int | None = None,
    stdout: int | None = None,
) -> PipedChild:
    """Run a program in a session of its own.

    Args: env: its whole environment. limit_bytes: unread output kept before the child has to wait. given: its
        standard input, at most 4 KiB. stdin: a descriptor in its place. stdout: one for its standard output; then only
        stderr gives lines.
    Raises: BackendFailed: it cannot be started; one that is not there ends with code 127.
    """
    child = PipedChild(reactor, _name(argv))
    with ExitStack() as ours, _refused(argv):
        if stdin is None:
            stdin = _standard_input(given)
            ours.callback(os.close, stdin)
        read_end, write_end = os.pipe()
        ours.callback(os.close, write_end)
        output = OutputPipe(reactor, read_end, limit_bytes, child.changed)
        child.start(argv, env, {0: stdin, 1: write_end if stdout is None else stdout, 2: write_end}, output)
    return child


@contextmanager
def _refused(argv: Sequence[str]) -> Iterator[None]:
    """Raises: BackendFailed: the system gave no pipe."""
    try:
        yield
    except OSError as error:
        raise BackendFailed(f"unable to start '{_name(argv)}': {os_reason(error)}") from error


def _name(argv: Sequence[str]) -> str:
    """The program's name for logs and errors; arguments may be secret."""
    return Path(argv[0]).name


def _standard_input(given: bytes) -> int:
    if not given:
        return os.open(os.devnull, os.O_RDONLY)
    assert len(given) <= _INPUT_BYTES, "more than a pipe takes at once"
    read_end, write_end = os.pipe()
    os.write(write_end, given)
    os.close(write_end)
    return read_end


async def run(
    reactor: Any,
    argv: Sequence[str],
    env: Mapping[str, str],
    timeout_s: float,
    *,
    name: str | None = None,
    given: bytes = b"",
) -> str:
    """Run a program to its end.

    Args: name: what errors call it. given: its standard input, at most 4 KiB.
    Returns: its output, both kinds.
    Raises: BackendFailed: its exit code and the last 4 KiB of its output; TimedOut: it was killed.
    """
    child = spawn_child(reactor, argv, env, given=given)
    name = name or _name(argv)
    try:
        output = await _collect(child, reactor.seconds() + timeout_s, reactor)
        if not child.exhausted():
            raise TimedOut(f"'{name}' did not end within {timeout_s:g} s")
    finally:
        await child.kill()
    return checked(name, await child.ended(), output)


def checked(name: str, code: int, output: str) -> str:
    """The output of a program that has ended. Raises: BackendFailed: its exit code and the last 4 KiB of its output."""
    if code != 0:
        raise BackendFailed(f"'{name}' failed with exit code {code}: {_tail(output)}")
    return output


async def _collect(child: PipedChild, end_s: float, reactor: Any) -> str:
    """Read all lines until the child ends or the time is up."""
    lines: list[str] = []
    size = 0
    while (line := await child.next_line(end_s - reactor.seconds())) is not None:
        lines.append(line)
        size += len(line) + _LINE_BYTES
        if size > LONGEST_OUTPUT_BYTES:
            raise BackendFailed(f"a child wrote more than {LONGEST_OUTPUT_BYTES} bytes")
    return "".join(lines)


def _tail(output: str) -> str:
    return clean_lines(output.encode("utf-8", "replace")[-_TAIL_BYTES:].decode("utf-8", "ignore").strip())
