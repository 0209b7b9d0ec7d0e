"""Children that outlived the daemon that started them.

Each child has a mark in its environment, which its own children inherit. A daemon that was killed could not write down
their pids, and pids are reused.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

VARIABLE = "MTUNNEL_ATTACHED"
"""Set to the state directory of the daemon that a child works for."""

_ROUNDS = 100
_END_MS = 1000


def end_orphans(owner: str, but: Collection[int] = ()) -> int:
    """Send SIGKILL to every process marked with `owner`, again and again until no new one appears.

    Args: but: the ids of sessions that are left alone.

    Blocks. A process that waits for a device cannot end yet; this waits about a second for it and then goes on.
    Returns: how many there were.
    """
    word = f"{VARIABLE}={owner}".encode()
    seen: set[int] = set()
    for _ in range(_ROUNDS):
        found = {pid for pid in _marked(word) if not but or _session(pid) not in but}
        for pid in found:
            _kill(pid, word)
        if found <= seen:
            break
        seen |= found
    return len(seen)


def _marked(word: bytes) -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid() and _has(int(folder.name), word):
            yield int(folder.name)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def _has(pid: int, word: bytes) -> bool:
    """False for a process that has ended, or whose environment may not be read."""
    try:
        return word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _kill(pid: int, word: bytes) -> None:
    """The descriptor stands for this very process, looked at again once we have it: a number may have a new owner."""
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            if _has(pid, word):
                signal.pidfd_send_signal(process, signal.SIGKILL)
                ended = select.poll()
                ended.register(process, select.POLLIN)
                ended.poll(_END_MS)
        finally:
            os.close(process)
