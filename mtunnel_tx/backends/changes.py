"""ports.Changes: `STATE/changes/VMID.json`, and a lock for each VMID beside the configs' locks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from mtunnel_tx.backends.files import ReactorThreads, make_folder, read_text, refusal, remove_file, replace_file
from mtunnel_tx.backends.orphans import end_orphans
from mtunnel_tx.errors import WrongState
from mtunnel_tx.filelocks import try_lock
from mtunnel_tx.ports.changes import Change

VERSION = 1
_FILE = re.compile(r"([1-9][0-9]{2,8})\.json")
_LISTS = ("volumes", "files")


class FileChanges:
    """ports.Changes.

    Args: state_dir: where the records are kept in `changes/`. lock_dir: where the configs' locks are.
    """

    def __init__(self, threads: ReactorThreads, *, state_dir: Path, lock_dir: Path) -> None:
        self._threads = threads
        self._folder = state_dir / "changes"
        self._lock_dir = lock_dir

    @contextmanager
    def locked(self, vmid: int) -> Iterator[None]:
        """See ports.Changes."""
        with self._open_lock(vmid) as file:
            if not try_lock(file):
                raise WrongState(f"VM {vmid} is being changed by another command{self._who(vmid)}")
            yield

    def _who(self, vmid: int) -> str:
        change = self.read(vmid)
        return f": vm {change.action}, pid {change.pid}" if change else ""

    def is_live(self, vmid: int) -> bool:
        """See ports.Changes."""
        with self._open_lock(vmid) as file:
            return not try_lock(file)

    def _open_lock(self, vmid: int) -> IO[bytes]:
        try:
            make_folder(self._lock_dir)
            return (self._lock_dir / f"change-{vmid}.lock").open("ab")
        except OSError as error:
            raise refusal(error) from error

    def read(self, vmid: int) -> Change | None:
        """See ports.Changes."""
        try:
            text = read_text(self._file(vmid))
        except OSError as error:
            raise refusal(error) from error
        return None if text is None else _parse(text, self._file(vmid))

    def standing(self) -> list[int]:
        """See ports.Changes."""
        names = (_FILE.fullmatch(file.name) for file in self._folder.glob("*.json"))
        return sorted(int(name[1]) for name in names if name)

    async def write(self, change: Change) -> None:
        """See ports.Changes."""
        text = json.dumps({"version": VERSION, **asdict(change)}, indent=1) + "\n"
        await self._threads.run(_write, self._file(change.vmid), text)

    async def remove(self, vmid: int) -> None:
        """See ports.Changes."""
        await self._threads.run(remove_file, self._file(vmid))

    async def end_children(self, owner: str) -> None:
        """See ports.Changes."""
        await self._threads.run(end_orphans, owner)

    def _file(self, vmid: int) -> Path:
        return self._folder / f"{vmid}.json"


def _write(file: Path, text: str) -> None:
    make_folder(file.parent)
    replace_file(file, text, 0o600)


def _parse(text: str, file: Path) -> Change:
    try:
        values = json.loads(text)
        if values.pop("version") != VERSION:
            raise WrongState(f"'{file}' is of another version of this program")
        # A record of before `marked` does not say it; what a killed command began is ended all the same.
        return Change(**{"marked": True, **values, **{name: tuple(map(str, values[name])) for name in _LISTS}})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WrongState(f"'{file}' cannot be understood; look at it, then remove it") from error
