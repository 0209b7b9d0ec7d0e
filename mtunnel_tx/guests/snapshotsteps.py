"""What is done to the images and the config for a snapshot: each step may be done again after a crash."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BackendFailed, BadRequest, NotFound, WrongState
from mtunnel_tx.guests.plainhost import LOCK_S, PlainHost
from mtunnel_tx.guests.volumes import free_unnamed, image_format, is_disk, is_own, keep_unused, own_volumes
from mtunnel_tx.ports.changes import Change
from mtunnel_tx.pve.drive import drive_interface
from mtunnel_tx.pve.guestconf import GuestConfig, GuestSection
from mtunnel_tx.pve.guestrules import iter_drives

TAKE, ROLL_BACK, REMOVE = "snapshot", "rollback", "snapshot --remove"
"""The commands' words, as records have them."""
MARKS: Mapping[str, str] = {TAKE: "snapshot", ROLL_BACK: "rollback", REMOVE: "snapshot-delete"}
PREPARED, DELETED = "prepare", "delete"
"""Proxmox's states of a snapshot that is being made or removed."""
_OF_NOW = frozenset({"lock", "parent", "snapstate", "snaptime", "vmstate", "digest", "moved"})
_NEVER_BACK = ("moved", "protection")
"""What a rollback leaves as it is today: whose the VM is, and that nobody may remove it, are no part of its past."""
_OF_SNAPSHOT = frozenset({"snapstate", "snaptime", "vmstate", "runningmachine", "runningcpu", "running-nets-host-mtu"})


def snapshot_volumes(host: PlainHost, section: GuestSection, vmid: int) -> dict[str, str]:
    """The disks that take part, by drive. Raises: BadRequest: one cannot have snapshots."""
    volumes = {}
    for key, drive in iter_drives(GuestConfig(options=section.options)):
        is_part = is_disk(key) or drive_interface(key) in ("efidisk", "tpmstate")
        if is_part and not drive.is_cdrom and drive.has_volume:
            if not is_own(host, drive.volume, vmid) or image_format(host, drive.volume) != "qcow2":
                raise BadRequest(f"{key}: '{clean(drive.volume)}' cannot have snapshots, only a qcow2 image can")
            volumes[key] = drive.volume
    return volumes


def copied_options(conf: GuestConfig) -> dict[str, str]:
    """What a snapshot keeps of the config."""
    return {key: value for key, value in conf.options.items() if key not in _OF_NOW and not key.startswith("unused")}


async def take_in_images(host: PlainHost, section: GuestSection, vmid: int, name: str) -> None:
    """Take the snapshot in each image."""
    for volid in snapshot_volumes(host, section, vmid).values():
        await host.images.take_snapshot(Path(await host.storage.path(volid)), name)


async def require_new(host: PlainHost, section: GuestSection, vmid: int, name: str) -> None:
    """Raises: WrongState: an image has a snapshot of that name, which the config does not know."""
    for volid in snapshot_volumes(host, section, vmid).values():
        path = Path(await host.storage.path(volid))
        if name in await host.images.snapshots(path):
            raise WrongState(
                f"'{path}' has a snapshot '{name}' already, which the config of VM {vmid} does not know; "
                "take another name"
            )


async def having(host: PlainHost, section: GuestSection, vmid: int, name: str) -> list[Path]:
    """The images that have it; a volume that is gone does not. Raises: WrongState: one has two of the name."""
    paths = [Path(await host.storage.path(volid)) for volid in snapshot_volumes(host, section, vmid).values()]
    return [path for path in paths if path.exists() and await _has_one(host, path, name)]


async def _has_one(host: PlainHost, path: Path, name: str) -> bool:
    """By a name that is there twice, qemu-img would take the older one, whosever it is."""
    number = (await host.images.snapshots(path)).count(name)
    if number > 1:
        raise WrongState(
            f"'{path}' has {number} snapshots '{name}'; find out which one is foreign (qemu-img snapshot -l), "
            "and remove it by its ID (qemu-img snapshot -d)"
        )
    return number == 1


async def delete_in_images(host: PlainHost, section: GuestSection, vmid: int, name: str) -> None:
    """Remove the snapshot from each image that has it."""
    for path in await having(host, section, vmid, name):
        await host.images.delete_snapshot(path, name)


