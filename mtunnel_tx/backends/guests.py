"""Guest configs, firewall files and config locks, laid out as on a Proxmox node."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from mtunnel_tx.backends.files import (
    CachedFile,
    ReactorThreads,
    create_file,
    make_folder,
    read_text,
    refusal,
    remove_file,
    remove_leftovers,
    replace_file,
    why_unwritable,
)
from mtunnel_tx.errors import NoSuchGuest, TimedOut, WrongState
from mtunnel_tx.filelocks import try_lock
from mtunnel_tx.ports.clock import Clock
from mtunnel_tx.ports.guests import GuestEntry
from mtunnel_tx.pve.guestconf import GuestConfig, format_guest_config, parse_guest_config
from mtunnel_tx.pve.guestlayout import LAYOUTS, QEMU_LAYOUT
from mtunnel_tx.waiting import pause

RETRY_S = 0.1
_CONFIG_FILE = re.compile(r"([1-9][0-9]{2,8})\.conf")
_MODE = 0o640


class GuestFiles:
    """ports.Guests on `pve_dir/nodes/NODE/qemu-server/VMID.conf` and `pve_dir/firewall/VMID.fw`.

    Args: threads: write the files. clock: times the waits for a lock.
    """

    def __init__(self, threads: ReactorThreads, clock: Clock, *, pve_dir: Path, lock_dir: Path, node: str) -> None:
        self.node = node
        self._threads = threads
        self._clock = clock
        self._pve_dir = pve_dir
        self._lock_dir = lock_dir
        self._names: dict[Path, CachedFile[str]] = {}

    @asynccontextmanager
    async def locked(self, vmid: int, wait_s: float) -> AsyncIterator[None]:
        """Hold the flock on `lock-VMID.conf`. Raises: TimedOut: `can't lock file 'FILE' - got timeout`."""
        path = self._lock_dir / f"lock-{vmid}.conf"
        with self._open_lock(path) as file:
            deadline = self._clock.seconds() + wait_s
            while not try_lock(file):
                if self._clock.seconds() >= deadline:
                    raise TimedOut(f"can't lock file '{path}' - got timeout")
                await pause(self._clock, RETRY_S)
            # Closing the file gives the lock back.
            yield

    def _open_lock(self, path: Path) -> IO[bytes]:
        try:
            self._lock_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            return path.open("ab")
        except OSError as error:
            raise refusal(error) from error

    def read(self, vmid: int) -> GuestConfig:
        """Raises: NoSuchGuest: `Configuration file 'nodes/NODE/qemu-server/V.conf' does not exist`."""
        text = self._read(self._config(vmid))
        if text is None:
            raise NoSuchGuest(vmid, str(self._config(vmid).relative_to(self._pve_dir)))
        return parse_guest_config(text)

    def entries(self) -> list[GuestEntry]:
        """Every guest of every node, containers included, by VMID."""
        found = {path: (vmid, kind) for path, vmid, kind in self._configs()}
        self._names = {path: self._names.get(path) or CachedFile(path, _guest_name) for path in found}
        entries = [
            GuestEntry(vmid=vmid, node=path.parent.parent.name, kind=kind, name=self._names[path].value())
            for path, (vmid, kind) in found.items()
        ]
        return sorted(entries, key=lambda entry: entry.vmid)

    def naming(self, volid: str) -> list[GuestEntry]:
        """The guests of any node whose config names this volume, also in a snapshot."""
        names = re.compile(rf"(?:^|[\s,=]){re.escape(volid)}(?:[\s,]|$)")
        return [
            GuestEntry(vmid=vmid, node=path.parent.parent.name, kind=kind, name="")
            for path, vmid, kind in self._configs()
            if names.search(self._read(path) or "")
        ]

    def _configs(self) -> Iterator[tuple[Path, int, str]]:
        for node in _listed(self._pve_dir / "nodes"):
            for kind, layout in LAYOUTS.items():
                for file in _listed(Path(node.path, layout.config_folder)):
                    match = _CONFIG_FILE.fullmatch(file.name)
                    if match and file.is_file():
                        yield Path(file.path), int(match[1]), kind

    async def write(self, vmid: int, conf: GuestConfig) -> None:
        """Replace the config atomically, file and folder fsynced."""
        await self._threads.run(replace_file, self._config(vmid), format_guest_config(conf), _MODE)

    async def create(self, vmid: int, conf: GuestConfig) -> None:
        """Write a config that must not exist yet. Raises: WrongState: `VM V already exists on node 'NODE'`."""
        try:
            await self._threads.run(_create, self._config(vmid), format_guest_config(conf))
        except FileExistsError as error:
            raise WrongState(f"VM {vmid} already exists on node '{self.node}'") from error

    async def remove(self, vmid: int) -> None:
        """Delete the config; success where there is none."""
        await self._threads.run(remove_file, self._config(vmid))

    async def write_firewall(self, vmid: int, text: str) -> None:
        """Replace the firewall file."""
        await self._threads.run(_write_firewall, self._firewall(vmid), text)

    async def remove_firewall(self, vmid: int) -> None:
        """Delete the firewall file; success where there is none."""
        await self._threads.run(remove_file, self._firewall(vmid))

    def why_unwritable(self) -> str | None:
        """See ports.Guests."""
        folders = {self._config(0).parent, self._firewall(0).parent}
        return next(filter(None, map(why_unwritable, sorted(folders))), None)

    async def tidy(self, vmid: int) -> None:
        """See ports.Guests."""
        for path in (self._config(vmid), self._firewall(vmid)):
            await self._threads.run(remove_leftovers, path.parent, path.name)

    def read_firewall(self, vmid: int) -> str | None:
        """The firewall file; None where there is none."""
        return self._read(self._firewall(vmid))

    def _config(self, vmid: int) -> Path:
        return self._pve_dir / "nodes" / self.node / QEMU_LAYOUT.config_folder / f"{vmid}.conf"

    def _firewall(self, vmid: int) -> Path:
        return self._pve_dir / "firewall" / f"{vmid}.fw"

    def _read(self, path: Path) -> str | None:
        try:
            return read_text(path)
        except OSError as error:
            raise refusal(error) from error


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder; none if it does not exist. Raises: BackendFailed: it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise refusal(error) from error


def _guest_name(text: str) -> str:
    options = parse_guest_config(text).options
    return options.get("name") or options.get("hostname", "")


def _create(path: Path, text: str) -> None:
    make_folder(path.parent)
    create_file(path, text, _MODE)


def _write_firewall(path: Path, text: str) -> None:
    make_folder(path.parent)
    replace_file(path, text, _MODE)
