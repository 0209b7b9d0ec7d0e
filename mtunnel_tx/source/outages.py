"""What a source makes of connections that are lost and come back: it says so, and its commands wait longer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mtunnel_tx.ports.clock import Clock, Timer
from mtunnel_tx.ports.moves import MoveEvent, OutageBegan, OutageEnded, WasParked
from mtunnel_tx.source.amounts import format_time

SAY_EVERY_S = 10.0


class Resumable(Protocol):
    """A stream that may outlive its connection."""

    def watch(self, parked: Callable[[str, float], object], resumed: Callable[[], object]) -> None:
        """Have `parked` called with the reason and how long it may last, and `resumed` when it is over."""


@dataclass(slots=True, eq=False)
class _Call:
    """A later call. left_s: how long it still has to wait while the clock stands; timer: while it runs."""

    call: Callable[[], Any]
    calls: set[_Call] = field(repr=False)
    left_s: float
    due_s: float = 0.0
    timer: Timer | None = None

    def active(self) -> bool:
        return self in self.calls

    def cancel(self) -> None:
        self.calls.discard(self)
        if self.timer is not None:
            self.timer.cancel()

    def run(self) -> None:
        self.calls.discard(self)
        self.call()


class StandingClock:
    """A clock (ports.clock.Clock) that can stand still: its later calls then come so much later."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._calls: set[_Call] = set()
        self._stood_s = 0.0
        self._since_s: float | None = None

    def seconds(self) -> float:
        now_s = self._clock.seconds() if self._since_s is None else self._since_s
        return now_s - self._stood_s

    def callLater(self, delay: float, callable: Callable[..., Any], /, *args: Any) -> Timer:  # noqa: N802
        call = _Call(lambda: callable(*args), self._calls, delay)
        self._calls.add(call)
        if self._since_s is None:
            self._start(call)
        return call

    def stand(self) -> None:
        """Stand still from now on."""
        if self._since_s is None:
            self._since_s = self._clock.seconds()
            for call in self._calls:
                if call.timer is not None:
                    call.timer.cancel()
                call.left_s, call.timer = max(0.0, call.due_s - self._since_s), None

    def go_on(self) -> None:
        """Run again."""
        if self._since_s is not None:
            self._stood_s += self._clock.seconds() - self._since_s
            self._since_s = None
            for call in list(self._calls):
                self._start(call)

    def _start(self, call: _Call) -> None:
        call.due_s = self._clock.seconds() + call.left_s
        call.timer = self._clock.callLater(call.left_s, call.run)


class Outages:
    """All streams of a move, and when some of them had no connection.

    Args: say: one line for people. tell: hears when an outage begins and ends, and how long all of them were.
    `commands`: the clock by which replies to commands are waited for; it stands still while their stream has no
    connection. `times`, `total_s`: how often, and how long in all.
    """

    def __init__(
        self, clock: Clock, say: Callable[[str], object], tell: Callable[[MoveEvent], object] = lambda _event: None
    ) -> None:
        self.commands = StandingClock(clock)
        self.longest_s = 0.0
        self.times = 0
        self.total_s = 0.0
        self._clock = clock
        self._say = say
        self._tell = tell
        self._parked: set[Resumable] = set()
        self._since_s = self._notice_s = 0.0
        self._timer: Timer | None = None

    def notice_s(self) -> float:
        """How long the loss of the commands' connection may be unnoticed, while their clock runs; 0: it is plain."""
        return self._notice_s

    def watch(self, stream: Resumable, *, longest_s: float, notice_s: float, carries_commands: bool) -> None:
        """One more stream.

        Args: longest_s: it may be without a connection for so long, 0: it is a plain one. notice_s: within which it is
            noticed that it has none.
        """
        if longest_s:
            self.longest_s = longest_s
            if carries_commands:
                self._notice_s = notice_s
            stream.watch(
                lambda _reason, _park_s: self._lose(stream, carries_commands),
                lambda: self._find(stream, carries_commands),
            )

    def forget(self, stream: Resumable) -> None:
        """It has ended, parked or not."""
        if stream not in self._parked:
            return
        self._parked.discard(stream)
        if not self._parked:
            self._stop_timer()
            self._tell(OutageEnded())

    def summary(self) -> str:
        """`connection lost 2 times, 0:17 in all`; empty where it never was."""
        if not self.times:
            return ""
        often = "once" if self.times == 1 else f"{self.times} times"
        return f"connection lost {often}, {format_time(self.total_s)} in all"

    def _lose(self, stream: Resumable, carries_commands: bool) -> None:
        if carries_commands:
            self.commands.stand()
        if not self._parked:
            self.times += 1
            self._since_s = self._clock.seconds()
            self._tell(OutageBegan())
            self._tell_waiting()
        self._parked.add(stream)

    def _find(self, stream: Resumable, carries_commands: bool) -> None:
        if carries_commands:
            self.commands.go_on()
        self._parked.discard(stream)
        if not self._parked:
            self._stop_timer()
            waited_s = self._clock.seconds() - self._since_s
            self.total_s += waited_s
            self._say(f"resumed after {format_time(waited_s)}")
            self._tell(WasParked(parked_s=self.total_s))
            self._tell(OutageEnded())

    def _tell_waiting(self) -> None:
        waited_s = self._clock.seconds() - self._since_s
        self._say(f"connection lost, waiting ({format_time(waited_s)} of {format_time(self.longest_s)})")
        self._timer = self._clock.callLater(SAY_EVERY_S, self._tell_waiting)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
