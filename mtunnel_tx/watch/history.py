"""The history of moves: one row for each tunnel that is over, and for each move that was sent.

It is a file of SQLite's in the state directory. Beside the rows it has what became of each VM, written before the
journal of its tunnel goes: a source that comes late is told that.

Rows are written in a thread, after the tunnel has ended: a slow or full disk costs a row and a line in the log, never a
migration. A file that SQLite cannot read is put aside under another name, and a new one is begun.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mtunnel_tx.ports.clock import Threads
from mtunnel_tx.ports.events import PhaseReached, TunnelEnded, TunnelEvent, TunnelOpened

log = Logger()

FILE = "history.sqlite3"
VERSION = 1
BUSY_S = 5.0
"""How long a writer waits for another program that reads or writes the file."""
MOST_WAITING = 64
"""Rows that wait to be written; beyond it they are dropped, as the disk cannot keep up."""
_DAY_S = 86400.0

_TABLE = """
CREATE TABLE moves (
    id INTEGER PRIMARY KEY,
    vmid INTEGER NOT NULL,
    kind TEXT NOT NULL,
    direction TEXT NOT NULL,
    token TEXT NOT NULL,
    peer TEXT NOT NULL,
    upid TEXT NOT NULL,
    since_s REAL NOT NULL,
    duration_s REAL NOT NULL,
    outcome TEXT NOT NULL,
    reason TEXT NOT NULL,
    problem TEXT,
    bytes_in INTEGER NOT NULL,
    bytes_out INTEGER NOT NULL,
    phases TEXT NOT NULL
);
CREATE INDEX moves_by_time ON moves (since_s);
CREATE INDEX moves_by_vmid ON moves (vmid, since_s);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedMove:
    """One move that is over.

    direction: `in` (received here) or `out` (sent from here). peer: the other host's address or name. since_s: its
    begin, seconds since the epoch. reason: why it ended; empty where that was regular. problem: why it waited for
    `mtunnel settle`, or None. phases: when each phase was reached, in seconds since the begin.
    """

    vmid: int
    kind: str
    direction: str
    token: str
    peer: str
    upid: str
    since_s: float
    duration_s: float
    outcome: str
    reason: str
    problem: str | None
    bytes_in: int
    bytes_out: int
    phases: Mapping[str, float] = field(default_factory=dict)


_COLUMNS = tuple(one.name for one in fields(FinishedMove))
_INSERT = f"INSERT INTO moves ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608 - names
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM moves"  # noqa: S608 - names

_OUTCOMES = """
CREATE TABLE IF NOT EXISTS outcomes (
    vmid INTEGER NOT NULL,
    token TEXT NOT NULL,
    upid TEXT NOT NULL,
    outcome TEXT NOT NULL,
    at_s REAL NOT NULL,
    PRIMARY KEY (vmid, token, upid)
)
"""
_PRUNE_OUTCOMES = (
    "DELETE FROM outcomes WHERE rowid IN (SELECT rowid FROM outcomes ORDER BY at_s DESC, rowid DESC LIMIT -1 OFFSET ?)"
)
_PRUNE = "DELETE FROM moves WHERE id IN (SELECT id FROM moves ORDER BY since_s DESC, id DESC LIMIT -1 OFFSET ?)"


class HistoryFile:
    """The rows.

    Args: path: made with mode 0600 when the first row comes. most_rows, most_days: older rows are removed. now: seconds
    since the epoch. All of it blocks.
    """

    def __init__(self, path: Path, *, most_rows: int, most_days: float, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._most_rows = most_rows
        self._most_s = most_days * _DAY_S
        self._now = now
        self._writing = Lock()

    def add(self, move: FinishedMove) -> None:
        """Write a row, and remove those that are too many or too old. Raises: OSError, sqlite3.Error."""
        self._write(partial(self._add, move))

    def record(self, vmid: int, token: str, upid: str, outcome: str) -> None:
        """Write what became of the VM of a tunnel; it is on disk then. Raises: OSError, sqlite3.Error."""
        self._write(partial(self._record, vmid, token, upid, outcome))

    def outcome(self, vmid: int, token: str, upid: str) -> str | None:
        """What `record` has written. Raises: sqlite3.Error: the file cannot be read."""
        if not self._path.exists():
            return None
        with self._opened() as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'outcomes'").fetchone():
                return None
            query = "SELECT outcome FROM outcomes WHERE vmid = ? AND token = ? AND upid = ?"
            row = database.execute(query, (vmid, token, upid)).fetchone()
        return None if row is None else str(row[0])

    def find(
        self, *, since_s: float | None = None, vmid: int | None = None, upid: str | None = None, limit: int = 100
    ) -> list[FinishedMove]:
        """Returns: the latest moves that fit, the newest first. Raises: sqlite3.Error: the file cannot be read."""
        if not self._path.exists():
            return []
        where = {"since_s >= ?": since_s, "vmid = ?": vmid, "upid = ?": upid}
        chosen = {text: value for text, value in where.items() if value is not None}
        condition = f" WHERE {' AND '.join(chosen)}" if chosen else ""
        query = f"{_SELECT}{condition} ORDER BY since_s DESC, id DESC LIMIT ?"
        with self._opened() as database:
            return [_read_row(row) for row in database.execute(query, (*chosen.values(), limit))]

    def _write(self, write: Callable[[], None]) -> None:
        with self._writing:  # two threads must not make the file at once
            try:
                write()
            except sqlite3.DatabaseError as error:
                if not _is_damaged(error):
                    raise
                self._put_aside(error)
                write()

    def _record(self, vmid: int, token: str, upid: str, outcome: str) -> None:
        now_s = self._now()
        with self._opened() as database, database:
            database.execute(_OUTCOMES)
            values = (vmid, token, upid, outcome, now_s)
            database.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?)", values)
            database.execute("DELETE FROM outcomes WHERE at_s < ?", (now_s - self._most_s,))
            database.execute(_PRUNE_OUTCOMES, (self._most_rows,))

    def _add(self, move: FinishedMove) -> None:
        values = {**asdict(move), "phases": json.dumps(dict(move.phases))}
        with self._opened() as database, database:
            database.execute(_INSERT, [values[name] for name in _COLUMNS])
            database.execute("DELETE FROM moves WHERE since_s < ?", (self._now() - self._most_s,))
            database.execute(_PRUNE, (self._most_rows,))

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        if not self._path.exists():
            self._path.touch(mode=0o600)
        with closing(sqlite3.connect(self._path, timeout=BUSY_S)) as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise sqlite3.OperationalError(f"'{self._path}' was made by a newer version")
            if version < VERSION:
                database.executescript(f"BEGIN;{_TABLE}PRAGMA user_version = {VERSION};COMMIT;")
            yield database

    def _put_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged-{int(self._now())}")
        self._path.rename(aside)
        log.error("the history is damaged ({reason}); it is kept as {aside}", reason=str(error), aside=str(aside))


