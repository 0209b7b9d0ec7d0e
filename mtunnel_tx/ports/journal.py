"""What is written down about a tunnel: its journal and its task log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class TaskLog(Protocol):
    """The task log of one tunnel, in the words of Proxmox's own worker."""

    upid: str
    warnings: int

    def line(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        """A line that counts in `warnings`."""

    def finish(self, status: str) -> None:
        """`OK`, `WARNINGS: N` or the error; writes the last line `TASK …` and closes."""


class Tasks(Protocol):
    """Task logs under the state directory (`tasks/LASTHEXDIGIT-OF-START/UPID`)."""

    def start(self, task_type: str, vmid: int, token: str) -> TaskLog: ...

    def go_on(self, upid: str) -> TaskLog:
        """Write on in a log of an earlier daemon's. Raises: BackendFailed, BadRequest: there is none."""

    def finish_orphans(self, status: str) -> None:
        """Finish the logs whose daemon died before it did."""


VERSION = 2
"""Of the records' words (tunnel/ledger.py)."""
READABLE_VERSIONS = (1, 2)


class Journal(Protocol):
    """One append-only file of JSON lines for a VMID; written before each effect."""

    async def open(self, vmid: int, record: Mapping[str, Any]) -> None:
        """Create the file with its first record (O_EXCL). Raises: WrongState: one stands already."""

    async def append(self, vmid: int, record: Mapping[str, Any]) -> None:
        """Add a record and fsync it, off the reactor. Raises: BackendFailed: it is not there then."""

    async def remove(self, vmid: int) -> None:
        """Delete the file: nothing is owed any more."""

    def read(self, vmid: int) -> list[dict[str, Any]] | None:
        """All whole records; None where there is no journal.

        Raises: WrongState: it is not ours, of another version, or damaged: hold, never follow. BackendFailed.
        """

    def standing(self) -> list[int]:
        """The VMIDs that have a journal."""

    def why_taken(self, vmid: int) -> str | None:
        """Why none can be opened for a VM: one stands, here or the other way; nothing can be written. None: it can."""

    async def tidy(self) -> None:
        """Remove what a crash left in the middle of opening a journal: it announced nothing."""
