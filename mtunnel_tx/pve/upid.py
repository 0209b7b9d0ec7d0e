"""UPIDs: the names of tasks (formats.md section 7)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mtunnel_tx.checks import NODE_NAME
from mtunnel_tx.errors import BadRequest

# What format() writes and nothing else: a UPID comes from a URL and becomes a file name.
_UPID = re.compile(
    rf"UPID:(?P<node>{NODE_NAME}):(?P<pid>[0-9A-F]{{8}}):(?P<pstart>[1-9A-F]?[0-9A-F]{{8}})"
    r":(?P<starttime>[0-9A-F]{8}):(?P<type>[A-Za-z0-9]+):(?P<id>[A-Za-z0-9_.-]*):(?P<user>[^\s:/]+):"
)
_MAX_FILE_NAME_BYTES = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Upid:
    """One task: process id, its start time in jiffies since boot, and its start in seconds since the epoch."""

    node: str
    pid: int
    pstart: int
    starttime: int
    type: str
    id: str
    user: str

    def format(self) -> str:
        """`UPID:NODE:PID:PSTART:START:TYPE:ID:USER:`, numbers in hex."""
        numbers = f"{self.pid:08X}:{self.pstart:08X}:{self.starttime:08X}"
        return f"UPID:{self.node}:{numbers}:{self.type}:{self.id}:{self.user}:"

    __str__ = format

    @property
    def log_path(self) -> str:
        """Where its log is, below the folder of task logs: `LASTHEXDIGIT/UPID`."""
        return f"{self.starttime & 15:X}/{self.format()}"


def parse_upid(text: str) -> Upid:
    """Read a UPID, strictly: what comes back is written as the same text.

    Raises: BadRequest: `unable to parse worker upid`.
    """
    found = _UPID.fullmatch(text)
    if not found or not text.isprintable() or len(text.encode()) > _MAX_FILE_NAME_BYTES:
        raise BadRequest("unable to parse worker upid")
    return Upid(
        node=found["node"],
        pid=int(found["pid"], 16),
        pstart=int(found["pstart"], 16),
        starttime=int(found["starttime"], 16),
        type=found["type"],
        id=found["id"],
        user=found["user"],
    )
