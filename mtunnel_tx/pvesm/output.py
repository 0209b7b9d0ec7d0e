"""Lines for whoever called: flushed one by one, so that two outputs on one pipe keep their order."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

from mtunnel_tx.checks import clean_lines


def say(text: str) -> None:
    """Print a line on the standard output."""
    _print(text, sys.stdout)


def warn(text: str) -> None:
    """Print a line on the standard error output; where that fails, the exit code has to do."""
    with suppress(OSError):
        _print(text, sys.stderr)


def _print(text: str, stream: TextIO) -> None:
    """Volume names come from a peer: control characters never reach a terminal or a log raw."""
    lines = clean_lines(text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(lines.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
    except OSError:
        _drop(stream)
        raise


def _drop(stream: TextIO) -> None:
    """What could not be written is still held: at the end of the program it would be tried, and fail, once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
