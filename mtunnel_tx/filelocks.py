"""Locks on open files (flock), which end with the last descriptor of the file."""

from __future__ import annotations

import fcntl
from typing import IO


def try_lock(file: IO[bytes] | int) -> bool:
    """Take the exclusive lock without waiting.

    Returns: whether it was free. Raises: OSError: this file system cannot lock it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
