"""How far a migration is: bars on a terminal, plain lines everywhere else."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TextIO

from mtunnel_tx.cli.output import Forgiving
from mtunnel_tx.ports.clock import Clock
from mtunnel_tx.source.amounts import describe_pace, format_amount, format_rate, format_time
from mtunnel_tx.watch.reporter import StreamDisplay

LINE_EVERY_S = 5.0


class Display(StreamDisplay, Protocol):
    """Shows a migration while it runs, as a context."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(slots=True)
class Count:
    """How far one stream is."""

    total_bytes: int
    began_s: float
    said_s: float
    sent_bytes: int = 0

    @property
    def share(self) -> str:
        """`1.0 MiB of 2.0 MiB`."""
        return f"{format_amount(self.sent_bytes)} of {format_amount(self.total_bytes)}"

    def rate(self, now: float) -> str:
        """Since it began."""
        return format_rate(self.sent_bytes, now - self.began_s)

    def remaining(self, now: float) -> str:
        """The time that the rest takes at this rate."""
        if not self.sent_bytes:
            return "?"
        left_bytes = max(0, self.total_bytes - self.sent_bytes)
        return format_time(left_bytes * (now - self.began_s) / self.sent_bytes)


class Lines:
    """A line for each stream every few seconds, and one at its end."""

    def __init__(self, out: TextIO, clock: Clock) -> None:
        self._out = out
        self._clock = clock
        self._counts: dict[str, Count] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.flush()

    def say(self, text: str) -> None:
        """One line, at once."""
        print(text, file=self._out, flush=True)

    def begin(self, label: str, total_bytes: int) -> None:
        """A stream begins."""
        now = self._clock.seconds()
        self._counts[label] = Count(total_bytes, now, now)
        self.say(f"{label}: sending {format_amount(total_bytes)}")

    def advance(self, label: str, size_bytes: int) -> None:
        """More of it has gone out."""
        count, now = self._counts[label], self._clock.seconds()
        count.sent_bytes += size_bytes
        if now - count.said_s >= LINE_EVERY_S and count.sent_bytes < count.total_bytes:
            count.said_s = now
            self.say(f"{label}: {count.share}, {count.rate(now)}, {count.remaining(now)} left")

    def resize(self, label: str, total_bytes: int) -> None:
        """Its end has moved."""
        self._counts[label].total_bytes = total_bytes

    def finish(self, label: str) -> None:
        """The stream has ended, well or not."""
        count, now = self._counts.pop(label), self._clock.seconds()
        self.say(f"{label}: {count.share} {describe_pace(count.sent_bytes, now - count.began_s)}")


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, text: str) -> None:
        """Not a line."""

    def begin(self, label: str, total_bytes: int) -> None:
        """A stream begins."""

    def advance(self, label: str, size_bytes: int) -> None:
        """More of it has gone out."""

    def resize(self, label: str, total_bytes: int) -> None:
        """Its end has moved."""

    def finish(self, label: str) -> None:
        """The stream has ended, well or not."""


def make_display(out: TextIO, clock: Clock, *, is_silent: bool = False) -> Display:
    """Bars where somebody watches, lines for a file or a pipe."""
    if is_silent:
        return Silent()
    forgiving: Any = Forgiving(out)
    if not out.isatty():
        return Lines(forgiving, clock)
    from mtunnel_tx.cli.bars import make_bars  # terminals only: it takes long to import

    return make_bars(forgiving)
