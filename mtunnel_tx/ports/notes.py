"""Notes about live tunnels, for the next daemon on the same host while its flows and QEMUs live on.

They are no journal: they are not synced, they decide nothing about a VM, and a reboot may take them. A tunnel without
notes, or with notes that do not fit, is ended by its journal alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Notes(Protocol):
    """One file of notes for each VMID. What cannot be written is logged, and the file goes: no notes are better."""

    def add(self, vmid: int, note: Mapping[str, Any]) -> None:
        """Add a note; it survives the end of this process from now on."""

    def replace(self, vmid: int, note: Mapping[str, Any]) -> None:
        """Put one note in the place of all, at once."""

    def read(self, vmid: int) -> list[dict[str, Any]] | None:
        """All whole notes; None: there are none, or they cannot be read."""

    def remove(self, vmid: int) -> None:
        """Forget them."""

    def standing(self) -> list[int]:
        """The VMIDs that have notes."""


class NoNotes:
    """For those who have no tunnels."""

    def add(self, vmid: int, note: Mapping[str, Any]) -> None:
        """Nothing is kept."""

    def replace(self, vmid: int, note: Mapping[str, Any]) -> None:
        """The same."""

    def read(self, vmid: int) -> list[dict[str, Any]] | None:  # noqa: ARG002
        """There are none."""
        return None

    def remove(self, vmid: int) -> None:
        """The same."""

    def standing(self) -> list[int]:
        """The same."""
        return []
