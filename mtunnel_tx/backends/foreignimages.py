"""Images from elsewhere: which format they have, and whether they stand alone. Nothing that they name is opened."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mtunnel_tx.errors import BackendFailed, BadRequest
from mtunnel_tx.ports.images import ImagePlace, SourceImage
from mtunnel_tx.pve.imagefile import SECTOR_BYTES, ImageRefused, inspect_image

_HEAD_BYTES = 64 << 10
_MAGIC = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
)
_ENDINGS = {
    ".raw": "raw",
    ".qcow2": "qcow2",
    ".vmdk": "vmdk",
    ".vdi": "vdi",
    ".vhdx": "vhdx",
    ".vhd": "vpc",
}
_OWN_READER = frozenset({"raw", "qcow2", "vmdk"})
_EXTENT = re.compile(r'^[ \t]*(?:RW|RDONLY)[ \t]+(\d{1,15})[ \t]+(\w+)[ \t]+"([^"\n]+)"', re.MULTILINE)
_VHD_KIND = slice(60, 64)
_VHD_DIFFERENCE = b"\0\0\0\4"
_FLAT = frozenset({"FLAT", "VMFS"})
_EXTENT_NAME = re.compile(r"[^/:\x00-\x1f]+")
_MOST_EXTENTS = 4096


def look_at_image(place: ImagePlace, format: str | None) -> SourceImage:
    """See ports.Images.look. Blocks.

    Returns: the image; its size is 0 where only qemu-img can tell.
    """
    path, begin = place.path, place.offset_bytes
    with _opened(path) as fd:
        end = os.lseek(fd, 0, os.SEEK_END)
        length = end - begin if place.length_bytes is None else place.length_bytes
        if begin + length > end:
            raise BadRequest(f"{path}: it is cut short")

        def read(offset: int, count: int) -> bytes:
            return os.pread(fd, max(0, min(count, length - offset)), begin + offset)

        head = read(0, _HEAD_BYTES)
        found = _choose_format(path, format, head)
        if found == "vmdk" and not head.startswith(b"KDMV"):
            size_bytes = _read_descriptor(path, head.decode("utf-8", "replace"))
        else:
            size_bytes = _size_of(path, found, read, length)
    return SourceImage(place=place, format=found, size_bytes=size_bytes)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BackendFailed(f"{path}: {error.strerror}") from error
    try:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise BadRequest(f"{path}: is neither a file nor a block device")
        yield fd
    finally:
        os.close(fd)


def _choose_format(path: Path, wanted: str | None, head: bytes) -> str:
    """What was asked for, else what the name says, else what the first bytes say.

    A guest can write what it likes into its raw disk: where that is what it shall be, its first bytes do not count.
    """
    expected = wanted or _ENDINGS.get(path.suffix.lower())
    seen = detect_format(head)
    if expected is None or expected == "raw":
        return expected or seen
    # A VHD of fixed size has its header at the end only.
    if seen != expected and not (expected == "vpc" and seen == "raw"):
        raise BadRequest(f"{path}: is no {expected} image{f', but {seen}' if seen != 'raw' else ''}")
    return expected


def detect_format(head: bytes) -> str:
    """The format that an image's first bytes belong to; `raw` where they belong to none."""
    return next((name for offset, magic, name in _MAGIC if head.startswith(magic, offset)), "raw")


def _size_of(path: Path, format: str, read: Callable[[int, int], bytes], length: int) -> int:
    if format == "vpc" and read(0, _HEAD_BYTES)[_VHD_KIND] == _VHD_DIFFERENCE:
        raise BadRequest(f"{path}: image has a backing file")
    if format not in _OWN_READER:
        return 0
    try:
        facts = inspect_image(format, read, length)
    except ImageRefused as error:
        raise BadRequest(f"{path}: {error.text}") from error
    if facts.why_not_alone:
        raise BadRequest(f"{path}: {facts.why_not_alone}")
    if not facts.size_bytes:
        raise BadRequest(f"{path}: is empty")
    return facts.size_bytes


def _read_descriptor(path: Path, text: str) -> int:
    """A vmdk whose data is in other files: they must be beside it. Returns: the disk's size."""
    extents = _EXTENT.findall(text)
    if "parentfilenamehint" in text.lower():
        raise BadRequest(f"{path}: image has a backing file")
    if not 0 < len(extents) <= _MOST_EXTENTS:
        raise BadRequest(f"{path}: this vmdk image names no file with its data")
    for _, kind, name in extents:
        _check_extent(path, kind, name)
    return sum(int(sectors) for sectors, _, _ in extents) * SECTOR_BYTES


def _check_extent(path: Path, kind: str, name: str) -> None:
    file = path.with_name(name) if _EXTENT_NAME.fullmatch(name) and name not in (".", "..") else None
    if file is None or file.is_symlink() or not file.is_file():
        raise BadRequest(f"{path}: its data is to be in '{name}', which is no file beside it")
    if kind not in _FLAT:
        with _opened(file) as fd:
            head = os.pread(fd, SECTOR_BYTES, 0)
        # Without a capacity of its own it would name further files.
        if kind != "SPARSE" or head[:4] != b"KDMV" or not any(head[12:20]):
            raise BadRequest(f"{path}: extents of type {kind} like '{name}' are not supported")
