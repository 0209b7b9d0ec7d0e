"""Sizes of disks and names of volumes, as drive strings hold them (formats.md section 6)."""

from __future__ import annotations

import re
from fractions import Fraction

from mtunnel_tx.checks import CONTROL, FormatError, clean, volume_id

_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)([KMGT])?")
_UNITS = {"T": 1 << 40, "G": 1 << 30, "M": 1 << 20, "K": 1 << 10}


def parse_size(text: str) -> int:
    """A size like `32G`, `1.5M` or `512`, in bytes.

    Raises: FormatError: `value does not look like a valid disk size: X`.
    """
    found = _SIZE.fullmatch(text)
    if not found:
        raise FormatError(f"value does not look like a valid disk size: {clean(text)}")
    return int(Fraction(found[1]) * _UNITS.get(found[2], 1))


def format_size(size_bytes: int) -> str:
    """The largest unit of T, G, M, K that is exact, else bytes; nothing is `0T`, as Proxmox has it."""
    for unit, factor in _UNITS.items():
        if size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return str(size_bytes)


def disk_size(value: str) -> str:
    """Check a size; kept in its largest exact unit."""
    return format_size(parse_size(value))


def drive_volume_id(value: str) -> str:
    """Check `STORAGE:NAME`; without a comma, which no drive string can hold."""
    if "," in volume_id(value):
        raise FormatError(f"unable to parse volume ID '{clean(value)}'")
    return value


def volume(value: str) -> str:
    """Check what a drive is filled with: a volume id, an absolute path, `none` or `cdrom`."""
    if value in ("none", "cdrom") or (value.startswith("/") and "," not in value and not CONTROL.search(value)):
        return value
    return drive_volume_id(value)
