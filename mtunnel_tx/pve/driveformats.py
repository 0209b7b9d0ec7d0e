"""Which options a drive has, per interface: qm.conf(5) of Proxmox VE 7 to 9, old spellings included."""

from __future__ import annotations

from mtunnel_tx.pve.property import PropertyFormat
from mtunnel_tx.pve.values import Check, boolean, disk_size, enum, integer, number, pattern, text, volume

DRIVES_PER_INTERFACE = {
    "ide": 4,
    "sata": 6,
    "scsi": 31,
    "virtio": 16,
    "efidisk": 1,
    "tpmstate": 1,
    "unused": 256,
}

_FILE: dict[str, Check] = {
    "file": volume,
    "format": enum("raw", "qcow", "qed", "qcow2", "vmdk", "cloop", "cow"),
    "size": disk_size,
}
_LIMITS: dict[str, Check] = {
    **{f"bps{way}": integer() for way in ("", "_rd", "_wr")},
    **{f"bps{way}_max_length": integer(1) for way in ("", "_rd", "_wr")},
    **{f"mbps{way}": number() for way in ("", "_rd", "_wr", "_max", "_rd_max", "_wr_max")},
    **{f"iops{way}": integer() for way in ("", "_rd", "_wr", "_max", "_rd_max", "_wr_max")},
    **{f"iops{way}_max_length": integer(1) for way in ("", "_rd", "_wr")},
}
_DISK: dict[str, Check] = {
    **_FILE,
    **_LIMITS,
    "media": enum("cdrom", "disk"),
    "cyls": integer(),
    "heads": integer(),
    "secs": integer(),
    "trans": enum("none", "lba", "auto"),
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
    "serial": text(60),
}
_WWN: dict[str, Check] = {"wwn": pattern(r"0x[0-9a-f]{16}", ignore_case=True)}
_IDE: dict[str, Check] = {**_DISK, **_WWN, "ssd": boolean, "model": text(120)}
_SATA: dict[str, Check] = {**_DISK, **_WWN, "ssd": boolean}
_SCSI: dict[str, Check] = {
    **_SATA,
    "iothread": boolean,
    "queues": integer(2),
    "scsiblock": boolean,
    "ro": boolean,
    "vendor": pattern(r"[A-Za-z0-9\-_ ]{0,8}"),
    "product": pattern(r"[A-Za-z0-9\-_ ]{0,16}"),
}
_VIRTIO: dict[str, Check] = {**_DISK, "iothread": boolean, "ro": boolean}
_EFIDISK: dict[str, Check] = {
    **_FILE,
    "efitype": enum("2m", "4m"),
    "pre-enrolled-keys": boolean,
    "ms-cert": enum("2011", "2023", "2023k", "2023w"),
}
_TPMSTATE: dict[str, Check] = {**_FILE, "version": enum("v1.2", "v2.0")}

_ALIASES = {
    **{f"bps{way}_length": f"bps{way}_max_length" for way in ("_rd", "_wr")},
    **{f"iops{way}_length": f"iops{way}_max_length" for way in ("_rd", "_wr")},
}

DRIVE_FORMATS: dict[str, PropertyFormat] = {
    interface: PropertyFormat(checks=checks, default_key="file", aliases=_ALIASES, required=frozenset({"file"}))
    for interface, checks in {
        "ide": _IDE,
        "sata": _SATA,
        "scsi": _SCSI,
        "virtio": _VIRTIO,
        "efidisk": _EFIDISK,
        "tpmstate": _TPMSTATE,
        "unused": {"file": volume, "volume": volume},
    }.items()
}

ALL_OPTIONS: dict[str, Check] = {
    key: check
    for drive_format in DRIVE_FORMATS.values()
    for key, check in drive_format.checks.items()
    if key not in ("file", "volume")
}
"""Options of any interface: what a drive may carry before it has its place in a config."""
