"""Bytes, rates and times for people."""

from __future__ import annotations

MIB = 1 << 20
SHORTEST_S = 1.0
"""A rate over less than this says how buffers are filled, not how fast anything is sent."""


def format_amount(size_bytes: float) -> str:
    """`1536.0 MiB`: one unit for all, so that numbers below each other can be compared."""
    return f"{size_bytes / MIB:.1f} MiB"


def format_rate(size_bytes: float, seconds: float) -> str:
    """Bytes in a time as `1536.0 MiB/s`."""
    return f"{format_amount(size_bytes / max(seconds, 0.001))}/s"


def describe_pace(size_bytes: float, seconds: float) -> str:
    """`in 0:02, 1.5 GiB/s`; without the rate where the time is too short for one."""
    rate = f", {format_rate(size_bytes, seconds)}" if seconds >= SHORTEST_S else ""
    return f"in {format_time(seconds)}{rate}"


def format_time(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
