"""What a source says about its move: added up once a second, shown, and passed on to those who want to know.

Bytes are only counted when they are said; everything else happens once a second, so that a stream is never held up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from mtunnel_tx.ports.clock import Clock, Timer, WallClock
from mtunnel_tx.ports.events import ByteCount
from mtunnel_tx.ports.moves import Carried, Expected, Finished, MoveEvent, Reached, StoodStill, TransferKind, Wired
from mtunnel_tx.watch.move import MoveState, apply
from mtunnel_tx.watch.telling import Telling

EVERY_S = 1.0
ALL = "all"
"""What all transfers together are called, where there are several."""


class StreamDisplay(Protocol):
    """Shows streams by their labels, and lines."""

    def say(self, text: str) -> None: ...

    def begin(self, label: str, total_bytes: int) -> None: ...

    def advance(self, label: str, size_bytes: int) -> None: ...

    def resize(self, label: str, total_bytes: int) -> None: ...

    def finish(self, label: str) -> None: ...


def ignore(_told: object) -> None:
    """Nobody else wants to know."""


class Reporter:
    """Listens to one move (source.links.ProgressListener).

    Args: state: what is known when it begins. warn: shows what somebody has to act on. wire: payload of all its
    websockets up to now. changed: told the state once a second, and when a phase is reached; must return at once.
    """

    def __init__(
        self,
        display: StreamDisplay,
        clock: Clock,
        wall_s: WallClock,
        state: MoveState,
        *,
        warn: Callable[[str], object],
        wire: Callable[[], ByteCount] = lambda: ByteCount(0, 0),
        changed: Callable[[MoveState], object] = ignore,
    ) -> None:
        self.state = state
        self.phases: dict[str, float] = {}
        self._display = display
        self._warn = warn
        self._clock = clock
        self._wall_s = wall_s
        self._wire = wire
        self._changed = changed
        self._telling: Telling | None = None
        self._counts: dict[str, int] = {}
        self._all = _Together(display)
        self._timer: Timer | None = None

    def start(self) -> None:
        """Pass on what is known now, and then once a second."""
        self._look()
        self._timer = self._clock.callLater(EVERY_S, self.start)

    def stop(self) -> None:
        """Pass on what is known at last, and nothing more."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._look()
        self._all.finish(self.state)

    def connect(self, report: Callable[[Mapping[str, Any]], Awaitable[object]]) -> None:
        """The target wants to know too: `report` sends it a `progress` command."""
        self._telling = Telling(report, self._clock)

    def disconnect(self) -> None:
        """The target wants to know nothing more."""
        self._telling = None

    def say(self, text: str) -> None:
        """One line, clean."""
        self._display.say(text)

    def warn(self, text: str) -> None:
        """One line that somebody has to act on."""
        self._warn(text)

    def tell(self, event: MoveEvent) -> None:
        """Something is known, or has changed."""
        self.state = apply(self.state, event, self._wall_s())
        if isinstance(event, Reached):
            since_s = self._wall_s() - self.state.since_s
            self.phases.setdefault(event.phase.value, round(since_s, 3))
            if event.phase.is_end:
                self._all.finish(self.state)
        if isinstance(event, Reached | StoodStill):
            self._look()

    def begin(self, label: str, total_bytes: int) -> None:
        """A stream begins."""
        if self.state.find(label) is None:
            self.tell(Expected(label=label, kind=TransferKind.DISK))
        self._counts[label] = 0
        self.tell(Carried(label=label, done_bytes=0, total_bytes=total_bytes))
        self._display.begin(label, total_bytes)
        self._all.see(self.state)

    def advance(self, label: str, size_bytes: int) -> None:
        """More of it has gone out."""
        self._counts[label] += size_bytes
        self._display.advance(label, size_bytes)

    def resize(self, label: str, total_bytes: int) -> None:
        """There is more to send, or less."""
        self.tell(Carried(label=label, done_bytes=self._counts[label], total_bytes=total_bytes))
        self._display.resize(label, total_bytes)

    def finish(self, label: str) -> None:
        """The stream has ended, well or not."""
        self.tell(Carried(label=label, done_bytes=self._counts.pop(label)))
        self.tell(Finished(label=label))
        self._display.finish(label)

    def _look(self) -> None:
        for label, done_bytes in self._counts.items():
            self.tell(Carried(label=label, done_bytes=done_bytes))
        self.tell(Wired(**self._wire()._asdict()))
        self._all.see(self.state)
        self._changed(self.state)
        if self._telling is not None:
            self._telling.see(self.state)


class _Together:
    """Shows all transfers as one more stream, where there are several and something of them is sent."""

    def __init__(self, display: StreamDisplay) -> None:
        self._display = display
        self._seen: tuple[int, int] | None = None

    def see(self, state: MoveState) -> None:
        total_bytes = state.total_bytes
        if len(state.transfers) < 2 or not total_bytes or not any(one.is_running for one in state.transfers):
            return
        if self._seen is None:
            self._seen = 0, total_bytes
            self._display.begin(ALL, total_bytes)
        self._show(*self._seen, state.done_bytes, total_bytes)

    def _show(self, before_bytes: int, before_total: int, done_bytes: int, total_bytes: int) -> None:
        if total_bytes != before_total:
            self._display.resize(ALL, total_bytes)
        self._display.advance(ALL, done_bytes - before_bytes)
        self._seen = done_bytes, total_bytes

    def finish(self, state: MoveState) -> None:
        """Once: with what was done at last."""
        if self._seen is not None:
            self._show(*self._seen, state.done_bytes, state.total_bytes or self._seen[1])
            self._display.finish(ALL)
            self._seen = None
