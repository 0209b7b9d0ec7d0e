"""The protocol that a storage type has to fulfil so that mtunnel-pvesm can drive it.

The core reads command lines, finds storages, checks what is asked for, opens streams and prints tables. It is the same
for every type. A type consists of

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
from mtunnel_tx.pve.volume import VolumeId

Announce = Callable[[str], None]
"""Is told the id of a new volume once it is there for good; where it raises, the volume has to go again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedVolume:
    """One line of `list`. `format`: as it is printed, e.g. `tgz` for a container template."""

    volid: str
    format: str
    content: str
    size_bytes: int
    vmid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageUsage:
    """How full a storage is."""

    total_bytes: int = 0
    used_bytes: int = 0
    free_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewImage:
    """What `alloc` has to make.

    `name`: empty: the driver chooses the next free name. `format`: None: the format that the name says, else the
    storage's default.
    """

    vmid: int
    name: str
    size_bytes: int
    format: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOrder:
    """What `import` has to make of a stream. The core has checked that the type takes this stream format.

    `convert`: a raw stream may become an image of another format. `delete_snapshot`: an internal snapshot that is
    removed once the image is here. `requester`: the id of the process that must still be our parent when the stream
    ends; None: this is not checked.
    """

    volid: str
    stream_format: str
    with_snapshots: bool
    allow_rename: bool
    convert: bool = False
    delete_snapshot: str | None = None
    requester: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOrder:
    """What `export` has to send. `partial`: only a snapshot is wanted, or only what changed since one."""

    volid: str
    stream_format: str
    with_snapshots: bool
    partial: bool = False


class Driver(Protocol):
    """Drives one storage of one type."""

    @property
    def plugin(self) -> str:
        """The type's name in Proxmox's error texts, e.g. `PVE::Storage::DirPlugin`."""

    @property
    def entry(self) -> StorageEntry:
        """The storage's section of storage.cfg."""

    def find_problem(self) -> str | None:
        """Make the storage ready if possible. Returns: why it cannot be used; None: it can be used."""

    def usage(self) -> StorageUsage:
        """Ask how full the storage is."""

    def path(self, name: str) -> Path:
        """Returns: where a volume is; it need not exist."""

    def volumes(self, kinds: Collection[str], vmid: int | None) -> Iterable[ListedVolume]:
        """Yields: the volumes of these kinds of content, of one guest or (None) of all, in any order."""

    def free(self, name: str) -> None:
        """Remove a volume. If it does not exist, print a warning and succeed, as Proxmox does."""

    def allocate(self, wanted: NewImage, announce: Announce) -> None:
        """Make an empty image."""

    def receive(self, name: str, order: ImportOrder, stream: int, announce: Announce) -> None:
        """Make a volume from a stream, or leave nothing. Args: stream: a descriptor, which is read to its end."""

    def send(self, name: str, order: ExportOrder, target: int) -> None:
        """Write a volume as a stream to a descriptor; refuse, if possible, before the first byte."""

    def verify(self, volume: VolumeId) -> None:
        """Raises: TunnelError: `receive` would refuse a copy of its file. Where volumes are no files, does nothing."""