async def apply_in_images(host: PlainHost, section: GuestSection, vmid: int, name: str) -> None:
    """Put each image back. Raises: NotFound, WrongState: see `require_everywhere`; then none is changed."""
    for path in await require_everywhere(host, section, vmid, name):
        await host.images.apply_snapshot(path, name)


async def require_everywhere(host: PlainHost, section: GuestSection, vmid: int, name: str) -> list[Path]:
    """All images. Raises: NotFound: one of them does not have the snapshot; WrongState: or has two of the name."""
    paths = [Path(await host.storage.path(volid)) for volid in snapshot_volumes(host, section, vmid).values()]
    for path in paths:
        if not await _has_one(host, path, name):
            raise NotFound(f"'{path}' has no snapshot '{name}'")
    return paths


async def undo_taking(host: PlainHost, change: Change) -> None:
    """Remove a snapshot that was not finished; one that was stays. No image had one of the name before."""
    section = _section(host, change)
    if section is None or section.options.get("snapstate") != PREPARED:
        return
    try:
        await delete_in_images(host, section, change.vmid, change.snapshot)
    except BackendFailed as error:
        # An image that cannot be read has taken none; those before it are done.
        host.note(error.text)
    async with host.guests.locked(change.vmid, LOCK_S):
        conf = host.guests.read(change.vmid)
        del conf.sections[change.snapshot]
        _drop_mark(conf, change)
        await host.guests.write(change.vmid, conf)


async def finish_removal(host: PlainHost, change: Change) -> None:
    """Remove the rest of a snapshot whose removal was begun."""
    section = _section(host, change)
    if section is not None and section.options.get("snapstate") == DELETED:
        await delete_in_images(host, section, change.vmid, change.snapshot)
        async with host.guests.locked(change.vmid, LOCK_S):
            conf = host.guests.read(change.vmid)
            _take_out(conf, change.snapshot)
            _drop_mark(conf, change)
            await host.guests.write(change.vmid, conf)
    await free_unnamed(host, change.volumes)


def _take_out(conf: GuestConfig, name: str) -> None:
    """Those that stood on it stand on what it stood on."""
    parent = conf.sections.pop(name).options.get("parent")
    for section in (conf, *conf.snapshots.values()):
        if section.options.get("parent") == name:
            section.options.pop("parent")
            section.options |= {"parent": parent} if parent else {}


async def finish_rollback(host: PlainHost, change: Change) -> None:
    """Put the VM back, all of it, once that was begun."""
    section = _section(host, change)
    if section is None or host.guests.read(change.vmid).lock != MARKS[ROLL_BACK]:
        return
    await apply_in_images(host, section, change.vmid, change.snapshot)
    async with host.guests.locked(change.vmid, LOCK_S):
        conf = host.guests.read(change.vmid)
        await host.guests.write(change.vmid, rolled_back(host, conf, change))


def rolled_back(host: PlainHost, conf: GuestConfig, change: Change) -> GuestConfig:
    """The snapshot's config in place of today's; disks that it does not know stay, unused."""
    section = conf.sections[change.snapshot]
    left_out = {*_OF_SNAPSHOT, *_NEVER_BACK, "parent"}
    options = {key: value for key, value in section.options.items() if key not in left_out}
    options |= {key: conf.options[key] for key in _NEVER_BACK if key in conf.options}
    back = GuestConfig(options={**options, "parent": change.snapshot}, description=conf.description)
    back.sections = deepcopy(conf.snapshots)
    for volid in own_volumes(host, GuestConfig(options=conf.options), change.vmid):
        if volid not in own_volumes(host, back, change.vmid):
            keep_unused(back, volid)
    return back


def _section(host: PlainHost, change: Change) -> GuestSection | None:
    """The snapshot's section; None: there is none, or no config."""
    return host.guests.read(change.vmid).snapshots.get(change.snapshot) if host.has_config(change.vmid) else None


def _drop_mark(conf: GuestConfig, change: Change) -> None:
    if conf.lock == MARKS[change.action]:
        del conf.options["lock"]
