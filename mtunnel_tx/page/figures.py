"""Numbers as people read them, and as programs do: each one stands in a `data` element with its exact value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from mtunnel_tx.page.html import Content, Html, element, join
from mtunnel_tx.source.amounts import format_amount, format_rate, format_time

UNKNOWN = "?"


def figure(name: str, value: float | None, text: str) -> Html:
    """Args: name: as in `mtunnel status --json`. value: None: not known."""
    shown = text if value is not None else UNKNOWN
    return element("data", shown, value="" if value is None else value, class_=f"figure {name}")


def count(name: str, value: int) -> Html:
    """A number of things."""
    return figure(name, value, str(value))


def amount(name: str, size_bytes: int | None) -> Html:
    """`12.5 MiB`."""
    return figure(name, size_bytes, format_amount(size_bytes or 0))


def rate(name: str, bytes_s: float) -> Html:
    """`12.5 MiB/s`."""
    return figure(name, round(bytes_s), format_rate(bytes_s, 1))


def duration(name: str, seconds: float | None) -> Html:
    """`0:12`."""
    return figure(name, None if seconds is None else round(seconds, 1), format_time(seconds or 0))


def moment(name: str, at_s: float) -> Html:
    """`2026-11-29 21:00:00 UTC`."""
    at = datetime.fromtimestamp(at_s, UTC)
    return element("time", f"{at:%Y-%m-%d %H:%M:%S} UTC", datetime=at.isoformat(timespec="seconds"), class_=name)


def pairs(rows: Iterable[tuple[str, Content]]) -> Html:
    """A list of names and what they are."""
    return element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in rows))


def table(headings: Sequence[str], rows: Iterable[Sequence[Content]]) -> Html:
    """A table that may be moved sideways where it has no room; each cell also names its heading."""
    head = element("tr", *(element("th", text, scope="col") for text in headings))
    body = (
        element("tr", *(element("td", cell, data_label=text) for text, cell in zip(headings, row, strict=True)))
        for row in rows
    )
    whole = element("table", element("thead", head), element("tbody", *body))
    return element("div", whole, class_="table")


def paragraphs(*texts: Content) -> Html:
    """One below the other."""
    return join(element("p", text) for text in texts)
