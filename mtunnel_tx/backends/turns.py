"""One after the other, for each VM."""

from __future__ import annotations

from weakref import WeakValueDictionary

from twisted.internet.defer import DeferredLock


class Turns:
    """A lock for each VM, which is there while somebody has it or waits for it: VMIDs come and go without end."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[int, DeferredLock] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._locks)

    def of(self, vmid: int) -> DeferredLock:
        """The lock, to be used at once: `async with turns.of(100)`."""
        return self._locks.setdefault(vmid, DeferredLock())
