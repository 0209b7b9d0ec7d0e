"""How far a migration is, as bars on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from mtunnel_tx.source.amounts import format_amount, format_rate, format_time
from mtunnel_tx.watch.reporter import ALL


class _Amount(ProgressColumn):
    """`1.0 of 2.0 MiB`, whatever the size."""

    def render(self, task: Task) -> Text:
        """See rich."""
        done = format_amount(task.completed).partition(" ")[0]
        return Text(f"{done} of {format_amount(task.total or 0)}", style="progress.download")


class _Rate(ProgressColumn):
    """`10.0 MiB/s` of late, or of all where it has ended."""

    def render(self, task: Task) -> Text:
        """See rich."""
        bytes_s = task.speed
        if task.stop_time is not None:
            bytes_s = task.completed / task.elapsed if task.elapsed else None
        return Text("" if bytes_s is None else format_rate(bytes_s, 1), style="progress.data.speed")


class _Left(ProgressColumn):
    """`0:10 left`, as everywhere; how long it took where it has ended."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """See rich."""
        if task.stop_time is not None or task.finished:
            return Text(f"in {format_time(task.elapsed or 0)}", style="progress.elapsed")
        left_s = task.time_remaining
        return Text("" if left_s is None else f"{format_time(left_s)} left", style="progress.remaining")


class _AllLast(Progress):
    """Shows the bar for all below the others, whenever they came."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """See rich."""
        yield self.make_tasks_table(sorted(self.tasks, key=lambda task: task.description == ALL))


class Bars:
    """A bar for each stream; one that is sent again has one bar."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), _Amount(), _Rate(), _Left())
        self._progress = _AllLast(*columns, console=console)
        self._tasks: dict[str, TaskID] = {}

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
        """A stream begins."""
        if label in self._tasks:
            self._progress.remove_task(self._tasks[label])
        self._tasks[label] = self._progress.add_task(label, total=total_bytes)

    def advance(self, label: str, size_bytes: int) -> None:
        """More of it has gone out."""
        self._progress.advance(self._tasks[label], size_bytes)

    def resize(self, label: str, total_bytes: int) -> None:
        """Its end has moved."""
        # What `update` does with a total forgets how fast it was.
        for task in self._progress.tasks:
            if task.id == self._tasks[label]:
                task.total = total_bytes

    def finish(self, label: str) -> None:
        """The stream has ended, well or not."""
        self._progress.stop_task(self._tasks[label])


def make_bars(out: TextIO) -> Bars:
    """Bars on a terminal."""
    return Bars(Console(file=out))
