"""Sessions of processes (setsid): who belongs to one, and how to end all of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def kill_session(pid: int) -> None:
    """SIGKILL to a process, to its group, and to members of its session outside the group, until none is left.

    If `setsid` has not run yet, the group does not exist; the process itself is killed before it can start others.
    """
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    killed: set[int] = set()
    members = {pid}
    while members:
        for member in members:
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        killed |= members
        members = set(session_members(pid)) - killed


def session_members(session: int) -> Iterator[int]:
    """The processes of a session, by their ids."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                # The name in the second field may hold blanks and parentheses.
                fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
                if int(fields[3]) == session:
                    yield int(folder.name)
