"""Snapshots of a VM that is off: taken, listed, rolled back to, removed; in qcow2 images and in Proxmox's sections."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from mtunnel_tx.checks import FormatError, clean, config_id
from mtunnel_tx.errors import BadRequest, NotFound, WrongState
from mtunnel_tx.guests.changing import changing, new_change
from mtunnel_tx.guests.plainhost import LOCK_S, PlainHost
from mtunnel_tx.guests.snapshotsteps import (
    DELETED,
    MARKS,
    PREPARED,
    REMOVE,
    ROLL_BACK,
    TAKE,
    copied_options,
    finish_removal,
    finish_rollback,
    having,
    require_everywhere,
    require_new,
    snapshot_volumes,
    take_in_images,
)
from mtunnel_tx.guests.volumes import is_own
from mtunnel_tx.pve.guestconf import GuestConfig, GuestSection
from mtunnel_tx.pve.moved import check_not_moved

LONGEST_NAME = 40
_MOST_DIGITS = 18
"""Of a time; a config may have come from elsewhere."""
_RESERVED = frozenset({"current", "pending"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotEntry:
    """One snapshot. `taken_s`: seconds since the epoch. `parent`: the one before it, else empty."""

    name: str
    taken_s: int
    parent: str
    description: str
    has_memory: bool


def read_snapshot_name(text: str) -> str:
    """A new snapshot's name. Raises: ValueError: with the reason."""
    if len(text) > LONGEST_NAME or text.lower() in _RESERVED:
        raise ValueError(f"has more than {LONGEST_NAME} characters, or is reserved")
    try:
        return config_id(text)
    except FormatError as error:
        raise ValueError("is none: two or more letters, digits, - and _, the first one a letter") from error


def list_snapshots(host: PlainHost, vmid: int) -> list[SnapshotEntry]:
    """The snapshots of a VM, the oldest first."""
    entries = [_entry(name, section) for name, section in host.guests.read(vmid).snapshots.items()]
    parents = {entry.name: entry.parent for entry in entries}
    return sorted(entries, key=lambda entry: (entry.taken_s, _depth(entry.name, parents), entry.name))


def find_snapshot(host: PlainHost, vmid: int, name: str) -> SnapshotEntry:
    """One that is whole. Raises: NotFound, BadRequest."""
    return _entry(name, _whole_snapshot(host.guests.read(vmid), vmid, name))


def _depth(name: str, parents: Mapping[str, str]) -> int:
    """How many stand before it; a config on disk may have a ring."""
    depth = 0
    while (name := parents.get(name, "")) and depth < len(parents):
        depth += 1
    return depth


def _entry(name: str, section: GuestSection) -> SnapshotEntry:
    taken = section.options.get("snaptime", "0")
    return SnapshotEntry(
        name=name,
        taken_s=int(taken) if taken.isdecimal() and len(taken) <= _MOST_DIGITS else 0,
        parent=section.options.get("parent", ""),
        description=section.description.strip(),
        has_memory="vmstate" in section.options,
    )


async def take_snapshot(host: PlainHost, vmid: int, name: str, description: str) -> None:
    """Take a snapshot of all disks.

    Raises: BadRequest: a disk cannot have one; WrongState: the VM or an image has it, or it runs, or lives elsewhere.
    """
    async with changing(host, new_change(host, vmid, TAKE, snapshot=name)) as work:
        async with host.guests.locked(vmid, LOCK_S):
            conf = host.stopped(vmid)
            check_not_moved(vmid, conf)
            if name in conf.sections:
                raise WrongState(f"VM {vmid} has a snapshot '{name}' already")
            section = _new_section(conf, description)
            await require_new(host, section, vmid, name)
            conf.sections[name] = section
            await work.write_marked(conf, MARKS[TAKE])
        await take_in_images(host, section, vmid, name)
        async with host.guests.locked(vmid, LOCK_S):
            conf = host.guests.read(vmid)
            if conf.lock != MARKS[TAKE] or name not in conf.sections:
                raise WrongState(f"the config of VM {vmid} was changed by somebody else meanwhile")
            del conf.options["lock"], conf.sections[name].options["snapstate"]
            conf.options["parent"] = name
            await host.guests.write(vmid, conf)


def _new_section(conf: GuestConfig, description: str) -> GuestSection:
    parent = {"parent": conf.options["parent"]} if "parent" in conf.options else {}
    state = {"snaptime": str(int(time.time())), "snapstate": PREPARED}
    text = "".join(f"{clean(line)}\n" for line in description.splitlines())
    return GuestSection(options={**copied_options(conf), **parent, **state}, description=text)


async def roll_back(host: PlainHost, vmid: int, name: str) -> None:
    """Put all disks and the config back to a snapshot. Once begun, an interruption only postpones the rest.

    Raises: NotFound: a volume or the snapshot is not there; WrongState: the VM runs, or lives on another host by now.
    """
    async with changing(host, new_change(host, vmid, ROLL_BACK, snapshot=name)) as work:
        async with host.guests.locked(vmid, LOCK_S):
            conf = host.stopped(vmid)
            check_not_moved(vmid, conf)
            section = _whole_snapshot(conf, vmid, name)
            if "vmstate" in section.options:
                host.note(f"snapshot '{name}' has the VM's memory, too, which is not restored: it will start anew")
            for volid in snapshot_volumes(host, section, vmid).values():
                if await host.storage.size_bytes(volid) is None:
                    raise NotFound(f"there is no volume '{volid}'")
            await require_everywhere(host, section, vmid, name)
            await work.write_marked(conf, MARKS[ROLL_BACK])
        await finish_rollback(host, work.change)


async def remove_snapshot(host: PlainHost, vmid: int, name: str) -> None:
    """Remove a snapshot. Once begun, an interruption only postpones the rest."""
    async with changing(host, new_change(host, vmid, REMOVE, snapshot=name)) as work:
        async with host.guests.locked(vmid, LOCK_S):
            conf = host.stopped(vmid)
            section = _whole_snapshot(conf, vmid, name)
            await having(host, section, vmid, name)
            if is_own(host, state := section.options.get("vmstate", ""), vmid):
                await work.give_up(state)
            section.options["snapstate"] = DELETED
            await work.write_marked(conf, MARKS[REMOVE])
        await finish_removal(host, work.change)


def _whole_snapshot(conf: GuestConfig, vmid: int, name: str) -> GuestSection:
    if name not in conf.snapshots:
        raise NotFound(f"VM {vmid} has no snapshot '{clean(name)}'")
    section = conf.snapshots[name]
    if "snapstate" in section.options:
        raise BadRequest(f"snapshot '{name}' is not whole: {clean(section.options['snapstate'])}")
    return section
