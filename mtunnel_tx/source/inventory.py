"""What a VM's config says about the way out: disks that have to be sent, and what stands in the way."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from mtunnel_tx.checks import FormatError, clean
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.drive import Drive, is_drive_key, parse_drive
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestrules import find_strays
from mtunnel_tx.pve.moved import find_move
from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.pve.storagetypes import STREAM_FORMATS, Offer
from mtunnel_tx.pve.volume import VolumeId, find_owner, parse_dir_volume, parse_volume_id

_DEVICE = re.compile(r"(hostpci|usb|serial|parallel|virtiofs)[0-9]+|ivshmem")
_DEVICE_NAMES = {
    "hostpci": "a PCI device",
    "usb": "a USB device",
    "serial": "a serial device",
    "parallel": "a parallel device",
    "virtiofs": "a folder",
    "ivshmem": "shared memory",
}
HEADER_BYTES = 8
_CUSTOM_CPU = re.compile(r"(?:cputype=)?custom-([^,]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDisk:
    """A volume that has to be sent.

    `keys` are the config keys that name it, `name` its bare name (`vm-100-disk-0.raw`, `vm-100-disk-0`), `format` that
    of its image, `becomes` that of the image there, `offers` what it can be sent as, the preferred pair first. Measured
    later: `size_bytes` is its virtual size, `data_bytes` what will be written of it, `shown_bytes` the same
    where not the file is copied but what its map has, `stream_bytes` the length of its stream, `sparse_bytes` that of a
    sparse one; `mirrored` whether QEMU copies it while the VM runs; `inside` names of
    what is kept in the image beside the disk, by kind (`snapshots`, `bitmaps`).
    """

    keys: tuple[str, ...]
    volid: VolumeId
    name: str
    format: str
    becomes: str
    offers: tuple[Offer, ...]
    mirrored: bool = False
    inside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    size_bytes: int = 0
    data_bytes: int = 0
    shown_bytes: int = 0
    stream_bytes: int = 0
    sparse_bytes: int = 0

    @property
    def label(self) -> str:
        """The first key: what its owner calls it."""
        return self.keys[0]

    @property
    def streams(self) -> tuple[str, ...]:
        """The stream formats that it is offered in."""
        return tuple(offer.stream for offer in self.offers)

    def length_as(self, stream: str) -> int:
        """How long it is in one of these formats."""
        return self.stream_bytes if STREAM_FORMATS[stream].dense is None else self.sparse_bytes

    @property
    def is_converted(self) -> bool:
        """Whether its image there has another format."""
        return self.becomes != self.format

    @property
    def needs_conversion(self) -> bool:
        """Whether the target makes an image of another format of its stream."""
        return self.is_converted and self.becomes != "raw"

    def as_import(self, name: str, storage: str) -> dict[str, str | int]:
        """What `disk-import` takes of it. Args: name: what it is called there, bare. storage: there."""
        return {
            "volname": name,
            "format": self.becomes,
            "export_formats": ",".join(self.streams),
            "storage": storage,
            "with_snapshots": int(self.with_snapshots),
            "allow_rename": int(not self.is_cloudinit),
        }

    @property
    def with_snapshots(self) -> bool:
        """Whether the file is sent as it is, with what is stored in it."""
        return self.format in ("qcow2", "vmdk") and not self.is_converted

    def converted(self, becomes: str, offers: tuple[Offer, ...]) -> SourceDisk:
        """The same disk, sent as a raw one, of which the target makes an image of another format."""
        return replace(
            self,
            becomes=becomes,
            offers=offers,
            data_bytes=self.shown_bytes,
            stream_bytes=self.size_bytes + HEADER_BYTES,
            sparse_bytes=self.shown_bytes + HEADER_BYTES,
        )

    @property
    def is_tpm_state(self) -> bool:
        """Whether it is the state of a TPM, which of a running VM comes with its memory."""
        return self.label.startswith("tpmstate")

    @property
    def is_cloudinit(self) -> bool:
        """Whether it is a generated image, which is found by its name."""
        return re.fullmatch(r"vm-[0-9]+-cloudinit(\.[a-z0-9]+)?", self.name) is not None

    def name_for(self, vmid: int, target_vmid: int) -> str:
        """Its name with the target's VMID in it; the target adds the ending of another image format."""
        name = self.name.removesuffix(f".{self.format}") if self.is_converted else self.name
        return name.replace(f"-{vmid}-", f"-{target_vmid}-", 1)


class Obstacle(TunnelError):
    """One thing that stands in the way."""


