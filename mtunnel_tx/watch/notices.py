"""What people want to be told of without asking: a move is done, has failed or is held, or waits for a connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mtunnel_tx.ports.events import FlowEnded, FlowParked, FlowResumed, TunnelEnded, TunnelEvent
from mtunnel_tx.ports.moves import MovePhase
from mtunnel_tx.watch.move import INCOMING, MoveState
from mtunnel_tx.watch.shape import move_json

LONGEST_REASON = 500
"""Characters; the rest is in the log."""


class NoticeKind(Enum):
    """Why somebody is told; the value is the word in the notice."""

    DONE = "done"
    FAILED = "failed"
    HELD = "held"
    PARKED = "parked"


_ENDS = {MovePhase.DONE: NoticeKind.DONE, MovePhase.ROLLED_BACK: NoticeKind.FAILED, MovePhase.HELD: NoticeKind.HELD}


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What is told. host: this one's name."""

    kind: NoticeKind
    host: str
    move: MoveState

    def as_json(self) -> Mapping[str, Any]:
        """`event`, `host`, `end`, and the move without its transfers (docs/watching.md): less than 4 KiB."""
        move = move_json(self.move)
        del move["transfers"]
        end = "target" if self.move.direction == INCOMING else "source"
        return {"event": self.kind.value, "host": self.host, "end": end, "move": {**move, "reason": self._reason}}

    @property
    def _reason(self) -> str:
        return self.move.reason[:LONGEST_REASON]


class NoticeObserver:
    """Makes notices of what tunnels do (ports.events.Observer); to be told after the board.

    Args: find: a move of the board, by the id of its task. notify: takes each notice, at once. parked_s: how long a
    flow may have no connection. seconds: a monotonic clock.
    """

    def __init__(
        self,
        host: str,
        find: Callable[[str], MoveState | None],
        notify: Callable[[Notice], object],
        *,
        parked_s: float,
        seconds: Callable[[], float],
    ) -> None:
        self._host = host
        self._find = find
        self._notify = notify
        self._parked_s = parked_s
        self._seconds = seconds
        self._parked: dict[tuple[str, int], float] = {}

    def __call__(self, event: TunnelEvent) -> None:
        upid = event.tunnel.upid
        match event:
            case FlowParked(number=number):
                self._parked[upid, number] = self._seconds()
            case FlowResumed(number=number) | FlowEnded(number=number):
                self._parked.pop((upid, number), None)
            case TunnelEnded():
                self._parked = {key: since_s for key, since_s in self._parked.items() if key[0] != upid}
                self._tell(upid, None)

    def look(self) -> None:
        """Tell of flows that are parked for too long, each time once; to be called about once a second."""
        now_s = self._seconds()
        late = [key for key, since_s in self._parked.items() if now_s - since_s >= self._parked_s]
        for key in late:
            del self._parked[key]
        for upid in dict.fromkeys(upid for upid, _ in late):
            self._tell(upid, NoticeKind.PARKED)

    def _tell(self, upid: str, kind: NoticeKind | None) -> None:
        move = self._find(upid)
        if move is None:
            return
        kind = kind or _ENDS.get(move.phase)
        if kind is not None:
            self._notify(Notice(kind=kind, host=self._host, move=move))


class SentNotices:
    """Makes notices of a move that this program sends; an instance hears its states about once a second.

    Args: as of NoticeObserver.
    """

    def __init__(
        self,
        host: str,
        notify: Callable[[Notice], object],
        *,
        parked_s: float,
        seconds: Callable[[], float],
    ) -> None:
        self._host = host
        self._notify = notify
        self._parked_s = parked_s
        self._seconds = seconds
        self._since_s: float | None = None
        self._told: set[NoticeKind] = set()

    def __call__(self, state: MoveState) -> None:
        """Tell of its end, and of an outage that lasts too long, each once."""
        if (kind := _ENDS.get(state.phase)) is not None:
            self._tell(kind, state)
        elif state.outage_since_s is None:
            self._since_s = None
            self._told.discard(NoticeKind.PARKED)
        elif self._since_s is None:
            self._since_s = self._seconds()
        elif self._seconds() - self._since_s >= self._parked_s:
            self._tell(NoticeKind.PARKED, state)

    def _tell(self, kind: NoticeKind, state: MoveState) -> None:
        if kind not in self._told:
            self._told.add(kind)
            self._notify(Notice(kind=kind, host=self._host, move=state))
