"""Notes about live tunnels below the runtime directory, `RUNTIME/VMID.notes` (ports.Notes)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.logger import Logger

log = Logger()
_NAME = re.compile(r"([1-9][0-9]*)\.notes")


class FileNotes:
    """Written in place and not synced: they are for the next process, not for the next boot."""

    def __init__(self, runtime_dir: Path) -> None:
        self._folder = runtime_dir

    def add(self, vmid: int, note: Mapping[str, Any]) -> None:
        """See ports.Notes. Nothing is added to notes that are gone."""
        try:
            _write(self._file(vmid), os.O_WRONLY | os.O_APPEND, note)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._give_up(vmid, error)

    def replace(self, vmid: int, note: Mapping[str, Any]) -> None:
        """See ports.Notes."""
        path = self._file(vmid)
        fresh = path.with_suffix(".notes.tmp")
        try:
            _write(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, note)
            fresh.replace(path)
        except OSError as error:
            self._give_up(vmid, error)

    def read(self, vmid: int) -> list[dict[str, Any]] | None:
        """See ports.Notes."""
        try:
            data = self._file(vmid).read_bytes()
            return [json.loads(line) for line in data.split(b"\n")[:-1]]
        except (OSError, ValueError):
            return None

    def remove(self, vmid: int) -> None:
        """See ports.Notes."""
        self._file(vmid).unlink(missing_ok=True)

    def standing(self) -> list[int]:
        """See ports.Notes."""
        matches = [_NAME.fullmatch(path.name) for path in self._folder.glob("*.notes")]
        return sorted(int(match[1]) for match in matches if match)

    def _file(self, vmid: int) -> Path:
        return self._folder / f"{vmid}.notes"

    def _give_up(self, vmid: int, error: OSError) -> None:
        log.warn("the tunnel of VM {vmid} will not survive a restart: {reason}", vmid=vmid, reason=str(error))
        self.remove(vmid)


def _write(path: Path, flags: int, note: Mapping[str, Any]) -> None:
    """All of it, or the line stays torn and does not count."""
    data = json.dumps(note, separators=(",", ":")).encode("ascii") + b"\n"
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.write(fd, data) != len(data):
            raise OSError("a note was written in part")
    finally:
        os.close(fd)
