"""Drive strings: `VOLUME[,key=value]…` (formats.md section 6)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mtunnel_tx.checks import FormatError, clean
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.driveformats import ANY_OPTION, DRIVE_FORMATS, DRIVES_PER_INTERFACE, DROPPED_OPTIONS
from mtunnel_tx.pve.property import format_error, format_property
from mtunnel_tx.pve.sizes import format_size, parse_size

__all__ = [
    "DRIVE_KEYS",
    "TPM_STATE_BYTES",
    "Drive",
    "drive_interface",
    "format_drive",
    "format_size",
    "is_drive_key",
    "parse_drive",
    "parse_size",
]

DRIVE_KEYS = frozenset(f"{name}{index}" for name, count in DRIVES_PER_INTERFACE.items() for index in range(count))
"""Every key that names a drive: ide0 … unused255."""

_DISK_FORMAT = r"raw|qcow2?|qed|vmdk|cloop"
_NEW_DISK = re.compile(r"(?:[^/:\s]+:)?[0-9]+(?:\.[0-9]+)?|(?:[^/:\s]+:)?cloudinit")
_CLOUDINIT = re.compile(rf".*[:/](?:vm-[0-9]+-)?cloudinit(?:\.(?:{_DISK_FORMAT}))?")
_LINKED_CLONE = re.compile(r"[0-9]+/[^/]+/[0-9]+/.+|base[a-z]*-[0-9]+-[^/]+/.+")
_NOT_SENT = frozenset({"interface", "index", "file", "volume", "format"})
_MIB = 1 << 20
TPM_STATE_BYTES = 4 * _MIB
"""The size of each volume for the state of a TPM."""


@dataclass(frozen=True, slots=True)
class Drive:
    """A drive: its volume (a volume id, a path, `none` or `cdrom`) and its other options as text."""

    volume: str
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_sent(cls, drive: Mapping[str, Any], volume: str = "") -> Drive:
        """The parsed drive of a source, as the `disk` command sends it.

        Args: drive: JSON values: interface, index, size in bytes, options; `file`, `volume`, `format` are dropped.
            volume: what takes the place of `file`.
        Raises: TunnelError: `format error\\nK: REASON`, `invalid key 'K'`, `illegal value with commas for K`.
        """
        try:
            return cls(volume, _sent_options(drive))
        except FormatError as error:
            raise TunnelError(str(error).removesuffix("\n")) from error

    @property
    def size_bytes(self) -> int | None:
        """The size that the drive string names; only the volume itself knows the real one."""
        return parse_size(self.options["size"]) if "size" in self.options else None

    @property
    def has_volume(self) -> bool:
        """Whether a volume is in it: neither `none` nor the host's own CD-ROM."""
        return self.volume not in ("none", "cdrom")

    @property
    def is_cdrom(self) -> bool:
        """Whether it is a CD-ROM; a cloud-init drive may be one, too."""
        return self.options.get("media") == "cdrom"

    @property
    def is_cloudinit(self) -> bool:
        """Whether its volume is a cloud-init image, by its name."""
        return _CLOUDINIT.fullmatch(self.volume) is not None

    @property
    def allocates(self) -> bool:
        """Whether Proxmox would make a new volume of it: `local:32`, `local:cloudinit`."""
        return _NEW_DISK.fullmatch(self.volume) is not None

    @property
    def is_linked_clone(self) -> bool:
        """Whether the volume's name names a base volume that it stands on."""
        return _LINKED_CLONE.fullmatch(self.volume.partition(":")[2]) is not None

    def placed(self, volume: str, *, format: str | None, size_bytes: int | None) -> Drive:
        """The drive on another volume; None drops the option."""
        options = {key: value for key, value in self.options.items() if key not in ("format", "size")}
        if format is not None:
            options["format"] = format
        return Drive(volume, options).with_size(size_bytes)

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
    return key.rstrip("0123456789")


def parse_drive(key: str, text: str) -> Drive:
    """Read a drive string; `file=` may name the volume.

    Args: key: e.g. `scsi0`. text: the value.
    Raises: FormatError: not a drive key, an option this interface does not have, or options that exclude each other.
    """
    if not is_drive_key(key):
        raise FormatError(f"invalid drive key: {clean(key)}")
    options = DRIVE_FORMATS[drive_interface(key)].parse(text)
    volume = options.pop("file")
    options = {name: value for name, value in options.items() if name not in DROPPED_OPTIONS}
    _convert_bytes(options)
    _check_limits(options)
    if options.get("media") == "cdrom":
        _check_cdrom(key, options)
    return Drive(volume, options)


def _convert_bytes(options: dict[str, str]) -> None:
    """Limits in bytes per second, which once were written, become limits in MiB per second."""
    for name in ("bps", "bps_rd", "bps_wr"):
        if name in options:
            if f"m{name}" in options:
                raise FormatError(f"both {name} and m{name} specified")
            options[f"m{name}"] = f"{int(options.pop(name)) / _MIB:.3f}"


def _check_limits(options: Mapping[str, str]) -> None:
    for way in ("", "_rd", "_wr"):
        for option, needed in (
            (f"mbps{way}_max", f"mbps{way}"),
            (f"bps{way}_max_length", f"mbps{way}_max"),
            (f"iops{way}_max_length", f"iops{way}_max"),
        ):
            if _limits(options, option) and not _limits(options, needed):
                raise FormatError(f"{option} requires {needed}")
    for name in ("mbps", "iops"):
        if _limits(options, name) and (_limits(options, f"{name}_rd") or _limits(options, f"{name}_wr")):
            raise FormatError(f"{name} excludes {name}_rd and {name}_wr")


def _limits(options: Mapping[str, str], name: str) -> bool:
    return float(options.get(name, "0")) != 0


def _check_cdrom(key: str, options: Mapping[str, str]) -> None:
    if drive_interface(key) == "virtio" or options.get("snapshot") == "1" or "format" in options:
        raise FormatError("no CD-ROM can be that")


def format_drive(drive: Drive) -> str:
    """Write a drive string: the volume, then the other keys sorted by name.

    Raises: FormatError: `illegal value with commas for K`.
    """
    return format_property({**drive.options, "file": drive.volume}, "file", skip=("index", "interface"))


def _sent_options(drive: Mapping[str, Any]) -> dict[str, str]:
    sent = {key: value for key, value in drive.items() if key not in _NOT_SENT | DROPPED_OPTIONS and value is not None}
    kept: dict[str, str] = {}
    errors: dict[str, str] = {}
    for key in sent.keys() & ANY_OPTION.keys():
        try:
            kept[key] = ANY_OPTION[key](_json_text(sent[key]))
        except FormatError as error:
            errors[key] = str(error)
    if errors:
        raise FormatError(format_error(errors))
    _check_writable(sent)
    return kept


def _check_writable(sent: Mapping[str, object]) -> None:
    for key, value in sorted(sent.items()):
        if key not in ANY_OPTION:
            raise FormatError(f"invalid key '{clean(key)}'")
        if isinstance(value, str) and "," in value:
            raise FormatError(f"illegal value with commas for {key}")


def _json_text(value: object) -> str:
    """A JSON scalar as Perl would print it."""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float):
        return str(value)
    raise FormatError(f"type check ('string') failed - got {'ARRAY' if isinstance(value, list) else 'HASH'}")
