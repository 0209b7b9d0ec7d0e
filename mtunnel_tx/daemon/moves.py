"""All moves of this host: those that come, looked at once a second, and those that programs here send."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.programs import HostPrograms
from mtunnel_tx.config import Settings
from mtunnel_tx.daemon.notifying import NoticeTeller
from mtunnel_tx.local import make_environ
from mtunnel_tx.watch.board import Board
from mtunnel_tx.watch.leaving import read_leaving
from mtunnel_tx.watch.move import MoveState
from mtunnel_tx.watch.notices import NoticeObserver
from mtunnel_tx.watch.shape import move_json

LOOK_S = 1.0


class Moves:
    """Looks between `start` and `stop`, which costs nothing where nothing comes.

    Args: was_late: told by how many seconds each look was late. `observe` has to be told what happens, after the board.
    """

    def __init__(
        self,
        board: Board,
        reactor: Any,
        threads: ReactorThreads,
        settings: Settings,
        was_late: Callable[[float], object],
    ) -> None:
        self._board = board
        self._reactor = reactor
        self._threads = threads
        self._runtime_dir = settings.runtime_dir
        self._notifier = NoticeTeller(reactor, settings.notify, make_environ(settings, os.environ))
        wait = {"parked_s": settings.notify.parked_s, "seconds": reactor.seconds}
        self.observe = NoticeObserver(settings.node, board.find, self._notifier, **wait)
        self._was_late = was_late
        self._due_s = 0.0
        self._timer: Any = None

    def start(self) -> None:
        """Look from now on."""
        self._due_s = self._reactor.seconds() + LOOK_S
        self._timer = self._reactor.callLater(LOOK_S, self._look)

    def _look(self) -> None:
        self._was_late(self._reactor.seconds() - self._due_s)
        self._board.look()
        self.observe.look()
        self.start()

    async def stop(self) -> None:
        """Look no more; wait a few seconds until everybody was told."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        await self._notifier.stop()

    def coming(self) -> Sequence[MoveState]:
        """Those that come, and those that ended lately, as of the last look."""
        return self._board.moves()

    async def all(self) -> Sequence[MoveState]:
        """Those that come, those that go, and those that came and ended lately."""
        leaving = await self._threads.run(read_leaving, self._runtime_dir, HostPrograms())
        self._board.look()
        return [*self._board.moves(), *leaving]

    async def as_json(self) -> list[dict[str, Any]]:
        """The same, as docs/watching.md describes it."""
        return [move_json(move) for move in await self.all()]
