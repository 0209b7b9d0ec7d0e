"""Lines for whoever called: flushed one by one, so that two outputs on one pipe keep their order."""

from __future__ import annotations

import sys
from typing import TextIO

from mtunnel_tx.pve.imagefile import printable


def say(text: str) -> None:
    """Print a line on the standard output."""
    _print(text, sys.stdout)


def warn(text: str) -> None:
    """Print a line on the standard error output."""
    _print(text, sys.stderr)


def _print(text: str, stream: TextIO) -> None:
    """Volume names come from a peer: control characters never reach a terminal or a log raw."""
    lines = "\n".join(printable(line) for line in text.split("\n"))
    print(lines.encode("utf-8", "replace").decode(), file=stream, flush=True)
