"""Disks, CD-ROM drives and their controllers, with Proxmox's names.

Formats are always named, and a backing file is followed only where the volume's own name says so: the header of an
image is never trusted.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mtunnel_tx.backends.devices import as_json, device, placed
from mtunnel_tx.checks import CONTROL
from mtunnel_tx.errors import BackendFailed, refuse
from mtunnel_tx.pve.drive import Drive
from mtunnel_tx.pve.hardware import GuestDisk, Hardware

_ENDING = re.compile(r".*/[^/]*\.(raw|qcow2|vmdk)")
_FORMATS = frozenset({"raw", "qcow2", "vmdk"})
_CACHED = {"none": True, "directsync": True}
_SYNCED = frozenset({"writethrough", "directsync"})
_LUNS_PER_CONTROLLER = {"lsi": 7, "lsi53c810": 7, "virtio-scsi-single": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFile:
    """Where a volume is: a file, or a block device; `direct` where its file system can do without the page cache."""

    path: str
    is_device: bool
    direct: bool


def look_at_file(path: str) -> VolumeFile:
    """Blocks. Raises: BackendFailed: no file that QEMU could open."""
    if not path.startswith("/") or CONTROL.search(path):
        raise BackendFailed(f"'{path!r}' is no file that QEMU could open")
    try:
        mode = Path(path).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise BackendFailed(f"'{path}' is neither a file nor a block device")
        return VolumeFile(path=path, is_device=stat.S_ISBLK(mode), direct=_takes_direct(path))
    except OSError as error:
        raise BackendFailed(f"'{path}': {error.strerror}") from error


def _takes_direct(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def blockdev(key: str, drive: Drive, file: VolumeFile, *, size_bytes: int | None = None) -> list[str]:
    """The node `drive-KEY` with everything below it, and its limits. Args: size_bytes: cut a raw image to this size."""
    arguments: list[str] = []
    node = _format_node(key, drive, file)
    if size_bytes is not None and node["driver"] == "raw":
        node["size"] = size_bytes
    if limits := _limits(drive.options):
        group = f"throttle-drive-{key}"
        arguments += ["-object", as_json({"qom-type": "throttle-group", "id": group, "limits": limits})]
        node = {"driver": "throttle", "throttle-group": group, "file": node, **_common(drive)}
    return [*arguments, "-blockdev", as_json({**node, "node-name": f"drive-{key}"})]


def _format_node(key: str, drive: Drive, file: VolumeFile) -> dict[str, Any]:
    format = volume_format(key, drive)
    cache = _cache(drive, file)
    direct = bool(cache["direct"])
    lower = {
        "driver": "host_device" if file.is_device else "file",
        "filename": file.path,
        "aio": _aio(drive, direct=direct),
        "cache": cache,
        **_common(drive),
    }
    node = {"driver": format, "file": lower, "cache": cache, **_common(drive)}
    if format == "qcow2" and not drive.is_linked_clone:
        # null keeps QEMU from the backing file that the header names.
        node["backing"] = None
    return node


def volume_format(key: str, drive: Drive) -> str:
    """The format of a volume, by its name. Raises: TunnelError: `KEY: REASON`."""
    if drive.is_cdrom and not drive.is_cloudinit:
        return "raw"
    found = _ENDING.fullmatch(drive.volume)
    format = found[1] if found else drive.options.get("format", "raw")
    if format not in _FORMATS:
        raise refuse(key, f"format {format} cannot be run here")
    return format


def _common(drive: Drive) -> dict[str, Any]:
    if drive.is_cdrom:
        return {"read-only": True}
    discard = drive.options.get("discard") == "on"
    zeroes = drive.options.get("detect_zeroes", "1") == "1"
    return {
        "read-only": drive.options.get("ro") == "1",
        "discard": "unmap" if discard else "ignore",
        "detect-zeroes": ("unmap" if discard else "on") if zeroes else "off",
    }


def _cache(drive: Drive, file: VolumeFile) -> dict[str, bool]:
    """Without a word about it, disks go past the page cache where their file system can."""
    chosen = drive.options.get("cache")
    direct = (file.direct and not drive.is_cdrom) if chosen is None else _CACHED.get(chosen, False)
    return {"direct": direct, "no-flush": chosen == "unsafe"}


def _aio(drive: Drive, *, direct: bool) -> str:
    chosen = drive.options.get("aio", "threads")
    return "threads" if chosen == "native" and not direct else chosen


def _limits(options: Mapping[str, str]) -> dict[str, int]:
    limits: dict[str, int] = {}
    for way, name in (("", "total"), ("_rd", "read"), ("_wr", "write")):
        for what, unit, factor in (("mbps", "bps", 1 << 20), ("iops", "iops", 1)):
            for option, peak in ((f"{what}{way}", ""), (f"{what}{way}_max", "-max")):
                if value := float(options.get(option, "0")):
                    limits[f"{unit}-{name}{peak}"] = int(value * factor)
            if length := int(options.get(f"{unit}{way}_max_length", "0")):
                limits[f"{unit}-{name}-max-length"] = length
    return limits


def controller_names(hardware: Hardware) -> list[str]:
    """The PCI devices that the disks hang on, in order, each once."""
    names = (controller_name(hardware, disk) for disk in hardware.disks)
    return list(dict.fromkeys(filter(None, names)))


def controller_name(hardware: Hardware, disk: GuestDisk) -> str | None:
    """`scsihw0`, `virtioscsi3`, `ahci0`, or the disk itself; None: what every machine has."""
    if disk.interface == "scsi":
        number = disk.index // _LUNS_PER_CONTROLLER.get(hardware.scsihw, 256)
        return f"{'virtioscsi' if hardware.scsihw == 'virtio-scsi-single' else 'scsihw'}{number}"
    return {"sata": "ahci0", "virtio": disk.key}.get(disk.interface)


def disk_devices(hardware: Hardware, files: Mapping[str, VolumeFile]) -> list[str]:
    """All disks: controllers, images, devices. Args: files: drive key to where its volume is."""
    arguments: list[str] = []
    made: set[str] = set()
    for disk in hardware.disks:
        name = controller_name(hardware, disk)
        if name is not None and name not in made and disk.interface != "virtio":
            arguments += _controller(hardware, name, disk)
            made.add(name)
        if disk.key in files:
            arguments += blockdev(disk.key, disk.drive, files[disk.key])
        arguments += _iothread(disk.key, disk) if disk.interface == "virtio" else []
        arguments += _disk_device(hardware, disk, has_volume=disk.key in files)
    return arguments


def _controller(hardware: Hardware, name: str, disk: GuestDisk) -> list[str]:
    if name == "ahci0":
        return placed(name, "ahci", id=name, multifunction=True)
    if not hardware.scsihw.startswith("virtio"):
        return placed(name, hardware.scsihw, id=name)
    single = name.startswith("virtioscsi")
    queues = int(disk.drive.options["queues"]) if single and "queues" in disk.drive.options else None
    thread = _iothread(name, disk) if single else []
    properties = {"num_queues": queues, "iothread": f"iothread-{name}" if thread else None}
    return thread + placed(name, "virtio-scsi-pci", id=name, exact=properties)


def _iothread(name: str, disk: GuestDisk) -> list[str]:
    if disk.drive.options.get("iothread") != "1":
        return []
    return ["-object", as_json({"qom-type": "iothread", "id": f"iothread-{name}"})]


def _disk_device(hardware: Hardware, disk: GuestDisk, *, has_volume: bool) -> list[str]:
    options = disk.drive.options
    common: dict[str, Any] = {
        "id": disk.key,
        "drive": f"drive-{disk.key}" if has_volume else None,
        "bootindex": disk.boot_index,
        "serial": _decoded(options.get("serial")),
        "rerror": options.get("rerror") if has_volume else None,
        "werror": options.get("werror") if has_volume else None,
        "wwn": int(options["wwn"], 16) if "wwn" in options else None,
    }
    if not disk.drive.is_cdrom:
        common["write-cache"] = "off" if options.get("cache") in _SYNCED else "on"
        common["rotation_rate"] = 1 if options.get("ssd") == "1" else None
    return _DEVICES[disk.interface](hardware, disk, common)


def _decoded(text: str | None) -> str | None:
    """Texts for the guest are URL-encoded in the config."""
    return None if text is None else unquote(text)


def _ide(hardware: Hardware, disk: GuestDisk, common: Mapping[str, Any]) -> list[str]:
    bus, unit = divmod(disk.index, 2)
    if hardware.machine.is_q35:
        bus, unit = bus + 2 * unit, 0
    place = {"bus": f"ide.{bus}", "unit": unit}
    model = _decoded(disk.drive.options.get("model"))
    return device(f"ide-{_kind(disk)}", exact={**place, **common, "model": model})


def _sata(_hardware: Hardware, disk: GuestDisk, common: Mapping[str, Any]) -> list[str]:
    return device(f"ide-{_kind(disk)}", exact={"bus": f"ahci0.{disk.index}", **common})


def _scsi(hardware: Hardware, disk: GuestDisk, common: Mapping[str, Any]) -> list[str]:
    place: dict[str, Any] = {"bus": f"{controller_name(hardware, disk)}.0"}
    if hardware.scsihw.startswith("lsi") or hardware.scsihw == "pvscsi":
        place["scsi-id"] = disk.index % _LUNS_PER_CONTROLLER.get(hardware.scsihw, 256)
    else:
        place |= {"channel": 0, "scsi-id": 0, "lun": disk.index}
    told = {name: disk.drive.options.get(name) for name in ("vendor", "product")}
    # Machines before 10.0 have the default, which is the serial number where there is one, else the drive's name.
    named = hardware.machine.at_least(10, 0) or common["serial"] is None
    told["device_id"] = f"drive-{disk.key}" if named else None
    return device(f"scsi-{_kind(disk)}", exact={**place, **common, **told})


def _virtio(_hardware: Hardware, disk: GuestDisk, common: Mapping[str, Any]) -> list[str]:
    thread = f"iothread-{disk.key}" if disk.drive.options.get("iothread") == "1" else None
    known = {key: value for key, value in common.items() if key not in ("wwn", "rotation_rate")}
    return placed(disk.key, "virtio-blk-pci", iothread=thread, exact=known)


_DEVICES = {"ide": _ide, "sata": _sata, "scsi": _scsi, "virtio": _virtio}


def _kind(disk: GuestDisk) -> str:
    return "cd" if disk.drive.is_cdrom else "hd"


def volumes(hardware: Hardware) -> Iterable[tuple[str, Drive]]:
    """Every drive with a volume, by its key; the EFI disk only if the firmware uses it."""
    for disk in hardware.disks:
        if disk.drive.has_volume:
            yield disk.key, disk.drive
    if hardware.ovmf and hardware.efidisk is not None:
        yield "efidisk0", hardware.efidisk
    if hardware.tpm is not None:
        yield "tpmstate0", hardware.tpm
