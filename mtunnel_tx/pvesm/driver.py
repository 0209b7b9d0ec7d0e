"""What a storage type fulfils so that mtunnel-pvesm can drive it.

The core reads command lines, finds storages, checks what is asked for, opens streams and prints tables: the same for
every type. A type is

- one module in `types/` with one class that is a `Driver`,
- one row in `types/__init__.py`, by its name in storage.cfg,
- its row in `pve/storagetypes.py`: which image formats and which streams there are.

A driver is made anew for each command, for one storage that is enabled and on this node. It takes the part of a volume
id behind the colon, and reads it in its own way. It says what Proxmox's pvesm says (through `output.say`), raises
TunnelError with Proxmox's texts, and leaves nothing behind where it fails. Helpers for drivers: `header.py` and
`sparse.py` for streams, `images/` for storages whose images are files in a folder for each guest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mtunnel_tx.pve.storagecfg import StorageEntry

Announce = Callable[[str], None]
"""Is told the id of a new volume once it is there for good; where it raises, the volume has to go again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedVolume:
    """One line of `list`; `format` as it is shown."""

    volid: str
    format: str
    content: str
    size_bytes: int
    vmid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageUsage:
    """Of the storage as a whole."""

    total_bytes: int = 0
    used_bytes: int = 0
    free_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewImage:
    """What `alloc` makes; `name` empty: the next free one; `format` None: that of the name, else the storage's own."""

    vmid: int
    name: str
    size_bytes: int
    format: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOrder:
    """What `import` makes of a stream; the stream's format is one that the storage type takes.

    `delete_snapshot` is removed from the image once it is here. `requester`: the process that must still be our parent
    at the end; None: no matter who.
    """

    volid: str
    stream_format: str
    with_snapshots: bool
    allow_rename: bool
    delete_snapshot: str | None = None
    requester: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOrder:
    """What `export` sends; `partial`: only a snapshot, or what changed since one."""

    volid: str
    stream_format: str
    with_snapshots: bool
    partial: bool = False


class Driver(Protocol):
    """One storage, as its type does it."""

    @property
    def plugin(self) -> str:
        """What Proxmox's texts call the type: `PVE::Storage::DirPlugin`."""

    @property
    def entry(self) -> StorageEntry:
        """The storage in storage.cfg."""

    def find_problem(self) -> str | None:
        """Make it ready. Returns: why it cannot be used; None: it can."""

    def usage(self) -> StorageUsage:
        """How full it is."""

    def path(self, name: str) -> Path:
        """Where a volume is, or would be."""

    def volumes(self, kinds: Collection[str], vmid: int | None) -> Iterable[ListedVolume]:
        """What is there of these kinds of content, of one guest or of all, in no order."""

    def free(self, name: str) -> None:
        """Remove a volume; one that is not there is worth a warning only."""

    def allocate(self, wanted: NewImage, announce: Announce) -> None:
        """Make an empty image."""

    def receive(self, name: str, order: ImportOrder, stream: int, announce: Announce) -> None:
        """Make a volume of a stream, all of it or none. Args: stream: a descriptor to read from, to its end."""

    def send(self, name: str, order: ExportOrder, target: int) -> None:
        """Write a volume as a stream to a descriptor; refuse before the first byte what can be refused then."""
