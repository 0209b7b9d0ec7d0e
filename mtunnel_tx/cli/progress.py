"""How far a migration is: bars on a terminal, plain lines everywhere else."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from mtunnel_tx.ports import Clock

LINE_EVERY_S = 5.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_amount(size_bytes: float) -> str:
    """`1.5 GiB`."""
    value, unit = float(size_bytes), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{value:.0f} B"


def format_rate(size_bytes: int, seconds: float) -> str:
    """Bytes in a time as `1.5 GiB/s`."""
    return f"{format_amount(size_bytes / max(seconds, 0.001))}/s"


def format_time(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Display(Protocol):
    """Shows a migration while it runs (source.links.Progress, as a context)."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, text: str) -> None: ...

    def begin(self, label: str, total_bytes: int) -> None: ...

    def advance(self, size_bytes: int) -> None: ...

    def finish(self) -> None: ...


class Lines:
    """A line every few seconds, and one at the end of each disk."""

    def __init__(self, out: TextIO, clock: Clock) -> None:
        self._out = out
        self._clock = clock
        self._label = ""
        self._sent_bytes = self._total_bytes = 0
        self._began_s = self._said_s = 0.0

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
        """A disk's stream begins."""
        self._label, self._total_bytes, self._sent_bytes = label, total_bytes, 0
        self._began_s = self._said_s = self._clock.seconds()
        self.say(f"{label}: sending {format_amount(total_bytes)}")

    def advance(self, size_bytes: int) -> None:
        """More of it has gone out."""
        self._sent_bytes += size_bytes
        now = self._clock.seconds()
        if now - self._said_s >= LINE_EVERY_S:
            self._said_s = now
            self.say(f"{self._label}: {self._share()}, {self._rate(now)}, {self._remaining(now)} left")

    def finish(self) -> None:
        """The stream has ended, well or not."""
        now = self._clock.seconds()
        self.say(f"{self._label}: {self._share()} in {format_time(now - self._began_s)}, {self._rate(now)}")

    def _share(self) -> str:
        return f"{format_amount(self._sent_bytes)} of {format_amount(self._total_bytes)}"

    def _rate(self, now: float) -> str:
        return format_rate(self._sent_bytes, now - self._began_s)

    def _remaining(self, now: float) -> str:
        if not self._sent_bytes:
            return "?"
        left_bytes = max(0, self._total_bytes - self._sent_bytes)
        return format_time(left_bytes * (now - self._began_s) / self._sent_bytes)


class Bars:
    """A bar for each disk."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
        self._progress = Progress(*columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console)
        self._task: TaskID | None = None

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line above the bars; its brackets are no markup."""
        self._progress.console.print(Text(text))

    def begin(self, label: str, total_bytes: int) -> None:
        """A disk's stream begins."""
        self._task = self._progress.add_task(label, total=total_bytes)

    def advance(self, size_bytes: int) -> None:
        """More of it has gone out."""
        if self._task is not None:
            self._progress.advance(self._task, size_bytes)

    def finish(self) -> None:
        """The stream has ended, well or not."""
        if self._task is not None:
            self._progress.stop_task(self._task)


def make_display(out: TextIO, clock: Clock) -> Display:
    """Bars where somebody watches, lines for a file or a pipe."""
    return Bars(Console(file=out)) if out.isatty() else Lines(out, clock)
