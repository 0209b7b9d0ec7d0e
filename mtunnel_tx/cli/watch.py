"""`mtunnel watch`: moves while they run, as a table on a terminal, else a line for each change."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from twisted.internet.threads import deferToThread

from mtunnel_tx.backends.programs import HostPrograms
from mtunnel_tx.cli.moves import move_line, moves_table
from mtunnel_tx.cli.output import FAILED
from mtunnel_tx.cli.program import read_vmid, run_reactor
from mtunnel_tx.config import Settings, is_there
from mtunnel_tx.errors import BackendFailed, TimedOut
from mtunnel_tx.local import make_history
from mtunnel_tx.net.controlsocket import ask
from mtunnel_tx.ports.moves import MovePhase
from mtunnel_tx.waiting import pause
from mtunnel_tx.watch.board import end_phase
from mtunnel_tx.watch.leaving import read_leaving
from mtunnel_tx.watch.move import MoveState
from mtunnel_tx.watch.shape import move_json, read_move

LOOK_S = 1.0
ROW_S = 5.0
"""How long the row of a move that was sent may take to the history."""
_DESCRIPTION = """\
Show the moves that come to this host and go from it, once a second, until Ctrl-C; where no daemon answers, which is
said, only those that go from it. With VMID until that move is over;
the exit status is then 0 where it is done, and 1 where the VM stayed at its source, is held, or does not move at all.
Where standard output is no terminal, a line is printed whenever a phase or the percentage has changed."""


def configure(subparsers: Any) -> None:
    """Add `watch` to the commands of `mtunnel`."""
    parser = subparsers.add_parser("watch", help="show how far moves are, while they run", description=_DESCRIPTION)
    parser.add_argument("vmid", metavar="VMID", nargs="?", type=read_vmid, help="only the move of this VM")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each change (docs/watching.md)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Returns: the exit status."""
    from twisted.internet import reactor

    folder = settings.runtime_dir
    if is_there(folder) and not os.access(folder, os.R_OK | os.X_OK):
        raise BackendFailed(f"{folder}: {os.strerror(errno.EACCES)}")
    with make_viewer(as_json=args.json) as viewer:
        return run_reactor(reactor, lambda: WatchLoop(reactor, settings, viewer, as_json=args.json).run(args.vmid))


class Viewer(Protocol):
    """Shows moves, as a context."""

    def __enter__(self) -> Viewer: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, moves: Sequence[MoveState]) -> None: ...


class Screen:
    """A table that is drawn again."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, moves: Sequence[MoveState]) -> None:
        """Draw it."""
        self._live.update(moves_table(moves) if moves else "no moves", refresh=True)


class ChangeLines:
    """A line for each move of which another phase or another percentage is known."""

    def __init__(self, describe: Callable[[MoveState], str]) -> None:
        self._describe = describe
        self._seen: dict[tuple[str, int, float], object] = {}

    def __enter__(self) -> ChangeLines:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held back."""

    def show(self, moves: Sequence[MoveState]) -> None:
        """Print what has changed."""
        before, self._seen = self._seen, {_key(move): (move.phase, move.percent) for move in moves}
        for move in moves:
            if before.get(_key(move)) != self._seen[_key(move)]:
                print(self._describe(move), flush=True)


def _key(move: MoveState) -> tuple[str, int, float]:
    return move.direction, move.vmid, move.since_s


def make_viewer(*, as_json: bool) -> Viewer:
    """A table where somebody watches, else lines."""
    if as_json:
        return ChangeLines(lambda move: json.dumps(move_json(move)))
    return Screen(Console()) if sys.stdout.isatty() else ChangeLines(move_line)


class WatchLoop:
    """Looks once a second: at the daemon, and at what programs of this host send where there is none."""

    def __init__(self, reactor: Any, settings: Settings, viewer: Viewer, *, as_json: bool = False) -> None:
        self._reactor = reactor
        self._settings = settings
        self._viewer = viewer
        self._as_json = as_json
        self._absence = ""  # why no daemon was asked
        self._said = ""

    async def run(self, vmid: int | None) -> int:
        """Returns: the exit status. Without a VMID it does not end by itself."""
        last: MoveState | None = None
        while True:
            moves = [move for move in await self._look() if vmid in (None, move.vmid)]
            if vmid is None:
                self._say_absence()
            else:
                moves = _latest(moves)
                if not moves:
                    return await self._after(vmid, last)
                last = moves[0]
            self._viewer.show(moves)
            if last is not None and last.phase.is_end:
                return _status(last)
            await pause(self._reactor, LOOK_S)

    async def _look(self) -> list[MoveState]:
        try:
            reply = await ask(self._reactor, self._settings.runtime_dir / "control.sock", {"cmd": "status"})
            self._absence = ""
            return [read_move(move) for move in reply.get("moves", [])]
        except (BackendFailed, TimedOut) as error:
            self._absence = error.text
            moves: list[MoveState] = await deferToThread(read_leaving, self._settings.runtime_dir, HostPrograms())
            return moves

    def _say_absence(self) -> None:
        """Once, whenever it begins: who waits for a move that comes would wait for nothing."""
        if self._absence and not self._said:
            self._complain(f"{self._absence}; only moves that go from here are shown, as soon as there are any")
        self._said = self._absence

    async def _after(self, vmid: int, last: MoveState | None) -> int:
        """The move is not there any more: the history knows how it ended."""
        if last is None:
            unknown = f"; whether it comes here is not known: {self._absence}" if self._absence else ""
            return self._fail(f"VM {vmid} does not move{unknown}")
        ended = await self._find_end(last)
        if ended is None:
            return self._fail(f"the program that sent VM {vmid} has ended (mtunnel status)")
        self._viewer.show([ended])
        return _status(ended)

    def _fail(self, reason: str) -> int:
        if self._as_json:
            print(json.dumps({"success": False, "msg": reason}), flush=True)
        else:
            self._complain(reason)
        return FAILED

    def _complain(self, text: str) -> None:
        print(f"mtunnel watch: {text}", file=sys.stderr, flush=True)

    async def _find_end(self, last: MoveState) -> MoveState | None:
        find = make_history(self._settings).find
        until_s = self._reactor.seconds() + ROW_S
        while self._reactor.seconds() < until_s:
            for row in await deferToThread(find, vmid=last.vmid, since_s=last.since_s, limit=1):
                ended_s = row.since_s + row.duration_s
                return replace(last, phase=end_phase(row.outcome), reason=row.reason, ended_s=ended_s)
            await pause(self._reactor, LOOK_S / 5)
        return None


def _latest(moves: Sequence[MoveState]) -> list[MoveState]:
    """The one that runs, else the one that began last."""
    return sorted(moves, key=lambda move: (move.phase.is_end, -move.since_s))[:1]


def _status(move: MoveState) -> int:
    return 0 if move.phase is MovePhase.DONE else FAILED
