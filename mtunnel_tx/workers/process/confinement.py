"""What a worker gives up before its first connection, so that somebody who takes it over wins nothing but it.

Everything here needs no rights, works whoever the worker runs as, and cannot be taken back.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from mtunnel_tx.workers.process.callfilter import FilterRefused, filter_calls
from mtunnel_tx.workers.process.landlock import LandlockRefused, allow_only_reading

_PR_SET_DUMPABLE = 4
_LIBRARIES = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache")


def confine() -> list[str]:
    """Leave no core file, let nobody of the same user trace or read this process, open only the program's own files to
    read, make no sockets, processes and files.

    Returns: what the system did not give, for people.
    """
    _leave_no_memory()
    missing = []
    try:
        allow_only_reading(_places())
    except LandlockRefused as error:
        missing.append(f"files are not restricted: {error}")
    try:
        filter_calls()
    except FilterRefused as error:
        missing.append(f"system calls are not restricted: {error}")
    return missing


def _leave_no_memory() -> None:
    """There are keys and tokens in it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _places() -> Iterator[Path]:
    """Where Python, its modules and the system's libraries are: some are loaded only when they are needed."""
    yield from map(Path, _LIBRARIES)
    yield from map(Path, (sys.prefix, sys.base_prefix))
    yield from (place for place in map(Path, sys.path) if place.is_absolute())
