"""Draws the figures as SVG: a bar for each relay, throughput on the left, CPU on the right."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from html import escape
from typing import Any

WIDTH, LEFT, COLUMN, BAR, GAP = 920, 130, 330, 18, 8
PANELS = (("to the UNIX socket", "in"), ("from the UNIX socket", "out"))
STYLE = (
    "text{font:13px sans-serif;fill:#222}.head{font-weight:bold}.ours{fill:#2a6f97}.other{fill:#b8c4cc}.back{fill:#fff}"
)


def draw(rows: Iterable[Any]) -> str:
    """Args: rows: report.Row. Returns: the picture; of all rows those with TLS and one stream on one core."""
    shown = [row for row in rows if row.tls and row.streams == 1 and row.pinned and _is_usual(row)]
    parts: list[str] = []
    top = 30
    for title, direction in PANELS:
        chosen = sorted((row for row in shown if row.direction == direction), key=lambda row: -row.mb_s)
        if chosen:
            parts += _panel(title, chosen, top)
            top += 58 + len(chosen) * (BAR + GAP)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">'
    return "\n".join(
        (head, f"<style>{STYLE}</style>", f'<rect class="back" width="{WIDTH}" height="{top}"/>', *parts, "</svg>\n")
    )


def _is_usual(row: Any) -> bool:
    return not (row.rate_mb_s or row.resumable) and row.mask != "random" and row.frame in (None, 128 << 10)


def _panel(title: str, rows: list[Any], top: int) -> list[str]:
    right = LEFT + COLUMN + 100
    parts = [
        _text(10, top, f"TLS, {title}", "head"),
        _text(LEFT, top + 20, "MB/s, more is better"),
        _text(right, top + 20, "CPU s/GiB, less is better"),
    ]
    speed, cost = _scale(row.mb_s for row in rows), _scale(row.cpu_s_gib for row in rows)
    for number, row in enumerate(rows):
        y = top + 30 + number * (BAR + GAP)
        kind = "ours" if row.relay.startswith("mtunnel") else "other"
        parts.append(_text(10, y + 14, row.relay))
        parts += _bar(LEFT, y, speed(row.mb_s), f"{row.mb_s:.0f}", kind)
        parts += _bar(right, y, cost(row.cpu_s_gib), f"{row.cpu_s_gib:.2f}", kind)
    return parts


def _scale(values: Iterable[float]) -> Callable[[float], float]:
    most = max(values) or 1.0
    return lambda value: value / most * (COLUMN - 30)


def _bar(x: float, y: float, width: float, label: str, kind: str) -> list[str]:
    bar = f'<rect class="{kind}" x="{x}" y="{y}" width="{width:.0f}" height="{BAR}"/>'
    return [bar, _text(x + width + 6, y + 14, label)]


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:.0f}" y="{y:.0f}">{escape(words)}</text>'
