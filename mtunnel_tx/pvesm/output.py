"""Output lines. Each is flushed at once, so that stdout and stderr on one pipe keep their order."""

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
    """Print a line on the standard error output; if that fails, only the exit code tells of the error."""
    with suppress(OSError):
        _print(text, sys.stderr)


def _print(text: str, stream: TextIO) -> None:
    """Replace control characters before printing: volume names come from a peer."""
    lines = clean_lines(text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(lines.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
    except OSError:
        _drop(stream)
        raise


def _drop(stream: TextIO) -> None:
    """Redirect the stream to /dev/null, so that Python does not try to flush the rest at exit and fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
