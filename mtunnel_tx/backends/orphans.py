"""Children that outlived the daemon which started them.

Each child is given a word in its environment, which its own children inherit: a program that was killed cannot have
written down who they are, and process ids come back after a while.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

VARIABLE = "MTUNNEL_ATTACHED"
"""Set to the state directory of the daemon that a child works for."""

_ROUNDS = 100
_END_MS = 1000


def end_orphans(owner: str) -> int:
    """SIGKILL to every process that works for `owner`, and to what it starts meanwhile, until there is none.

    Blocks, about a second for one that cannot end (it waits for a device): it will not come back to life either.
    Returns: how many there were.
    """
    word = f"{VARIABLE}={owner}".encode()
    seen: set[int] = set()
    for _ in range(_ROUNDS):
        found = set(_marked(word))
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


def _has(pid: int, word: bytes) -> bool:
    """What has ended, and what is not ours to look into, has no environment."""
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
