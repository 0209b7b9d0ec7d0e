"""What a command is about to do to a VM, written down before it does it, so that it can be undone or finished."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One command's work on one VM.

    `action`: the command's word. `pid`: of the command. `owner`: what its children are known by. `claim`: the `vmgenid`
    of the config that it makes, so that this one alone is removed again; empty: it makes none. `snapshot`: the one that
    it works on. `volumes`: what it makes or frees: freed at the end unless a config names them. `files`: other files
    that it makes, removed unless it succeeds. `marked`: it was about to lock the config, which nobody else had locked.
    """

    vmid: int
    action: str
    pid: int
    owner: str
    claim: str = ""
    snapshot: str = ""
    volumes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    marked: bool = False


class Changes(Protocol):
    """One record for each VMID that a command works on, or worked on when it was killed."""

    def locked(self, vmid: int) -> AbstractContextManager[None]:
        """Work on a VM, one command at a time; the lock ends with the process. Raises: WrongState: another one does."""

    def is_live(self, vmid: int) -> bool:
        """Whether the command that wrote the record still runs."""

    def read(self, vmid: int) -> Change | None:
        """The record; None: there is none. Raises: WrongState: it cannot be understood."""

    def standing(self) -> list[int]:
        """The VMIDs that have a record."""

    async def write(self, change: Change) -> None:
        """Write the record, or replace it; it is safe on disk when this returns."""

    async def remove(self, vmid: int) -> None:
        """The work is done, or undone."""

    async def end_children(self, owner: str) -> None:
        """End the programs that a killed command started and that work on."""