def find_obstacles(vmid: int, conf: GuestConfig) -> Iterator[str]:
    """What in a config keeps the VM here, its disks aside; one sentence each."""
    yield from (f"VM {vmid}: {reason}" for reason in find_strays(conf))
    if conf.lock is not None:
        yield f"VM {vmid} is locked ({clean(conf.lock)})"
    if (move := find_move(conf)) is not None:
        yield f"VM {vmid} was {move}"
    if conf.options.get("template") == "1":
        yield f"VM {vmid} is a template"
    if conf.snapshots:
        yield f"VM {vmid} has snapshots: {clean(', '.join(conf.snapshots))}"
    if conf.pending is not None and conf.pending.options:
        yield f"VM {vmid} has pending changes: {clean(', '.join(conf.pending.options))}"
    for key, value in conf.options.items():
        if _is_host_device(key, value):
            yield f"{key}: {_DEVICE_NAMES[key.rstrip('0123456789')]} of this host cannot move: {clean(value)}"


def _is_host_device(key: str, value: str) -> bool:
    if not _DEVICE.fullmatch(key):
        return False
    first = value.partition(",")[0].removeprefix("host=")
    return not (key.startswith("usb") and first == "spice") and not (key.startswith("serial") and first == "socket")


def custom_cpu(conf: GuestConfig) -> str | None:
    """The name of a CPU model of the cluster's own; None: the CPU is a common one."""
    found = _CUSTOM_CPU.match(conf.options.get("cpu", ""))
    return found[1] if found else None


def find_drives(conf: GuestConfig) -> Iterator[tuple[str, str]]:
    """Keys and values of everything that names a volume, unused ones included; `scsi2` before `scsi10`."""
    keys = [key for key in conf.options if is_drive_key(key)]
    return ((key, conf.options[key]) for key in sorted(keys, key=_natural_order))


def _natural_order(key: str) -> tuple[str, int]:
    name = key.rstrip("0123456789")
    return name, int(key.removeprefix(name) or 0)


def find_disks(vmid: int, conf: GuestConfig, entries: Mapping[str, StorageEntry]) -> tuple[list[SourceDisk], list[str]]:
    """Returns: the disks, each volume once, not measured yet; and why others cannot be sent."""
    found: dict[str, SourceDisk] = {}
    obstacles: list[str] = []
    for key, value in find_drives(conf):
        try:
            disk = _find_disk(vmid, key, value, entries)
        except TunnelError as error:
            obstacles.append(f"{key}: {clean(error.text)}")
            continue
        if disk is not None:
            first = found.get(str(disk.volid), disk)
            keys = (*first.keys, key) if first is not disk else first.keys
            found[str(disk.volid)] = _named(first, keys)
    return list(found.values()), obstacles


def _named(disk: SourceDisk, keys: tuple[str, ...]) -> SourceDisk:
    return replace(disk, keys=keys)


def _find_disk(vmid: int, key: str, value: str, entries: Mapping[str, StorageEntry]) -> SourceDisk | None:
    try:
        drive = parse_drive(key, value)
    except FormatError as error:
        raise Obstacle(f"cannot be read: {str(error).strip()}") from error
    if not drive.has_volume:
        return None
    _check_drive(drive)
    return _describe(vmid, key, parse_volume_id(drive.volume), entries)


def _check_drive(drive: Drive) -> None:
    if drive.volume.startswith("/"):
        raise Obstacle(f"'{drive.volume}' is a path of this host")
    if drive.is_cdrom and not drive.is_cloudinit:
        raise Obstacle(f"the CD-ROM drive holds '{drive.volume}', a file of this host; eject it first")
    if drive.allocates:
        raise Obstacle(f"'{drive.volume}' has not been allocated yet")
    if drive.is_linked_clone:
        raise Obstacle(f"'{drive.volume}' is a linked clone")


def _describe(vmid: int, key: str, volid: VolumeId, entries: Mapping[str, StorageEntry]) -> SourceDisk:
    entry = entries.get(volid.storage)
    if entry is None:
        raise Obstacle(f"storage '{volid.storage}' does not exist")
    name, format = _read_name(entry, volid)
    for other in find_owner(entry, volid.name).guests - {vmid}:
        raise Obstacle(f"'{volid}' belongs to VM {other}")
    offers = entry.kind.offers(format)
    if not offers:
        raise Obstacle(f"'{volid}' cannot be sent: storage type {entry.type} has no stream for {format}")
    return SourceDisk(keys=(key,), volid=volid, name=name, format=format, becomes=format, offers=offers)


def _read_name(entry: StorageEntry, volid: VolumeId) -> tuple[str, str]:
    """A volume's bare name, and the format of its image."""
    if not entry.has_files:
        return volid.name.rpartition("/")[2], "raw"
    volume = parse_dir_volume(volid.name)
    if volume.content != "images" or volume.format == "subvol":
        raise Obstacle(f"'{volid}' is no disk image")
    if volume.is_base:
        raise Obstacle(f"'{volid}' is a base image")
    return volume.name, volume.format
