"""The disks of a VM: added, made larger, removed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mtunnel_tx.checks import FormatError, clean
from mtunnel_tx.errors import BadRequest, NotFound, WrongState
from mtunnel_tx.guests.blueprint import BlueprintDisk, boot_order
from mtunnel_tx.guests.changing import changing, new_change
from mtunnel_tx.guests.creation import SCSI_CONTROLLER, Placement, make_disk
from mtunnel_tx.guests.plainhost import LOCK_S, PlainHost
from mtunnel_tx.guests.volumes import (
    choose_format,
    choose_storage,
    free_key,
    free_unnamed,
    image_format,
    is_own,
    keep_unused,
    own_volumes,
    read_size,
)
from mtunnel_tx.ports.images import ImagePlace
from mtunnel_tx.pve.drive import DRIVE_KEYS, Drive, format_drive, parse_drive
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestrules import boot_order as read_boot_order
from mtunnel_tx.pve.sizes import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskChange:
    """A disk after what was done to it. `size_bytes`: None: it has no volume any more."""

    vmid: int
    key: str
    volume: str
    size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDisk:
    """What to add: an empty disk, or one with an image's content. `format`: of the image; None: what it says itself."""

    bus: str
    size_bytes: int | None = None
    image: Path | None = None
    format: str | None = None


async def add_disk(host: PlainHost, vmid: int, new: NewDisk, placement: Placement) -> DiskChange:
    """Make a disk for a VM that is off. Raises: TunnelError: nothing is left then."""
    async with changing(host, new_change(host, vmid, "disk add")) as work:
        host.stopped(vmid)
        entry = choose_storage(host, placement.storage)
        image = await host.images.look(ImagePlace(path=new.image.absolute()), new.format) if new.image else None
        disk = BlueprintDisk(key=f"{new.bus}0", size_bytes=new.size_bytes)
        drive = await make_disk(work, disk, image, entry, choose_format(entry, placement.format))
        await host.storage.sync(work.change.volumes)
        async with host.guests.locked(vmid, LOCK_S):
            conf = host.stopped(vmid)
            key = free_key(conf, new.bus)
            _plug_in(conf, key, drive)
            await host.guests.write(vmid, conf)
    return DiskChange(vmid=vmid, key=key, volume=drive.volume, size_bytes=drive.size_bytes)


def _plug_in(conf: GuestConfig, key: str, drive: Drive) -> None:
    """The first disk of all is what the VM boots from."""
    is_first = not any(other in DRIVE_KEYS and not _is_cdrom(conf, other) for other in conf.options)
    conf.options[key] = format_drive(drive)
    if key.startswith("scsi"):
        conf.options.setdefault("scsihw", SCSI_CONTROLLER)
    if is_first:
        conf.options["boot"] = boot_order(key, *read_boot_order(conf))


def _is_cdrom(conf: GuestConfig, key: str) -> bool:
    return "media=cdrom" in conf.options[key].split(",")


def _own_drive(host: PlainHost, vmid: int, conf: GuestConfig, key: str) -> Drive:
    """Raises: NotFound: no such drive; BadRequest: what is in it is not the VM's."""
    if key not in conf.options or key not in DRIVE_KEYS:
        raise NotFound(f"VM {vmid} has no drive '{clean(key)}'")
    try:
        drive = parse_drive(key, conf.options[key])
    except FormatError as error:
        raise BadRequest(f"{key}: {' '.join(str(error).split())}") from error
    if not is_own(host, drive.volume, vmid):
        raise BadRequest(f"{key}: '{clean(drive.volume)}' is no disk of VM {vmid}")
    return drive


def find_disk(host: PlainHost, vmid: int, key: str) -> str:
    """The volume of a VM's own disk. Raises: NotFound, BadRequest."""
    return _own_drive(host, vmid, host.guests.read(vmid), key).volume


async def resize_disk(host: PlainHost, vmid: int, key: str, text: str) -> DiskChange:
    """Make a disk larger, also where the VM runs.

    Args: text: the new size, or `+` and how much more. Raises: BadRequest: it would be smaller.
    """
    async with changing(host, new_change(host, vmid, "disk resize")), host.guests.locked(vmid, LOCK_S):
        conf = host.unlocked(vmid)
        drive = _own_drive(host, vmid, conf, key)
        before = await _size_of(host, drive)
        after = before + read_size(text[1:]) if text.startswith("+") else read_size(text)
        if after < before:
            raise BadRequest(f"{key}: has {format_size(before)}; a disk is never made smaller")
        if host.machines.running(vmid):
            await host.machines.resize_disk(vmid, key, after)
        else:
            path = Path(await host.storage.path(drive.volume))
            await host.images.resize(path, image_format(host, drive.volume), after)
        conf.options[key] = format_drive(drive.with_size(await _size_of(host, drive)))
        await host.guests.write(vmid, conf)
    return DiskChange(vmid=vmid, key=key, volume=drive.volume, size_bytes=after)


async def _size_of(host: PlainHost, drive: Drive) -> int:
    size_bytes = await host.storage.size_bytes(drive.volume)
    if size_bytes is None:
        raise NotFound(f"there is no volume '{clean(drive.volume)}'")
    return size_bytes


async def remove_disk(host: PlainHost, vmid: int, key: str, *, keep: bool) -> DiskChange:
    """Take a disk out of a VM that is off, and free it, unless it is to be kept as `unusedN`."""
    async with changing(host, new_change(host, vmid, "disk remove")) as work:
        async with host.guests.locked(vmid, LOCK_S):
            conf = host.stopped(vmid)
            volume = _own_drive(host, vmid, conf, key).volume
            _check_free_of_snapshots(host, vmid, conf, key, volume)
            _unplug(conf, key)
            if keep:
                keep_unused(conf, volume)
            else:
                await work.give_up(volume)
            await host.guests.write(vmid, conf)
        await free_unnamed(host, work.change.volumes)
    return DiskChange(vmid=vmid, key=key, volume=volume, size_bytes=None)


def _unplug(conf: GuestConfig, key: str) -> None:
    rest = [device for device in read_boot_order(conf) if device != key]
    del conf.options[key]
    if "order=" in conf.options.get("boot", ""):
        conf.options["boot"] = boot_order(*rest) or " "


def _check_free_of_snapshots(host: PlainHost, vmid: int, conf: GuestConfig, key: str, volume: str) -> None:
    for name, section in conf.snapshots.items():
        if volume in own_volumes(host, GuestConfig(options=section.options), vmid):
            raise WrongState(f"{key}: snapshot '{clean(name)}' needs it")
