"""What the holder keeps: descriptors under names, each with a small value; bounded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

MOST_ENTRIES = 1024
"""So that all names fit into one message."""
MOST_DESCRIPTORS = 4
"""Of one entry."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9./_-]{0,63}")


class Refused(Exception):
    """A request that cannot be granted; the text is for the daemon's log."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies under a name. value: whatever the daemon has to know about the descriptors."""

    value: Any
    fds: tuple[int, ...]


class Shelf:
    """All entries. The descriptors belong to it from `put` on, and are closed with their entry."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, name: str, value: Any, fds: Sequence[int]) -> None:
        """Keep this; without descriptors, an entry that is there keeps its own. Raises: Refused."""
        before = self._entries.get(name)
        try:
            check_name(name)
            if before is None and len(self._entries) >= MOST_ENTRIES:
                raise Refused(f"more than {MOST_ENTRIES} entries")
        except Refused:
            _close(fds)
            raise
        if before is not None and fds:
            _close(before.fds)
        kept = before.fds if before is not None and not fds else tuple(fds)
        self._entries[name] = Entry(value, kept)

    def get(self, name: str) -> Entry:
        """What lies there, and stays. Raises: Refused: nothing."""
        if name not in self._entries:
            raise Refused(f"there is no entry '{name}'")
        return self._entries[name]

    def drop(self, name: str) -> None:
        """Close what lies there; nothing happens where nothing does."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            _close(entry.fds)

    def names(self) -> Sequence[str]:
        """In the order in which they were put there first."""
        return list(self._entries)

    def clear(self) -> None:
        """Close everything."""
        for name in self.names():
            self.drop(name)


def check_name(name: object) -> None:
    """Raises: Refused: it cannot name anything."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Refused(f"{name!r:.120} is no name")


def check_words(message: Mapping[str, Any], key: str) -> list[str]:
    """A list of texts in a message. Raises: Refused."""
    words = message.get(key)
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise Refused(f"'{key}' is no list of texts")
    return words


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
