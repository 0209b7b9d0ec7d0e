"""Storages of type `dir`: files below a folder of the host (pvesm.driver.Driver)."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from mtunnel_tx.config import Settings
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.pve.volume import VolumeId, parse_dir_volume
from mtunnel_tx.pvesm.driver import Announce, ExportOrder, ImportOrder, ListedVolume, NewImage, StorageUsage
from mtunnel_tx.pvesm.images.allocation import allocate_image
from mtunnel_tx.pvesm.images.folders import ImageFolders
from mtunnel_tx.pvesm.images.incoming import receive_image
from mtunnel_tx.pvesm.images.listing import list_volumes
from mtunnel_tx.pvesm.images.outgoing import send_image, verify_source
from mtunnel_tx.pvesm.images.removal import remove_volume
from mtunnel_tx.pvesm.images.reservation import sweep

_MOUNTS = Path("/proc/self/mountinfo")
_MOUNT_FIELD = 4
_ESCAPE = re.compile(rb"\\(\d{3})")


class DirDriver:
    """Drives one storage; its images are in `images/VMID/`."""

    plugin = "PVE::Storage::DirPlugin"

    def __init__(self, settings: Settings, entry: StorageEntry) -> None:
        self.entry = entry
        self._folders = ImageFolders(entry, settings.lock_dir)

    def find_problem(self) -> str | None:
        """See Driver. The folder is made if the storage allows that."""
        path = Path(self.entry.path or "/nonexistent")
        mount_point = self.entry.options.get("is_mountpoint", "0")
        if mount_point not in ("0", "no", "off", "false"):
            expected = Path(mount_point) if mount_point.startswith("/") else path
            if not _is_mounted(expected):
                return f"directory is expected to be a mount point but is not mounted: '{expected}'"
        if not path.is_dir() and _may_make(self.entry):
            with suppress(OSError):
                path.mkdir(0o755, parents=True)
        return None if path.is_dir() else f"directory '{path}' does not exist or is unreachable"

    def usage(self) -> StorageUsage:
        """See Driver. The numbers are those of the file system."""
        found = shutil.disk_usage(self.entry.path or "/")
        return StorageUsage(total_bytes=found.total, used_bytes=found.used, free_bytes=found.free)

    def path(self, name: str) -> Path:
        """See Driver."""
        return self._folders.file(parse_dir_volume(name))

    def volumes(self, kinds: Collection[str], vmid: int | None) -> Iterator[ListedVolume]:
        """See Driver. Also removes what killed imports of that guest left behind."""
        if vmid is not None:
            with suppress(OSError, TunnelError):
                sweep(self._folders, vmid)
        return list_volumes(self._folders, kinds, vmid)

    def free(self, name: str) -> None:
        """See Driver."""
        remove_volume(self._folders, parse_dir_volume(name))

    def allocate(self, wanted: NewImage, announce: Announce) -> None:
        """See Driver."""
        allocate_image(self._folders, wanted, announce)

    def receive(self, name: str, order: ImportOrder, stream: int, announce: Announce) -> None:
        """See Driver."""
        receive_image(self._folders, name, order, stream, announce)

    def send(self, name: str, order: ExportOrder, target: int) -> None:
        """See Driver."""
        send_image(self._folders, self.plugin, name, order, target)

    def verify(self, volume: VolumeId) -> None:
        """See Driver."""
        verify_source(self._folders, volume.name, str(volume))


def _is_mounted(path: Path) -> bool:
    """Look it up in the kernel's table, since a bind mount looks like any folder. Source: proc_pid_mountinfo(5)."""
    with _MOUNTS.open("rb") as table:
        found = {_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), line.split(b" ")[_MOUNT_FIELD]) for line in table}
    return os.fsencode(path.resolve()) in found


def _may_make(entry: StorageEntry) -> bool:
    return entry.options.get("create-base-path", entry.options.get("mkdir", "1")) == "1"
