"""`mtunnel-pvesm serve`: one process runs many commands, one after another, for a daemon that asks often.

Starting this program takes longer than most of its commands. Each line of the standard input is a JSON array, the words
of a command. Its output comes as ever, and behind it a line with END and the exit code; no other line begins with END,
since control characters in what is printed are replaced. The end of the input ends the process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence

from mtunnel_tx.pvesm.failure import ExitError

SERVED = frozenset({"alloc", "free", "list", "path", "status"})
"""The commands that leave nothing behind in their process; importers and exporters have one of their own."""
END = "\x1e"
BAD_REQUEST = 2


def serve(run: Callable[[Sequence[str]], int]) -> int:
    """Run what is asked for. Args: run: runs one command, prints its output, returns its exit code."""
    for line in sys.stdin:
        print(f"{END}{run(_read_words(line))}", flush=True)
    return 0


def _read_words(line: str) -> list[str]:
    """Raises: ExitError: no command that is served."""
    try:
        words = json.loads(line)
    except ValueError:
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words) or words[:1] == []:
        raise ExitError("no command", BAD_REQUEST)
    if words[0] not in SERVED:
        raise ExitError(f"'{words[0]}' needs a process of its own", BAD_REQUEST)
    return words
