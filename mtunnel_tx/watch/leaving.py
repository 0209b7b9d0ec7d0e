"""Moves that programs of this host send, each in a small file of its own: `RUNTIME_DIR/VMID-PID.leaving`.

A file is replaced as a whole, and never synced: it is worth nothing after a crash. It names its program, so that one
that was killed is known. Everything here but the recorder blocks.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.ports.clock import Threads
from mtunnel_tx.ports.programs import Program, Programs
from mtunnel_tx.watch.move import MoveState
from mtunnel_tx.watch.shape import move_json, read_move

log = Logger()
SUFFIX = ".leaving"
_NEW = ".new"
STALE_S = 60.0
"""A program replaces its file once a second."""
LARGEST_BYTES = 1 << 20


class LeavingFile:
    """The file of one move, which a program `program` sends."""

    def __init__(self, runtime_dir: Path, vmid: int, program: Program) -> None:
        self._path = runtime_dir / f"{vmid}-{program.pid}{SUFFIX}"
        self._program = asdict(program)

    def write(self, move: MoveState) -> None:
        """Replace it. Raises: OSError."""
        text = json.dumps({"program": self._program, "move": move_json(move)})
        new = self._path.with_name(f"{self._path.name}{_NEW}")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        new.rename(self._path)

    def remove(self) -> None:
        """The move is over. Raises: OSError."""
        self._path.unlink(missing_ok=True)


def read_leaving(runtime_dir: Path, programs: Programs) -> list[MoveState]:
    """The moves whose program is at work, by VMID; what cannot be read is none."""
    found = [_read(path, programs)[1] for path in runtime_dir.glob(f"*{SUFFIX}")]
    return sorted((move for move in found if move is not None), key=lambda move: move.vmid)


def remove_dead(runtime_dir: Path, programs: Programs, now_s: float) -> None:
    """Remove the files of programs that were killed, and what is old and cannot be read. now_s: since the epoch."""
    for path in (*runtime_dir.glob(f"*{SUFFIX}"), *runtime_dir.glob(f"*{SUFFIX}{_NEW}")):
        with suppress(OSError):
            is_alive = None if path.suffix == _NEW else _read(path, programs)[0]
            if is_alive is False or (is_alive is None and now_s - path.stat().st_mtime > STALE_S):
                path.unlink(missing_ok=True)


def _read(path: Path, programs: Programs) -> tuple[bool | None, MoveState | None]:
    """Returns: whether its program works, None: that cannot be read; and the move of one that works."""
    is_alive = None
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(LARGEST_BYTES))
        is_alive = programs.is_alive(Program(**values["program"]))
        return is_alive, read_move(values["move"]) if is_alive else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return is_alive, None


class Recorder:
    """Writes the file of a move in a thread, the newest state only; a disk that is slow or full costs nothing else."""

    def __init__(self, file: LeavingFile, threads: Threads) -> None:
        self._file = file
        self._threads = threads
        self._newest: MoveState | None = None
        self._writing: Deferred[None] | None = None

    def __call__(self, state: MoveState) -> None:
        """Write it soon."""
        self._newest = state
        if self._writing is None:
            self._writing = Deferred.fromCoroutine(self._write())

    async def _write(self) -> None:
        try:
            while self._newest is not None:
                state, self._newest = self._newest, None
                await self._threads.run(self._file.write, state)
        except (OSError, TunnelError) as error:
            log.warn("what is known about the move is not written: {reason}", reason=str(error))
        finally:
            self._writing = None

    async def close(self) -> None:
        """The move is over: the file goes."""
        self._newest = None
        if self._writing is not None:
            await self._writing
        with suppress(OSError, TunnelError):
            await self._threads.run(self._file.remove)
