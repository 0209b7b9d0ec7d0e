"""The journal of each VMID, `STATE/journal/VMID.jsonl`: records that are written before each effect."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mtunnel_tx.backends.files import (
    ReactorThreads,
    create_file,
    make_folder,
    naming,
    refusal,
    remove_file,
    remove_leftovers,
    why_unwritable,
)
from mtunnel_tx.backends.reserve import Reserve
from mtunnel_tx.errors import WrongState
from mtunnel_tx.ports.journal import READABLE_VERSIONS, VERSION
from mtunnel_tx.waiting import Turns

COMING, LEAVING = "", "source-"
"""How the files begin: of a VM that comes, and of one on its way out."""


class FileJournal:
    """ports.Journal below a state directory; the first record carries the format's version.

    A record counts if its line is complete. Effects wait for the fsync, so a torn last line announced an effect that
    did not happen. Args: prefix: COMING or LEAVING; a VM has one journal at a time.
    """

    def __init__(self, threads: ReactorThreads, state_dir: Path, prefix: str = COMING) -> None:
        self._threads = threads
        self._prefix = prefix
        self._name = re.compile(rf"{prefix}([1-9][0-9]*)\.jsonl")
        self._folder = state_dir / "journal"
        self._turns = Turns()
        self._reserve = Reserve(state_dir / "reserve")

    async def open(self, vmid: int, record: Mapping[str, Any]) -> None:
        """Create the journal with its first record. Raises: WrongState: one stands already, of either kind."""
        text = _line({**record, "version": VERSION})
        try:
            await self._threads.run(self._reserve.write, _create, self._file(vmid), text, self._other_file(vmid))
        except FileExistsError as error:
            raise WrongState(_waits(vmid)) from error

    async def append(self, vmid: int, record: Mapping[str, Any]) -> None:
        """Add a record, fsynced when this returns. Raises: BackendFailed: there is no journal, or no space."""
        line = _line(record).encode()
        async with self._turns.of(vmid):
            await self._threads.run(self._reserve.write, _append, self._file(vmid), line)

    async def remove(self, vmid: int) -> None:
        """Delete the journal; success where there is none."""
        async with self._turns.of(vmid):
            await self._threads.run(remove_file, self._file(vmid))
        await self._threads.run(self._reserve.fill)

    def read(self, vmid: int) -> list[dict[str, Any]] | None:
        """All whole records, one at least; None where there is no journal.

        Raises: WrongState: it is not ours, another version wrote it, or it is damaged: hold, never delete.
        """
        path = self._file(vmid)
        try:
            with _opened(path, os.O_RDONLY) as fd:
                data = _read_all(fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise refusal(error) from error
        records = [_record(vmid, line) for line in data.split(b"\n")[:-1]]
        if not records:
            raise WrongState(f"the journal of VM {vmid} has no whole record: a crash emptied or cut '{path}'")
        version = records[0].get("version")
        # True is 1 and 1.0 is 1 in Python; neither was ever written.
        if type(version) is not int or version not in READABLE_VERSIONS:
            raise WrongState(f"the journal of VM {vmid} has an unknown version")
        return records

    def standing(self) -> list[int]:
        """The VMIDs that have a journal."""
        try:
            matches = [self._name.fullmatch(path.name) for path in self._folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise refusal(error) from error
        return sorted(int(match[1]) for match in matches if match)

    def why_taken(self, vmid: int) -> str | None:
        """See ports.Journal."""
        files = (self._file(vmid), self._other_file(vmid))
        return _waits(vmid) if any(map(os.path.lexists, files)) else why_unwritable(self._folder)

    async def tidy(self) -> None:
        """See ports.Journal."""
        await self._threads.run(remove_leftovers, self._folder, f"{self._prefix}[0-9]*.jsonl")
        await self._threads.run(self._reserve.fill)

    def _file(self, vmid: int) -> Path:
        return self._folder / f"{self._prefix}{vmid}.jsonl"

    def _other_file(self, vmid: int) -> Path:
        return self._folder / f"{COMING if self._prefix == LEAVING else LEAVING}{vmid}.jsonl"


def _waits(vmid: int) -> str:
    return f"VM {vmid} waits for 'mtunnel settle {vmid}'"


def _line(record: Mapping[str, Any]) -> str:
    # ASCII only, so that no text of a peer can fail to be encoded.
    return json.dumps(record, separators=(",", ":")) + "\n"


def _record(vmid: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise WrongState(f"the journal of VM {vmid} is damaged") from error
    if not isinstance(record, dict):
        raise WrongState(f"the journal of VM {vmid} is damaged")
    return record


def _create(path: Path, text: str, other: Path) -> None:
    """Raises: FileExistsError: it is there, or another one that speaks for the same VM."""
    make_folder(path.parent)
    create_file(path, text, 0o600)
    if os.path.lexists(other):  # looked for afterwards: of two at once, none is taken rather than both
        remove_file(path)
        raise FileExistsError


def _append(path: Path, line: bytes) -> None:
    """Behind the last whole line: what a crash or a full disk tore off is cut away first.

    A record that cannot be made safe is cut away again: its deed never happens.
    """
    with naming(path), _opened(path, os.O_RDWR) as fd:
        end = _read_all(fd).rfind(b"\n") + 1
        os.ftruncate(fd, end)
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(fd, line[written:], end + written)
            os.fsync(fd)
        except OSError:
            with suppress(OSError):
                os.ftruncate(fd, end)
            raise


def _read_all(fd: int) -> bytes:
    with os.fdopen(fd, "rb", closefd=False) as file:
        return file.read()


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A journal that is ours: a regular file, no link, of the owner of its folder. Yields: its descriptor.

    Raises: WrongState: it is not. OSError.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise WrongState(f"the journal '{path}' is a symbolic link") from error
    try:
        _check_ours(path, os.fstat(fd))
        yield fd
    finally:
        os.close(fd)


def _check_ours(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise WrongState(f"the journal '{path}' is no file")
    if status.st_uid != path.parent.stat().st_uid:
        raise WrongState(f"the journal '{path}' belongs to user {status.st_uid}")
