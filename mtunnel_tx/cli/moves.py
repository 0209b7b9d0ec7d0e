"""Moves for people: one table, one unit (MiB), and one line for each where nobody sits at a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.table import Table
from rich.text import Text

from mtunnel_tx.source.amounts import format_amount, format_rate, format_time
from mtunnel_tx.watch.move import INCOMING, MoveState, Transfer

HEADINGS = ("VMID", "", "PEER", "PHASE", "WHAT", "DONE", "TOTAL", "%", "RATE", "LEFT")
UNKNOWN = "?"
_ARROWS = {INCOMING: "from"}


def moves_table(moves: Sequence[MoveState]) -> Table:
    """A row for each move, and one for each of its transfers where there are several."""
    table = Table(*HEADINGS, box=None, pad_edge=False)
    for move in moves:
        for row in _rows(move):
            # As Text, brackets are no markup.
            table.add_row(*map(Text, row))
    return table


def _rows(move: MoveState) -> Iterable[tuple[str, ...]]:
    facts = (str(move.vmid), _ARROWS.get(move.direction, "to"), _peer(move), describe_phase(move))
    if len(move.transfers) == 1:
        yield (*facts, *_cells(move.transfers[0]))
        return
    all_of_it = (_amount(move.done_bytes), _amount(move.total_bytes), _percent(move.percent), *_speed(move))
    yield (*facts, "all", *all_of_it)
    for transfer in move.transfers:
        yield ("", "", "", "", *_cells(transfer))


def _cells(transfer: Transfer) -> tuple[str, ...]:
    total_bytes = transfer.total_bytes
    percent = min(100, 100 * transfer.done_bytes // total_bytes) if total_bytes else None
    return (
        transfer.label,
        _amount(transfer.done_bytes),
        _amount(total_bytes),
        _percent(percent),
        format_rate(transfer.rate_bytes_s, 1) if transfer.is_running else "",
        _left(transfer.remaining_s) if transfer.is_running else "",
    )


def _speed(move: MoveState) -> tuple[str, str]:
    if move.phase.is_end:
        return "", ""
    return format_rate(move.rate_bytes_s, 1), _left(move.remaining_s)


def _peer(move: MoveState) -> str:
    if move.direction == INCOMING:
        # What a source calls itself nobody has verified.
        return f"{move.source} ({move.address})" if move.source else move.address
    same = move.target_vmid == move.vmid
    return move.target if same else f"{move.target} as {move.target_vmid}"


def describe_phase(move: MoveState) -> str:
    """The phase, and what is to be said about it: the downtime, for how long it was parked, why it ended."""
    words = [move.phase.value]
    if move.downtime_s is not None:
        words.append(f"downtime {1000 * move.downtime_s:.0f} ms")
    if move.outage_since_s is not None:
        words.append(f"no connection since {datetime.fromtimestamp(move.outage_since_s):%H:%M:%S}")
    elif move.parked_s:
        words.append(f"parked {format_time(move.parked_s)}")
    return ", ".join(words) + (f": {move.reason}" if move.reason else "")


def move_line(move: MoveState) -> str:
    """`VM 100 to b: memory, 43 %, 1024.0 of 2048.0 MiB, 100.0 MiB/s, 0:10 left`."""
    way = f"VM {move.vmid} {_ARROWS.get(move.direction, 'to')} {_peer(move)}: {describe_phase(move)}"
    if move.phase.is_end or not move.done_bytes:
        return way
    amount = f"{_amount(move.done_bytes)} of {_amount(move.total_bytes)}"
    rate, left = _speed(move)
    return f"{way}, {_percent(move.percent)} %, {amount}, {rate}, {left} left"


def _amount(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else format_amount(size_bytes)


def _percent(percent: int | None) -> str:
    return UNKNOWN if percent is None else str(percent)


def _left(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else format_time(seconds)
