"""Drive strings: `VOLUME[,key=value]…` (formats.md section 6)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.driveformats import ALL_OPTIONS, DRIVE_FORMATS, DRIVES_PER_INTERFACE
from mtunnel_tx.pve.property import format_error, format_property
from mtunnel_tx.pve.values import BadValue, clean, disk_size, format_size, parse_size

__all__ = ["DRIVE_KEYS", "Drive", "drive_interface", "format_drive", "format_size", "is_drive_key", "parse_drive"]

DRIVE_KEYS = frozenset(f"{name}{index}" for name, count in DRIVES_PER_INTERFACE.items() for index in range(count))
"""Every key that names a drive: ide0 … unused255."""

_INDEX = re.compile(r"[0-9]+\Z")
_ALLOCATES = re.compile(r"(?:[^/:\s]+:)?(?:[0-9]+(?:\.[0-9]+)?|cloudinit)")
_CLOUDINIT = re.compile(r"(?:.*[:/])?(?:vm-[0-9]+-)?cloudinit(?:\.[a-z0-9]+)?")
_BASE = re.compile(r"[0-9]+/[^/]+/[0-9]+/.+|(?:base|basevol)-[0-9]+-[^/]+/(?:vm|subvol)-.+")
_NOT_SENT = frozenset({"interface", "index", "file", "volume", "format"})
_LIMITS = ("mbps", "iops")


@dataclass(frozen=True, slots=True)
class Drive:
    """A drive: its volume (a volume id, a path, `none` or `cdrom`) and its other options as text."""

    volume: str
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_sent(cls, drive: Mapping[str, Any], volume: str = "") -> Drive:
        """The parsed drive of a source, as the `disk` command sends it.

        Args: drive: JSON values: interface, index, size in bytes, options; `file`, `volume`, `format` are dropped.
        Returns: the drive on another volume.
        Raises: TunnelError: `format error…`, `invalid key 'K'`, `illegal value with commas for K`.
        """
        try:
            return cls(volume, _sent_options(drive))
        except BadValue as error:
            raise TunnelError(str(error).removesuffix("\n")) from error

    @property
    def size_bytes(self) -> int | None:
        """The size that the drive string names; informational in Proxmox."""
        return parse_size(self.options["size"]) if "size" in self.options else None

    @property
    def has_volume(self) -> bool:
        """Whether anything is in the drive: neither `none` nor the host's own CD-ROM."""
        return self.volume not in ("none", "cdrom")

    @property
    def is_cdrom(self) -> bool:
        return self.options.get("media") == "cdrom"

    @property
    def is_cloudinit(self) -> bool:
        return self.is_cdrom and _CLOUDINIT.fullmatch(self.volume) is not None

    @property
    def allocates(self) -> bool:
        """Whether Proxmox would make a new volume of it: `local:32`, `local:cloudinit`."""
        return _ALLOCATES.fullmatch(self.volume) is not None or "import-from" in self.options

    @property
    def is_linked_clone(self) -> bool:
        """Whether the volume's name names a base volume."""
        return _BASE.fullmatch(self.volume.partition(":")[2]) is not None

    def with_volume(self, volume: str) -> Drive:
        return replace(self, volume=volume)

    def with_size(self, size_bytes: int | None) -> Drive:
        """The drive with another size, or without one."""
        options = {key: value for key, value in self.options.items() if key != "size"}
        return replace(self, options=options if size_bytes is None else {**options, "size": format_size(size_bytes)})

    def __str__(self) -> str:
        return format_drive(self)


def is_drive_key(key: str) -> bool:
    """Whether a config key names a drive."""
    return key in DRIVE_KEYS


def drive_interface(key: str) -> str:
    """`scsi` of `scsi0`."""
    return _INDEX.sub("", key)


def parse_drive(key: str, text: str) -> Drive:
    """Read a drive string; `file=` may name the volume.

    Args: key: e.g. `scsi0`. text: the value.
    Raises: BadValue: not a drive key, an option this interface does not have, or options that exclude each other.
    """
    if not is_drive_key(key):
        raise BadValue(f"unknown setting '{clean(key)}'")
    options = DRIVE_FORMATS[drive_interface(key)].parse(text)
    volume = options.pop("file")
    _check_limits(options)
    if options.get("media") == "cdrom":
        _check_cdrom(key, options)
    return Drive(volume, options)


def _check_limits(options: Mapping[str, str]) -> None:
    for name in _LIMITS:
        for suffix in ("", "_max"):
            if name + suffix in options and {f"{name}_rd{suffix}", f"{name}_wr{suffix}"} & options.keys():
                raise BadValue("a total limit excludes limits for reading or writing")


def _check_cdrom(key: str, options: Mapping[str, str]) -> None:
    if drive_interface(key) == "virtio":
        raise BadValue("no CD-ROM on virtio")
    if options.get("snapshot") == "1" or "format" in options:
        raise BadValue("an option that no CD-ROM takes")


def format_drive(drive: Drive) -> str:
    """Write a drive string: the volume, then the other keys sorted by name.

    Raises: BadValue: `illegal value with commas for K`.
    """
    if "," in drive.volume:
        raise BadValue("illegal value with commas for file")
    return format_property({"file": drive.volume, **drive.options}, "file", skip=("index", "interface"))


def _sent_options(drive: Mapping[str, Any]) -> dict[str, str]:
    kept: dict[str, str] = {}
    errors: dict[str, str] = {}
    for key, value in drive.items():
        if key in _NOT_SENT or value is None:
            continue
        if key not in ALL_OPTIONS:
            raise BadValue(f"invalid key '{clean(key)}'")
        try:
            kept[key] = _sent_value(key, value)
        except BadValue as error:
            errors[key] = str(error)
    if errors:
        raise BadValue(format_error(errors))
    return kept


def _sent_value(key: str, value: Any) -> str:
    text = _json_text(value)
    if "," in text:
        raise BadValue(f"illegal value with commas for {key}")
    return disk_size(text) if key == "size" else ALL_OPTIONS[key](text)


def _json_text(value: Any) -> str:
    """A JSON scalar as Perl would print it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float):
        return str(value)
    raise BadValue(f"type check ('string') failed - got {'ARRAY' if isinstance(value, list) else 'HASH'}")
