"""Task logs below the state directory, in Proxmox's own shapes (formats.md section 7)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.backends.files import encode, make_folder, refusal
from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BadRequest, InvalidParameters
from mtunnel_tx.ports.clock import WallClock
from mtunnel_tx.pve.upid import Upid, parse_upid
from mtunnel_tx.pve.users import split_token_id

log = Logger()

MOST_LOGS = 1000
MOST_BYTES = 4 << 20
MOST_BYTES_OF_TOKEN = 64 << 20
MOST_BYTES_IN_ALL = 512 << 20
_LONGEST_ERROR = 2000
_TAIL_BYTES = 16 << 10
_WELL = re.compile(r"OK|WARNINGS: [0-9]+")
_END = re.compile(rf"TASK (?:({_WELL.pattern})|ERROR: (.*))")
_UNTOLD = "unexpected status"


def process_start(pid: int) -> int | None:
    """When a process started, in jiffies since boot; None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Field 22; the second field, the program's name, may hold anything, blanks and parentheses included.
    return int(stat.rpartition(b")")[2].split()[19])


class FileTaskLog:
    """One log that is being written (ports.TaskLog). Lines after the end or beyond the size limit are dropped."""

    def __init__(
        self, upid: str, path: Path, most_bytes: int, ended: Callable[[str], object], mode: str = "xb"
    ) -> None:
        self.upid = upid
        self.warnings = 0
        self._file: Any = path.open(mode, buffering=0)
        self._free_bytes = most_bytes - self._file.tell()
        self._ended = ended

    def line(self, text: str) -> None:
        """Add a line; one LF at the end of `text` makes an empty line, as Proxmox's logs have it."""
        if self._file.closed or self._free_bytes <= 0:
            return
        data = encode(clean(text.removesuffix("\n")) + ("\n\n" if text.endswith("\n") else "\n"))
        self._free_bytes -= len(data)
        self._write(data if self._free_bytes > 0 else b"no more lines: this log is full\n")

    def skip(self) -> None:
        """Behind what an earlier process has written; a line that it did not end is ended."""
        before = self._file.read()
        self.warnings = before.count(b"\nWARN: ")
        self._free_bytes -= len(before)
        if before and not before.endswith(b"\n"):
            self._write(b"\n")

    def warn(self, text: str) -> None:
        """Add a line that also counts in the task's end status."""
        self.warnings += 1
        self.line(f"WARN: {text}")

    def finish(self, status: str) -> None:
        """`OK`, `WARNINGS: N` or the error; writes the last line `TASK …` and closes."""
        if self._file.closed:
            return
        if not _WELL.fullmatch(status):
            status = f"ERROR: {clean(status.rstrip())[:_LONGEST_ERROR]}"
        self._write(encode(f"TASK {status}\n"))
        self._file.close()
        self._ended(self.upid)

    def _write(self, data: bytes) -> None:
        # A full disk must not end a tunnel because of its log.
        try:
            self._file.write(data)
        except OSError as error:
            log.error("cannot write the task log {upid}: {reason}", upid=self.upid, reason=error.strerror)


