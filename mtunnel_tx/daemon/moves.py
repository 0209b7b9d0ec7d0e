"""All moves of this host: those that come, looked at once a second, and those that programs here send."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet.task import LoopingCall

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.programs import HostPrograms
from mtunnel_tx.watch.board import Board
from mtunnel_tx.watch.leaving import read_leaving
from mtunnel_tx.watch.move import MoveState

LOOK_S = 1.0


class Moves:
    """Between `start` and `stop`; looking costs nothing where nothing comes."""

    def __init__(self, board: Board, reactor: Any, threads: ReactorThreads, runtime_dir: Path) -> None:
        self._board = board
        self._threads = threads
        self._runtime_dir = runtime_dir
        self._looking = LoopingCall(board.look)
        self._looking.clock = reactor

    def start(self) -> None:
        """Look from now on."""
        self._looking.start(LOOK_S, now=False)

    def stop(self) -> None:
        """Look no more."""
        if self._looking.running:
            self._looking.stop()

    def coming(self) -> Sequence[MoveState]:
        """Those that come, and those that ended lately, as of the last look."""
        return self._board.moves()

    async def all(self) -> Sequence[MoveState]:
        """Those that come, those that go, and those that came and ended lately."""
        leaving = await self._threads.run(read_leaving, self._runtime_dir, HostPrograms())
        self._board.look()
        return [*self._board.moves(), *leaving]
