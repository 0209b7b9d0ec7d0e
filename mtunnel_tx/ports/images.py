"""Disk images as files: those that come from elsewhere, and those in the storages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlace:
    """Where an image is: a file, or a part of one (an OVA is an archive). `length_bytes`: None: to the file's end."""

    path: Path
    offset_bytes: int = 0
    length_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceImage:
    """An image that was looked at.

    `format`: as QEMU names it: `raw`, `qcow2`, `vmdk`, `vdi`, `vhdx`, `vpc`. `size_bytes`: of the disk in it.
    `is_clone`: it stands on a base image on purpose.
    """

    place: ImagePlace
    format: str
    size_bytes: int
    is_clone: bool = False


class Images(Protocol):
    """What is done with images by `qemu-img`. A child of it ends when the one who waits for it is cancelled."""

    async def look(self, place: ImagePlace, format: str | None) -> SourceImage:
        """Read what an image says about itself.

        Args: format: what it must be; None: what its first bytes say.
        Raises: BadRequest: it is no such image, encrypted, or needs other files; BackendFailed: it cannot be read.
        """

    async def convert(self, source: SourceImage, target: Path, format: str) -> None:
        """Write the disk in an image into a new, empty image of at least its size; holes stay holes."""

    async def resize(self, path: Path, format: str, size_bytes: int) -> None:
        """Make the disk in an image larger."""

    async def snapshots(self, path: Path) -> list[str]:
        """The names of the snapshots in a qcow2 image."""

    async def take_snapshot(self, path: Path, name: str) -> None: ...

    async def apply_snapshot(self, path: Path, name: str) -> None: ...

    async def delete_snapshot(self, path: Path, name: str) -> None: ...

    async def copy(self, source: Path, target: Path) -> None:
        """Copy a file as it is, safe on disk; the target's folder is made where there is none."""

    async def is_same(self, one: Path, other: Path) -> bool:
        """Whether two files have the same content."""

    async def digest(self, place: ImagePlace, algorithm: str) -> str:
        """The hash of an image as it is. Args: algorithm: `sha1`, `sha256` or `sha512`. Returns: in hex."""


class LibvirtDomains(Protocol):
    """The VMs of a libvirt on this host."""

    async def definition(self, name: str) -> bytes:
        """A VM's definition. Raises: BackendFailed: virsh's own words; WrongState: the VM is not off."""
