"""`python -m tests.bounded COMMAND…`: run tests, but not for ever, and see that nothing of them is left.

When the time is over, or where something is left, it says which processes there are, and what the Python ones do; then
it ends them all. Exit status: that of the command; 124: the time is over; 1: something was left running.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from tests.limits import STACKS
from tests.patience import TimeLeft, tries

RUN_S = 1200.0
"""For the whole run, on a quiet machine."""
LEFT_S = 10.0
"""For what is on its way out when the command has ended."""
LATE, LEFT_RUNNING = 124, 1
_TAIL_BYTES = 8000
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One of ours. `depth`: how far below us; `age_s`: since its start."""

    pid: int
    depth: int
    state: str
    age_s: float
    command: str

    @property
    def is_python(self) -> bool:
        """Whether it can say what it does."""
        with contextlib.suppress(OSError):
            return "python" in Path(f"/proc/{self.pid}/exe").resolve().name
        return False


class Run:
    """A command and all processes below it, which come to us when their parents end."""

    def __init__(self, argv: list[str], stacks: Path) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._bell, bell = os.pipe()
        for end in (self._bell, bell):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
        environ = {**os.environ, STACKS: str(stacks), "PYTHONFAULTHANDLER": "1"}
        self._command = subprocess.Popen(argv, env=environ)
        self._stacks = stacks
        self._had_workers = False
        self.status: int | None = None

    def wait(self, time_left: TimeLeft) -> None:
        """Until the command has ended, or waits in vain, or the time is over."""
        left = TimeLeft(LEFT_S)
        while self.status is None and time_left and left:
            self.bury()
            if not self._waits_for_others():
                left = TimeLeft(LEFT_S)

    def _waits_for_others(self) -> bool:
        """Whether trial's workers have ended, and something that they left has their output open, which trial reads."""
        children = _children(self._command.pid)
        self._had_workers |= bool(children)
        return self._had_workers and not children and len(_children(os.getpid())) > 1

    def bury(self) -> None:
        """Wait a moment for ends, and take note of them."""
        if select.select([self._bell], [], [], 0.5)[0]:
            os.read(self._bell, 4096)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._command.pid:
                    self.status = os.waitstatus_to_exitcode(ended[1])

    def is_gone(self) -> bool:
        """Whether nothing is left of it after a while."""
        with contextlib.suppress(AssertionError):
            for _ in tries("the end of all processes", LEFT_S):
                self.bury()
                if not list(processes_below(os.getpid())):
                    return True
        return False

    def show(self) -> None:
        """Every process, and what the Python ones do."""
        everyone = list(processes_below(os.getpid()))
        for each in everyone:
            indent = "  " * each.depth
            print(f"{indent}{each.pid} {each.state} {each.age_s:.0f} s: {each.command}", flush=True)
        for each in everyone:
            if each.is_python:
                print(f"\n--- {each.pid}: {each.command}\n{self._stacks_of(each.pid)}", flush=True)

    def _stacks_of(self, pid: int) -> str:
        """Ask a test process by SIGUSR1; any other Python by SIGABRT, which ends it, where its stderr is a file."""
        file = self._stacks / str(pid)
        number = signal.SIGUSR1 if file.exists() else signal.SIGABRT
        file = file if file.exists() else Path(f"/proc/{pid}/fd/2")
        try:
            with file.open("rb") as log:
                if not file.is_file():
                    return "(its stderr is no file)"
                size_bytes = log.seek(0, os.SEEK_END)
                os.kill(pid, number)
                self.bury()
                log.seek(max(0, min(size_bytes, log.seek(0, os.SEEK_END) - _TAIL_BYTES)))
                return log.read(2 * _TAIL_BYTES).decode("utf-8", "replace")
        except OSError as error:
            return f"({error.strerror})"

    def interrupt(self, number: int) -> None:
        """Pass a signal on, so that tests can clean up; they have a moment for it."""
        self._command.send_signal(number)
        self.wait(TimeLeft(LEFT_S))

    def kill(self) -> None:
        """End everything that is left."""
        with contextlib.suppress(AssertionError):
            for _ in tries("the end of killed processes", LEFT_S):
                everyone = list(processes_below(os.getpid()))
                if not everyone:
                    return
                for each in everyone:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(each.pid, signal.SIGKILL)
                self.bury()


def processes_below(pid: int, depth: int = 0) -> Iterator[Process]:
    """All descendants, each after its parent; without those that have ended."""
    for child in _children(pid):
        try:
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if fields[0] not in "ZX":
            uptime_s = float(Path("/proc/uptime").read_text().split()[0])
            age_s = uptime_s - int(fields[19]) / os.sysconf("SC_CLK_TCK")
            yield Process(pid=child, depth=depth, state=fields[0], age_s=age_s, command=command[:160])
        yield from processes_below(child, depth + 1)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, thread.read_text().split())
    return found


def main(*argv: str) -> int:
    with TemporaryDirectory(prefix="mtunnel-stacks-") as folder:
        early = _note_signals()
        run = Run(list(argv), Path(folder))
        try:
            _heed_signals(early)
            time_left = TimeLeft(RUN_S)
            run.wait(time_left)
            if run.status is None and not time_left:
                print("\nThe tests take too long. These processes are there:", flush=True)
                run.show()
                return LATE
            if run.status is None or not run.is_gone():
                print("\nThe tests have left these processes running:", flush=True)
                run.show()
                return run.status or LEFT_RUNNING
            return run.status if run.status >= 0 else 128 - run.status
        except Interrupted as error:
            run.interrupt(error.number)
            return 128 + error.number
        finally:
            run.kill()


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """By a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _interrupt(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Interrupted(number)


def _note_signals() -> list[int]:
    """One that comes while the command is started must not leave it behind. Returns: what comes until _heed_signals."""
    early: list[int] = []
    for each in ENDING:
        signal.signal(each, lambda number, _frame: early.append(number))
    return early


def _heed_signals(early: list[int]) -> None:
    """Raises: Interrupted: now, or at the next signal."""
    for each in ENDING:
        signal.signal(each, _interrupt)
    if early:
        _interrupt(early[0], None)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
