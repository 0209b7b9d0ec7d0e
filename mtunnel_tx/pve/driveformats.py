"""Which options a drive has, per interface: qm.conf(5) of Proxmox VE 7 to 9, old spellings included."""

from __future__ import annotations

from mtunnel_tx.checks import Check, boolean, enum, formatted, integer, number, pattern
from mtunnel_tx.pve.property import PropertyFormat
from mtunnel_tx.pve.sizes import disk_size, drive_volume_id, volume

DRIVES_PER_INTERFACE = {
    "ide": 4,
    "sata": 6,
    "scsi": 31,
    "virtio": 16,
    "efidisk": 1,
    "tpmstate": 1,
    "unused": 256,
}
DROPPED_OPTIONS = frozenset({"cyls", "heads", "secs", "trans"})
"""Geometry: once options, today read and forgotten."""


def urlencoded(max_length: int) -> Check:
    """Text in URL encoding, at most so many characters."""
    form = pattern(rf"[-%a-zA-Z0-9_.!~*'()]{{0,{max_length}}}", "invalid urlencoded string: {}")
    return formatted(form)


_WAYS = ("", "_rd", "_wr")
_FILE: dict[str, Check] = {
    "file": formatted(volume),
    "format": enum("raw", "qcow", "qed", "qcow2", "vmdk", "cloop", "cow"),
    "size": formatted(disk_size),
}
_LIMITS: dict[str, Check] = {
    **{f"bps{way}": integer() for way in _WAYS},
    **{f"mbps{way}{peak}": number() for way in _WAYS for peak in ("", "_max")},
    **{f"iops{way}{peak}": integer() for way in _WAYS for peak in ("", "_max")},
    **{f"{what}{way}_max_length": integer(1) for what in ("bps", "iops") for way in _WAYS},
}
_DISK: dict[str, Check] = {
    **_FILE,
    **_LIMITS,
    "media": enum("cdrom", "disk"),
    "snapshot": boolean,
    "cache": enum("none", "writethrough", "writeback", "unsafe", "directsync"),
    "aio": enum("native", "threads", "io_uring"),
    "discard": enum("ignore", "on"),
    "detect_zeroes": boolean,
    "rerror": enum("ignore", "report", "stop"),
    "werror": enum("enospc", "ignore", "report", "stop"),
    "backup": boolean,
    "replicate": boolean,
    "shared": boolean,
    "serial": urlencoded(60),
    **dict.fromkeys(DROPPED_OPTIONS, pattern(r"[a-z0-9]+")),
}
_SATA: dict[str, Check] = {**_DISK, "ssd": boolean, "wwn": pattern(r"0x[0-9a-fA-F]{16}")}
_IDE: dict[str, Check] = {**_SATA, "model": urlencoded(120)}
_VIRTIO: dict[str, Check] = {**_DISK, "iothread": boolean, "ro": boolean}
_SCSI: dict[str, Check] = {
    **_SATA,
    "iothread": boolean,
    "ro": boolean,
    "queues": integer(2),
    "scsiblock": boolean,
    "vendor": pattern(r"[A-Za-z0-9_ -]{0,8}"),
    "product": pattern(r"[A-Za-z0-9_ -]{0,16}"),
}
_EFIDISK: dict[str, Check] = {
    **_FILE,
    "efitype": enum("2m", "4m"),
    "pre-enrolled-keys": boolean,
    "ms-cert": enum("2011", "2023", "2023k", "2023w"),
}
_TPMSTATE: dict[str, Check] = {**_FILE, "version": enum("v1.2", "v2.0")}

_ALIASES = {
    "volume": "file",
    **{f"{what}{way}_length": f"{what}{way}_max_length" for what in ("bps", "iops") for way in ("_rd", "_wr")},
}
_CHECKS: dict[str, dict[str, Check]] = {
    "ide": _IDE,
    "sata": _SATA,
    "scsi": _SCSI,
    "virtio": _VIRTIO,
    "efidisk": _EFIDISK,
    "tpmstate": _TPMSTATE,
    "unused": {"file": formatted(drive_volume_id)},
}

DRIVE_FORMATS: dict[str, PropertyFormat] = {
    interface: PropertyFormat(checks=checks, default_key="file", aliases=_ALIASES, required=frozenset({"file"}))
    for interface, checks in _CHECKS.items()
}

ANY_OPTION: dict[str, Check] = {
    key: check for checks in _CHECKS.values() for key, check in checks.items() if key not in DROPPED_OPTIONS
}
"""Options of any interface: what a drive may carry before it has its place in a config."""
