"""Volumes and the programs that read and write them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mtunnel_tx.extents import FileExtents
from mtunnel_tx.pve.imagefile import ImageFacts
from mtunnel_tx.pve.storagecfg import StorageEntry

Report = Callable[[str], None]
"""Takes one line of a child's output, without its line feed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One line of `pvesm list`; `vmid` is None for what belongs to no guest."""

    volid: str
    format: str
    content: str
    size_bytes: int
    vmid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportRequest:
    """Arguments of `pvesm import`; `socket` is the UNIX socket file the child shall listen on.

    `convert`: a raw stream may become an image of another format.
    """

    volid: str
    stream_format: str
    socket: Path
    with_snapshots: bool
    allow_rename: bool
    snapshot: str | None = None
    delete_snapshot: str | None = None
    convert: bool = False


class Child(Protocol):
    """A running program whose output is read line by line (stdout and stderr on one pipe, in order).

    `name`: under which a Store runs it; empty: it ends with us. `taken`: how many of its lines were.
    """

    pid: int
    name: str
    taken: int

    async def next_line(self, wait_s: float) -> str | None:
        """The next output line with its LF (a last line may lack it); None: nothing came in time, or it has ended."""

    def exhausted(self) -> bool:
        """It has ended and every line was taken."""

    async def ended(self) -> int:
        """Wait for the end. Returns: exit code, or minus the signal's number."""

    async def kill(self) -> None:
        """SIGKILL to its whole session, and wait until it is gone; where it has ended, a Store only forgets it."""


class Storage(Protocol):
    """Volumes, through `pvesm` (Proxmox's or ours) as a child."""

    @property
    def stream_formats(self) -> frozenset[str]:
        """The stream formats that its program knows; of Proxmox's: those without the sparse ones."""

    @property
    def converts(self) -> bool:
        """Whether its program makes images of other formats of raw streams; Proxmox's does not."""

    def config(self) -> Mapping[str, StorageEntry]:
        """storage.cfg, read again when it changed; ids to entries."""

    def datacenter_bwlimit(self) -> str | None:
        """The `bwlimit` value of datacenter.cfg."""

    async def alloc(
        self, storage: str, vmid: int, size_bytes: int, format: str, report: Report, *, name: str = ""
    ) -> str:
        """Make an empty volume; in files it has the very size, rounded up to whole sectors.

        Args: name: empty: the next free one. Returns: its id. Raises: BackendFailed.
        """

    async def free(self, volid: str) -> None:
        """Remove a volume. Raises: BackendFailed."""

    async def volumes(self, storage: str, vmid: int | None = None) -> list[Volume]: ...

    async def why_unwritable(self, storage: str, vmid: int) -> str | None:
        """Why no image of a guest can be made; None: it can, as far as can be seen without making one."""

    async def path(self, volid: str) -> str:
        """Returns: its path in the file system (or a URL of the storage's own)."""

    async def size_bytes(self, volid: str) -> int | None:
        """Returns: its virtual size; None where there is no such volume."""

    async def image_facts(self, volid: str) -> ImageFacts | None:
        """What an image says of itself, and `elsewhere` of its name too; None: it is no file. Never follows a name."""

    async def refers_elsewhere(self, volid: str) -> str | None:
        """Why QEMU would open another file with this volume, or in its place, or would need a key; None: it would not.

        A symbolic or hard link, something that is no file, an image whose header names a backing file (but the base
        that the volume's name has), a data file or extents elsewhere, one that is encrypted. Never follows what it
        finds. None on a storage without files.
        """

    async def verify(self, volid: str) -> None:
        """See that an image nobody writes to is whole, as an import of ours does in the end; this reads all its tables.

        Nothing where the program is Proxmox's. Raises: BackendFailed: it is damaged.
        """

    async def extend(self, volid: str, size_bytes: int) -> None:
        """Add zeros to the end of a raw file that is shorter; nothing for what is no file."""

    async def extents(self, volid: str) -> FileExtents | None:
        """How much of a volume's file is no hole; None on a storage without files. Raises: BackendFailed."""

    async def written_bytes(self, volid: str) -> int | None:
        """About how much a copy of what an image shows would take, by its own map; None: it has none."""

    async def digest(self, volid: str, *, content: bool = False) -> str:
        """Returns: SHA-256 of the volume's file, hex; or of its `content`: of its stream `raw+size`, size included."""

    async def sync(self, volids: Sequence[str]) -> None:
        """fsync these volumes' files and their folders, off the reactor; skips what is no file."""

    def start_import(self, request: ImportRequest) -> Child: ...

    def start_export(self, volid: str, stream_format: str, *, with_snapshots: bool, stdout: int) -> Child:
        """Write the stream to the file descriptor `stdout`; the lines are its stderr."""

    async def available_bytes(self, storage: str) -> int | None:
        """Free space where it is known (`pvesm status`)."""

    async def end_orphans(self, but: Collection[int] = ()) -> None:
        """End the children of an earlier daemon that work on; none of them makes a volume after that.

        Args: but: the ids of sessions that go on.
        """
