"""What `mtunnel migrate --dry-run` shows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from mtunnel_tx.checks import clean
from mtunnel_tx.cli.output import Forgiving
from mtunnel_tx.cli.table import format_table
from mtunnel_tx.source.amounts import format_amount
from mtunnel_tx.source.report import Report


def show(report: Report, *, as_json: bool) -> None:
    """Print a report, for people without what stands in the way: that is for standard error."""
    _print([json.dumps(report.as_json())] if as_json else list(_lines(report)))


def show_failure(reason: str) -> None:
    """The JSON of a look that came to nothing."""
    _print([json.dumps({"success": False, "msg": clean(reason)})])


def _print(lines: list[str]) -> None:
    """Whole lines, also at a narrow terminal."""
    out: Any = Forgiving(sys.stdout)
    for line in lines:
        print(line, file=out, flush=True)


def _lines(report: Report) -> Iterator[str]:
    yield from format_table(report.table()) if report.disks else ()
    yield from report.lines()
    if not report.obstacles:
        disks = [row.disk for row in report.disks]
        size = format_size(len(disks), sum(disk.stream_bytes for disk in disks))
        yield f"nothing stands in the way: {size}, to node '{clean(str(report.target['node']))}'"


def format_size(disks: int, size_bytes: int, more: str = "") -> str:
    """`2 disks, 1536.0 MiB`. Args: more: what else, as `and the memory`."""
    words = [f"{disks} {'disk' if disks == 1 else 'disks'}", *([more] if more else [])]
    return f"{' '.join(words)}, {format_amount(size_bytes)}"
