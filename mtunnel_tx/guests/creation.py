"""Make a VM from a blueprint: claim the VMID, make the disks, then give the config free."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from mtunnel_tx.errors import WrongState
from mtunnel_tx.guests.blueprint import DEFAULTS, Blueprint, BlueprintDisk
from mtunnel_tx.guests.changing import Work, claiming
from mtunnel_tx.guests.isos import place_iso
from mtunnel_tx.guests.plainhost import LOCK_S, PlainHost
from mtunnel_tx.guests.recovery import CREATE_MARK, is_claimed
from mtunnel_tx.guests.volumes import choose_format, choose_storage
from mtunnel_tx.ports.images import SourceImage
from mtunnel_tx.pve.drive import Drive, drive_interface, format_drive
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestrules import check_consistency, fill_macs, iter_nics
from mtunnel_tx.pve.storagecfg import StorageEntry

SCSI_CONTROLLER = "virtio-scsi-single"
_TRIMMED = frozenset({"scsi", "virtio"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a VM goes. `vmid`: None: the first free one. `storage`, `format`: None: the first that fit."""

    vmid: int | None = None
    storage: str | None = None
    format: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedGuest:
    """What was made: the VM, and its disks' volumes by their drives."""

    vmid: int
    name: str
    volumes: Mapping[str, str]


async def create_guest(
    host: PlainHost, action: str, blueprint: Blueprint, images: Mapping[str, SourceImage], placement: Placement
) -> CreatedGuest:
    """Make a VM.

    Args: images: drive to the image with its content, looked at. Raises: TunnelError: nothing is left then.
    """
    entry = choose_storage(host, placement.storage)
    format = choose_format(entry, placement.format)
    async with claiming(host, placement.vmid, action) as work:
        vmid = work.change.vmid
        conf = _first_config(blueprint, work.change.claim)
        _check_early(host, conf)
        _note_missing_bridges(host, conf)
        _note_equal_names(host, conf)
        await host.guests.create(vmid, conf)
        for disk in blueprint.disks:
            drive = await make_disk(work, disk, images.get(disk.key), entry, format)
            conf.options[disk.key] = format_drive(drive)
        for key, iso in blueprint.isos.items():
            conf.options[key] = format_drive(Drive(await place_iso(work, iso, entry), {"media": "cdrom"}))
        await host.storage.sync(work.change.volumes)
        await give_free(work, conf)
    volumes = {disk.key: volid for disk, volid in zip(blueprint.disks, work.change.volumes, strict=True)}
    return CreatedGuest(vmid=vmid, name=conf.options.get("name", ""), volumes=volumes)


def _first_config(blueprint: Blueprint, claim: str) -> GuestConfig:
    """The config while the VM is being made."""
    options = {
        **DEFAULTS,
        "smbios1": f"uuid={uuid4()}",
        "meta": f"ctime={int(time.time())}",
        **{key: value for key, value in blueprint.options.items() if value},
        "vmgenid": claim,
        "lock": CREATE_MARK,
    }
    if any(drive_interface(disk.key) == "scsi" for disk in blueprint.disks):
        options.setdefault("scsihw", SCSI_CONTROLLER)
    description = options.pop("description", "")
    conf = GuestConfig(options=options, description="".join(f"{line}\n" for line in description.splitlines()))
    return fill_macs(conf, os.urandom)


def _check_early(host: PlainHost, conf: GuestConfig) -> None:
    """Refuse what this host cannot run before any disk is made; its firmware needs one."""
    without = conf.copy()
    without.options.pop("bios", None)
    host.machines.check(without)


def _note_missing_bridges(host: PlainHost, conf: GuestConfig) -> None:
    there = host.machines.bridges()
    for key, nic in iter_nics(conf):
        if "bridge" in nic and nic["bridge"] not in there:
            host.note(f"{key}: there is no bridge '{nic['bridge']}' on this host; without it the VM does not start")


def _note_equal_names(host: PlainHost, conf: GuestConfig) -> None:
    same = [vmid for vmid, name in host.vmids().items() if name == conf.options.get("name")]
    if same:
        host.note(f"VM {same[0]} has the name '{conf.options['name']}', too: commands will need the number")


async def make_disk(
    work: Work, disk: BlueprintDisk, image: SourceImage | None, entry: StorageEntry, format: str
) -> Drive:
    """Make a volume, with an image's content where there is one. Returns: the drive."""
    size_bytes = max(disk.size_bytes or 0, image.size_bytes if image else 0)
    format = disk.volume_format or format
    volid = await work.add_volume(entry, size_bytes, format, suffix=disk.suffix)
    if image is not None:
        await work.host.images.convert(image, Path(await work.host.storage.path(volid)), format)
    interface = drive_interface(disk.key)
    # No iothread: a disk in a thread of its own keeps QEMU from handing the VM over to another host.
    suitable = {"discard": "on"} if interface in _TRIMMED else {}
    return Drive(volid, suitable if disk.options is None else disk.options).with_size(
        await work.host.storage.size_bytes(volid)
    )


async def give_free(work: Work, conf: GuestConfig) -> None:
    """Write the config without its mark. Raises: WrongState: somebody else changed it meanwhile."""
    host, change = work.host, work.change
    check_consistency(conf)
    async with host.guests.locked(change.vmid, LOCK_S):
        if not is_claimed(host.guests.read(change.vmid), change.claim):
            raise WrongState(f"the config of VM {change.vmid} was changed by somebody else meanwhile")
        finished = conf.copy()
        del finished.options["lock"]
        host.machines.check(finished)
        await host.guests.write(change.vmid, finished)
