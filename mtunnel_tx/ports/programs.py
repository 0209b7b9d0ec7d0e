"""Programs that write a journal: who they are, and whether they still work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A process, so that no other one is taken for it: its start is in clock ticks since the boot `boot`."""

    boot: str
    pid: int
    started: int


class Programs(Protocol):
    """The processes of this host."""

    def this(self) -> Program:
        """The process that asks."""

    def is_alive(self, program: Program) -> bool:
        """Whether it works on; after a reboot none does."""
