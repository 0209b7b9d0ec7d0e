"""Child programs: the only place where the daemon starts one.

Each runs in a session of its own (`setsid`), without user, group or folder arguments, so that Twisted need not fork
(architecture.md section 6). Its two outputs share one pipe, which keeps the order of their lines.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from twisted.internet.error import ProcessTerminated
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mtunnel_tx.checks import clean_lines
from mtunnel_tx.errors import BackendFailed, TimedOut, os_reason
from mtunnel_tx.waiting import Occasion, in_time

log = Logger()
OUTPUT_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_INPUT_BYTES = 1 << 12
_TAIL_BYTES = 4096
_LONGEST_OUTPUT_BYTES = 64 << 20
_LINE_BYTES = 64
"""What a line takes in memory beside its text."""


@implementer(IReadDescriptor)
class OutputPipe:
    """The reading end of a child's output, cut into lines; reading pauses while `limit_bytes` wait to be taken.

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
        """The reactor heard of the other end's end, perhaps of that of a descriptor that had this number before.

        Only reading tells: within one turn, another's end may come after it was closed and its number taken.
        """
        self._read_all()
        if not self.closed and self._waiting_bytes < self._limit_bytes:
            self._reactor.addReader(self)
        self._changed()

    def take(self) -> bytes | None:
        """The next line; an unfinished one only if no more of it can come in."""
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
        """Whether everything was taken and nothing can come."""
        return self.closed and not self._lines and not self._rest

    def finish(self) -> None:
        """Take in what is in the pipe, and close it: what the child started may hold the other end for ever."""
        self._read_all()
        self._close()
        self._changed()

    def _read_all(self) -> None:
        for _ in range(_LONGEST_OUTPUT_BYTES // _READ_BYTES):
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


class PipedChild:
    """A running program (ports.Child); made by `spawn_child`."""

    def __init__(self, reactor: Any, name: str) -> None:
        self.pid = 0
        self._reactor = reactor
        self._name = name
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
        log.info("child {name} started, pid {pid}", name=self._name, pid=self.pid)

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
            _kill_session(self.pid)
        await self.ended()

    def changed(self) -> None:
        """Wake everybody who waits, in the next turn of the reactor: a child may be reaped while that starts."""
        self._change.happen_soon(self._reactor)

    def _end(self, code: int) -> None:
        self._code = code
        log.info("child {name} ended, pid {pid}, code {code}", name=self._name, pid=self.pid, code=code)
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
    """Enough to know it by; arguments may be secrets."""
    return Path(argv[0]).name


def _standard_input(given: bytes) -> int:
    if not given:
        return os.open(os.devnull, os.O_RDONLY)
    assert len(given) <= _INPUT_BYTES, "more than a pipe takes at once"
    read_end, write_end = os.pipe()
    os.write(write_end, given)
    os.close(write_end)
    return read_end


def _kill_session(pid: int) -> None:
    """The process, its group, and those of its session that left the group, until a look finds no other one.

    Before `setsid` has run there is no such group, and no other process either: it must not come to that any more.
    """
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    killed: set[int] = set()
    members = {pid}
    while members:
        for member in members:
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        killed |= members
        members = set(_session_members(pid)) - killed


def _session_members(session: int) -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                # The name in the second field may hold blanks and parentheses.
                fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
                if int(fields[3]) == session:
                    yield int(folder.name)


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
    code = await child.ended()
    if code != 0:
        raise BackendFailed(f"'{name}' failed with exit code {code}: {_tail(output)}")
    return output


async def _collect(child: PipedChild, end_s: float, reactor: Any) -> str:
    """All lines, up to the end of the child or of the time."""
    lines: list[str] = []
    size = 0
    while (line := await child.next_line(end_s - reactor.seconds())) is not None:
        lines.append(line)
        size += len(line) + _LINE_BYTES
        if size > _LONGEST_OUTPUT_BYTES:
            raise BackendFailed(f"a child wrote more than {_LONGEST_OUTPUT_BYTES} bytes")
    return "".join(lines)


def _tail(output: str) -> str:
    return clean_lines(output.encode("utf-8", "replace")[-_TAIL_BYTES:].decode("utf-8", "ignore").strip())
