"""Copy a VM that is off: full copies of its disks, and an identity of its own."""

from __future__ import annotations

import os
from pathlib import Path

from mtunnel_tx.errors import BadRequest
from mtunnel_tx.guests.blueprint import checked
from mtunnel_tx.guests.changing import Work, changing, claiming, new_change
from mtunnel_tx.guests.creation import CreatedGuest, Placement, give_free
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.guests.recovery import CREATE_MARK
from mtunnel_tx.guests.volumes import choose_format, choose_storage, image_format, is_own
from mtunnel_tx.ports.images import ImagePlace, SourceImage
from mtunnel_tx.pve.drive import Drive, drive_interface, format_drive
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestformats import SMBIOS
from mtunnel_tx.pve.guestrules import fill_macs, iter_drives, iter_nics
from mtunnel_tx.pve.moved import find_move
from mtunnel_tx.pve.nic import format_nic
from mtunnel_tx.pve.property import format_property
from mtunnel_tx.pve.storagecfg import StorageEntry

CLONE = "clone"
_NOT_COPIED = frozenset({"lock", "parent", "onboot", "startup", "template", "moved", "snaptime", "vmstate"})


async def clone_guest(host: PlainHost, vmid: int, name: str, placement: Placement) -> CreatedGuest:
    """Make a copy. Args: placement: where it goes; None: each disk where the original is, in its format."""
    async with changing(host, new_change(host, vmid, CLONE)):
        original = host.stopped(vmid)
        if move := find_move(original):
            host.note(f"VM {vmid} was {move}: this makes a second VM of the disks, as they were when it left")
        async with claiming(host, placement.vmid, CLONE) as work:
            conf = _identity_of_its_own(original, name, work.change.claim)
            await host.guests.create(work.change.vmid, conf)
            volumes = {}
            for key, drive in iter_drives(original):
                if is_own(host, drive.volume, vmid) and not key.startswith("unused"):
                    copy = await _copy(work, key, drive, placement)
                    conf.options[key] = format_drive(copy)
                    volumes[key] = copy.volume
            await host.storage.sync(work.change.volumes)
            await give_free(work, conf)
    return CreatedGuest(vmid=work.change.vmid, name=name, volumes=volumes)


def _identity_of_its_own(original: GuestConfig, name: str, claim: str) -> GuestConfig:
    """The config without its disks, with new addresses and ids."""
    dropped = (*_NOT_COPIED, *(key for key in original.options if key.startswith("unused")))
    options = {key: value for key, value in original.options.items() if key not in dropped}
    smbios = {**SMBIOS.parse(options.get("smbios1", "")), "uuid": claim}
    options |= {"name": checked("name", name), "smbios1": format_property(smbios), "vmgenid": claim}
    options["lock"] = CREATE_MARK
    for key, nic in iter_nics(original):
        options[key] = format_nic({option: value for option, value in nic.items() if option != "macaddr"})
    return fill_macs(GuestConfig(options=options, description=original.description), os.urandom)


async def _copy(work: Work, key: str, drive: Drive, placement: Placement) -> Drive:
    host = work.host
    entry = choose_storage(host, placement.storage or drive.volume.partition(":")[0])
    format = _format(host, key, drive, entry, placement)
    size_bytes = await host.storage.size_bytes(drive.volume)
    if size_bytes is None:
        raise BadRequest(f"{key}: there is no volume '{drive.volume}'")
    if not drive.is_linked_clone and (reason := await host.storage.refers_elsewhere(drive.volume)):
        raise BadRequest(f"{key}: {reason}")
    place = ImagePlace(path=Path(await host.storage.path(drive.volume)))
    source = SourceImage(
        place=place,
        format=image_format(host, drive.volume),
        size_bytes=size_bytes,
        is_clone=drive.is_linked_clone,
    )
    volid = await work.add_volume(entry, size_bytes, format, suffix="cloudinit" if drive.is_cloudinit else "")
    await host.images.convert(source, Path(await host.storage.path(volid)), format)
    options = {option: value for option, value in drive.options.items() if option != "format"}
    return Drive(volid, options).with_size(await host.storage.size_bytes(volid))


def _format(host: PlainHost, key: str, drive: Drive, entry: StorageEntry, placement: Placement) -> str:
    """That of the original where the storage can have it, unless another one was asked for."""
    own = image_format(host, drive.volume)
    if drive_interface(key) == "tpmstate":
        return own
    if placement.format is None and own in entry.valid_formats:
        return own
    return choose_format(entry, placement.format)