class FileTasks:
    """ports.Tasks, and the reading side for the API.

    Args: most_logs: how many are kept; the oldest go first, running ones never. most_bytes: size of one log. of_token:
    bytes of all logs of one token, running ones apart; in_all: of all tokens.
    """

    def __init__(
        self,
        state_dir: Path,
        node: str,
        wall: WallClock,
        *,
        most_logs: int = MOST_LOGS,
        most_bytes: int = MOST_BYTES,
        of_token: int = MOST_BYTES_OF_TOKEN,
        in_all: int = MOST_BYTES_IN_ALL,
    ) -> None:
        self._folder = state_dir / "tasks"
        self._node = node
        self._wall = wall
        self._most_logs = most_logs
        self._most_bytes = most_bytes
        self._of_token = of_token
        self._in_all = in_all
        self._live: set[str] = set()

    def start(self, task_type: str, vmid: int, token: str) -> FileTaskLog:
        """Begin a task and its log. Raises: BackendFailed: the log cannot be written."""
        pid = os.getpid()
        first = Upid(
            node=self._node,
            pid=pid,
            pstart=process_start(pid) or 0,
            starttime=int(self._wall()),
            type=task_type,
            id=str(vmid),
            user=token,
        )
        try:
            task = self._create(first)
            self._prune()
        except OSError as error:
            raise refusal(error) from error
        return task

    def _create(self, first: Upid) -> FileTaskLog:
        """A second task for this VM within one second is named after the next second: one process runs all tasks."""
        for later_s in count():
            upid = replace(first, starttime=first.starttime + later_s)
            path = self._folder / upid.log_path
            make_folder(path.parent)
            with suppress(FileExistsError):
                task = FileTaskLog(str(upid), path, self._most_bytes, self._live.discard)
                self._live.add(task.upid)
                return task
        raise AssertionError("seconds never end")

    def go_on(self, upid: str) -> FileTaskLog:
        """See ports.Tasks."""
        path = self._folder / parse_upid(upid).log_path
        try:
            task = FileTaskLog(upid, path, self._most_bytes, self._live.discard, "r+b")
            task.skip()
        except OSError as error:
            raise refusal(error) from error
        self._live.add(upid)
        return task

    def finish_orphans(self, status: str) -> None:
        """See ports.Tasks; a log that cannot be written stays as it is."""
        for path in self._folder.glob("?/UPID:*"):
            try:
                if path.name not in self._live and _ending(path, parse_upid(path.name)) == _UNTOLD:
                    _finish(path, status)
            except (OSError, BadRequest) as error:
                log.warn("cannot finish the task log {upid}: {reason}", upid=path.name, reason=str(error))

    def _prune(self) -> None:
        """From the newest to the oldest: what is too much by number or size goes."""
        logs = [path for path in self._folder.glob("?/UPID:*") if path.name not in self._live]
        bytes_of: Counter[str] = Counter()
        kept = len(self._live)
        for path in sorted(logs, key=_start_time, reverse=True):
            token, size_bytes = _token(path), path.stat().st_size
            if (
                kept >= self._most_logs
                or bytes_of[token] + size_bytes > self._of_token
                or bytes_of.total() + size_bytes > self._in_all
            ):
                path.unlink(missing_ok=True)
            else:
                kept += 1
                bytes_of[token] += size_bytes

    def running(self) -> list[str]:
        """The UPIDs of the tasks that have not ended, oldest first."""
        return sorted(self._live, key=lambda upid: parse_upid(upid).starttime)

    def status(self, upid: str) -> dict[str, Any]:
        """`GET …/tasks/UPID/status` as Proxmox has it; `exitstatus` only where it is `stopped`.

        Raises: InvalidParameters: there is no such task. BadRequest: not a UPID.
        """
        task, path = self._find(upid)
        user = split_token_id(task.user)
        ending = None if upid in self._live else _ending(path, task)
        return {
            "upid": upid,
            "node": task.node,
            "pid": task.pid,
            "pstart": task.pstart,
            "starttime": task.starttime,
            "type": task.type,
            "id": task.id,
            **({"user": user[0], "tokenid": user[1]} if user else {"user": task.user}),
            "status": "running" if ending is None else "stopped",
            **({} if ending is None else {"exitstatus": ending}),
        }

    def log(self, upid: str, start: int = 0, limit: int = 50) -> list[dict[str, Any]]:
        """`GET …/tasks/UPID/log`: lines from number `start` (0 is the first) on, at most `limit` (0: all).

        Raises: as status.
        """
        shown = self._lines(upid)[start : start + limit if limit else None]
        return [{"n": number, "t": line} for number, line in enumerate(shown, start + 1)]

    def total(self, upid: str) -> int:
        """How many lines a log has. Raises: as status."""
        return len(self._lines(upid))

    def _lines(self, upid: str) -> list[str]:
        """The lines of a log; for an empty log the text that Proxmox gives."""
        _, path = self._find(upid)
        try:
            text = path.read_bytes().decode("utf-8", "replace")
            return text.removesuffix("\n").split("\n") if text else ["no content"]
        except OSError as error:
            raise refusal(error) from error

    def _find(self, upid: str) -> tuple[Upid, Path]:
        task = parse_upid(upid)
        path = self._folder / task.log_path
        if not path.is_file():
            raise InvalidParameters({"upid": "no such task"})
        return task, path


def _finish(path: Path, status: str) -> None:
    """Append the last line; a torn line before it is ended first."""
    with path.open("r+b") as file:
        torn = not file.read().endswith(b"\n")
        file.write(b"\n" * torn + encode(f"TASK ERROR: {clean(status)}\n"))


def _start_time(path: Path) -> int:
    try:
        return parse_upid(path.name).starttime
    except BadRequest:
        return 0


def _token(path: Path) -> str:
    try:
        return parse_upid(path.name).user
    except BadRequest:
        return ""


def _ending(path: Path, task: Upid) -> str | None:
    """How a task of an earlier process ended; None: that process still runs it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        tail = file.read().decode("utf-8", "replace")
    match = _END.fullmatch(tail.removesuffix("\n").rpartition("\n")[2])
    if match:
        return match[1] or match[2]
    alive = task.pid != os.getpid() and process_start(task.pid) == task.pstart
    return None if alive else _UNTOLD
