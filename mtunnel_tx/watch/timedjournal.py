"""A journal whose records are timed: how long each took until it was on the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mtunnel_tx.ports.journal import Journal


class TimedJournal:
    """ports.Journal. Args: seconds: a monotonic clock. appended: told how long a record took, in seconds."""

    def __init__(self, journal: Journal, seconds: Callable[[], float], appended: Callable[[float], object]) -> None:
        self._journal = journal
        self._seconds = seconds
        self._appended = appended
        self.open = journal.open
        self.remove = journal.remove
        self.read = journal.read
        self.standing = journal.standing
        self.why_taken = journal.why_taken
        self.tidy = journal.tidy

    async def append(self, vmid: int, record: Mapping[str, Any]) -> None:
        """See ports.Journal."""
        began_s = self._seconds()
        await self._journal.append(vmid, record)
        self._appended(self._seconds() - began_s)