def _is_damaged(error: sqlite3.DatabaseError) -> bool:
    # Errors of our own have no code.
    return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def _read_row(row: tuple[Any, ...]) -> FinishedMove:
    values = dict(zip(_COLUMNS, row, strict=True))
    return FinishedMove(**{**values, "phases": json.loads(values["phases"])})


async def find_outcome(file: HistoryFile, threads: Threads, vmid: int, token: str, upid: str) -> str | None:
    """What became of a VM that came here by that task; None: it is not written there."""
    try:
        outcome = await threads.run(file.outcome, vmid, token, upid)
        if outcome is not None:
            return outcome
        moves = await threads.run(partial(file.find, vmid=vmid, upid=upid, limit=10))
    except (OSError, sqlite3.Error) as error:
        log.error("the history cannot be read: {reason}", reason=str(error))
        return None
    known = [move for move in moves if (move.direction, move.token) == ("in", token)]
    return max(known, key=lambda move: move.since_s + move.duration_s).outcome if known else None


async def record_outcome(file: HistoryFile, threads: Threads, vmid: int, token: str, upid: str, outcome: str) -> None:
    """Have `find_outcome` find it, also after a crash. A failure is logged."""
    try:
        await threads.run(file.record, vmid, token, upid, outcome)
    except (OSError, sqlite3.Error) as error:
        log.error("the history lacks what became of VM {vmid}: {reason}", vmid=vmid, reason=str(error))


class HistoryObserver:
    """Writes a row when a tunnel has ended (ports.events.Observer).

    Args: threads: where rows are written, one after the other. clock: monotonic or not, for phases.
    """

    def __init__(self, file: HistoryFile, threads: Threads, seconds: Callable[[], float]) -> None:
        self._file = file
        self._threads = threads
        self._seconds = seconds
        self._begun: dict[str, tuple[float, dict[str, float]]] = {}
        self._waiting: list[FinishedMove] = []
        self._writing = False

    def __call__(self, event: TunnelEvent) -> None:
        upid = event.tunnel.upid
        if isinstance(event, TunnelOpened):
            self._begun[upid] = self._seconds(), {}
        elif isinstance(event, PhaseReached) and upid in self._begun:
            begun_s, phases = self._begun[upid]
            phases.setdefault(event.phase.name.lower(), round(self._seconds() - begun_s, 3))
        elif isinstance(event, TunnelEnded):
            _, phases = self._begun.pop(upid, (0.0, {}))
            self._write(_move(event, phases))

    def _write(self, move: FinishedMove) -> None:
        if len(self._waiting) >= MOST_WAITING:
            log.error("the history lacks the move of VM {vmid}: its disk cannot keep up", vmid=move.vmid)
            return
        self._waiting.append(move)
        if not self._writing:
            self._writing = True
            Deferred.fromCoroutine(self._write_all()).addErrback(
                lambda failure: log.failure("unexpected failure in the history", failure)
            )

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                move = self._waiting.pop(0)
                try:
                    await self._threads.run(self._file.add, move)
                except (OSError, sqlite3.Error) as error:
                    log.error("the history lacks the move of VM {vmid}: {reason}", vmid=move.vmid, reason=str(error))
        finally:
            self._writing = False


def _move(event: TunnelEnded, phases: Mapping[str, float]) -> FinishedMove:
    tunnel = event.tunnel
    return FinishedMove(
        vmid=tunnel.vmid,
        kind=tunnel.kind,
        direction="in",
        token=tunnel.token,
        peer=tunnel.address,
        upid=tunnel.upid,
        since_s=tunnel.since_s,
        duration_s=round(event.duration_s, 3),
        outcome=event.outcome,
        reason=event.reason,
        problem=event.problem,
        bytes_in=event.traffic.bytes_in,
        bytes_out=event.traffic.bytes_out,
        phases=phases,
    )
