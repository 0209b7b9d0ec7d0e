"""Processes of the benchmark: started in a group of their own, always ended; and what /proc says of them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

PATIENCE_S = 20.0
REST_S, IDLE_RESTS, IDLE_SHARE = 0.1, 3, 0.03
"""A process tree is idle that used less than such a share of a core in so many rests of so many seconds."""
_PARENT = 1  # field of /proc/PID/stat behind the name
_TIMES = slice(11, 15)  # and these: user and system time, and those of the children that have ended


class Trouble(Exception):
    """A measurement that came to nothing; its text says why."""


def pin(core: int | None) -> list[str]:
    """What stands in front of a command line to keep it on one core."""
    return [] if core is None else ["taskset", "-c", str(core)]


@contextmanager
def started(argv: Sequence[str | Path], log: Path | None = None, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for the length of the block; its whole process group ends with it."""
    with open_log(log) as output:
        options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output, **options}
        process = subprocess.Popen([str(word) for word in argv], start_new_session=True, **options)
    try:
        yield process
    finally:
        end(process)


def open_log(log: Path | None) -> IO[bytes]:
    """A file that grows, or nowhere."""
    return (log or Path(os.devnull)).open("ab")


def end(process: subprocess.Popen[bytes], patience_s: float = 5.0) -> None:
    """Ask a process group to end, then make it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


class Reporter:
    """One of our C programs: takes orders on its standard input, says lines of JSON."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self._lines = b""

    def read(self, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """The next line. Raises: Trouble: none came."""
        output = self._process.stdout
        assert output is not None
        deadline_s = time.monotonic() + patience_s
        while b"\n" not in self._lines:
            ready, _, _ = select.select([output], [], [], max(0.0, deadline_s - time.monotonic()))
            part = os.read(output.fileno(), 65536) if ready else b""
            if not part:
                raise Trouble(f"{self._name()} {'ended' if ready else 'hung'}: {last_line(self._log)}")
            self._lines += part
        line, _, self._lines = self._lines.partition(b"\n")
        return dict(json.loads(line))

    def _name(self) -> str:
        arguments: Any = self._process.args
        return next(Path(word).name for word in arguments if Path(word).is_absolute())

    def go(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"g")
        self._process.stdin.flush()

    def finish(self) -> None:
        """Let it close its streams in order, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            raise Trouble("load did not end") from error


@contextmanager
def reporting(argv: Sequence[str | Path], log: Path) -> Iterator[Reporter]:
    """Run one of our C programs up to its `ready`."""
    with (
        log.open("ab") as errors,
        started(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        reporter = Reporter(process, log)
        reporter.read()
        yield reporter


def last_line(log: Path) -> str:
    """What a program said last."""
    return (log.read_text(errors="replace").splitlines() or ["nothing was said"])[-1]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat behind the name; none where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def tree(pid: int) -> list[int]:
    """A process and everything below it."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (fields := _stat(int(path.name))):
            parents[int(path.name)] = int(fields[_PARENT])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


class CpuClock:
    """User and system time of a process tree since the clock was made.

    From /proc/PID/task/TID/schedstat, in nanoseconds: the ticks of /proc/PID/stat are too coarse for short runs. What a
    thread used before it ended in between is lost; the relays keep theirs.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = _thread_times(pid)

    def read_s(self) -> float:
        """Seconds used by all threads that live."""
        times = _thread_times(self._pid)
        return sum(time - self._before.get(thread, 0) for thread, time in times.items()) / 1e9


def wait_until_idle(pid: int) -> None:
    """Wait until a process tree has rested, as a daemon does that has asked QEMU what it can. Raises: Trouble."""
    deadline_s = time.monotonic() + PATIENCE_S
    rests = 0
    while rests < IDLE_RESTS:
        if time.monotonic() > deadline_s:
            raise Trouble("the relay does not come to rest")
        clock, children = CpuClock(pid), tree(pid)
        time.sleep(REST_S)
        is_idle = clock.read_s() < IDLE_SHARE * REST_S and tree(pid) == children
        rests = rests + 1 if is_idle else 0


def spent_s(pid: int) -> float:
    """User and system time of a process tree up to now, with all that it has waited for; in ticks of 10 ms."""
    fields = [_stat(each) for each in tree(pid)]
    ticks = sum(int(tick) for stat in fields if stat for tick in stat[_TIMES])
    return ticks / os.sysconf("SC_CLK_TCK")


def _thread_times(pid: int) -> dict[str, int]:
    times = {}
    for task in (task for each in tree(pid) for task in Path(f"/proc/{each}").glob("task/*")):
        with suppress(FileNotFoundError, ProcessLookupError):
            times[task.name] = int((task / "schedstat").read_text().split()[0])
    return times


def _memory_bytes(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def resident_bytes(pid: int) -> int:
    """What a process tree has in memory now."""
    return sum(_memory_bytes(each, "VmRSS") for each in tree(pid))


def peak_bytes(pid: int) -> int:
    """The most that each process of a tree has had in memory, together."""
    return sum(_memory_bytes(each, "VmHWM") for each in tree(pid))


def is_listening(port: int) -> bool:
    """Whether somebody listens on a loopback port; nothing connects to find out, as that would reach the sink."""
    entry = f":{port:04X} 00000000:0000 0A"
    return entry in Path("/proc/net/tcp").read_text()


def wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Raises: Trouble: it ended, or took too long."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_listening(port):
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise Trouble(f"relay does not listen: {last_line(log)}")
        time.sleep(0.01)
