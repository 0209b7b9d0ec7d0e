"""The notes about one live tunnel, as they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mtunnel_tx.ports.notes import Notes
from mtunnel_tx.tunnel.transcript import Transcript, answered, apply, asked, heard, interrupted, summary

INTERRUPTED_BYTES = 64
"""About the size of such a note: a source may lose its connections again and again."""
FOLDED_BYTES = 256 << 10
"""So much may be written beyond what is pending before all notes become one."""


class Notebook:
    """Writes notes, and keeps their fold. A notebook that was spoilt writes nothing more."""

    def __init__(self, notes: Notes, vmid: int, transcript: Transcript) -> None:
        self.transcript = transcript
        self._notes = notes
        self._vmid = vmid
        self._written_bytes = 0
        self._is_spoilt = False
        self._fold()

    def heard(self, data: bytes) -> None:
        """Bytes have come, and nobody has looked at them yet."""
        self._add(heard(data), len(data))

    def asked(self, records: int) -> None:
        """A command is about to be begun. Args: records: how many its journal has."""
        self._add(asked(records), 0)

    def answered(self, reply: bytes, state: Callable[[], Mapping[str, Any]]) -> None:
        """A reply is about to be sent."""
        self._add(answered(reply, state()), len(reply))

    def interrupted(self, before_s: float) -> None:
        """An outage is over. Args: before_s: how long all of them were."""
        self._add(interrupted(before_s), INTERRUPTED_BYTES)

    def spoil(self) -> None:
        """What happens now cannot be noted: the tunnel ends with this daemon."""
        self._is_spoilt = True
        self.transcript = Transcript()
        self._notes.remove(self._vmid)

    def _add(self, note: Mapping[str, Any], size_bytes: int) -> None:
        if self._is_spoilt:
            return
        self.transcript = apply(self.transcript, note)
        self._notes.add(self._vmid, note)
        self._written_bytes += size_bytes
        if self._written_bytes > FOLDED_BYTES + 2 * len(self.transcript.pending):
            self._fold()

    def _fold(self) -> None:
        self._written_bytes = 0
        self._notes.replace(self._vmid, summary(self.transcript))
