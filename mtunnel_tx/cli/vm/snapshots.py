"""`mtunnel vm snapshot, rollback, snapshots`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import UTC, datetime

from mtunnel_tx.checks import clean
from mtunnel_tx.cli.table import format_table
from mtunnel_tx.cli.vm.agreeing import add_yes, agree
from mtunnel_tx.cli.vm.program import Actions, Answer, add_guest_action
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.guests.snapshots import (
    SnapshotEntry,
    find_snapshot,
    list_snapshots,
    read_snapshot_name,
    remove_snapshot,
    roll_back,
    take_snapshot,
)


def configure(actions: Actions) -> None:
    """Add these actions."""
    take = add_guest_action(actions, "snapshot", _snapshot, "take a snapshot of a VM that is off, or remove one")
    take.add_argument("name", metavar="NAME", type=_name)
    take.add_argument("--description", default="", metavar="TEXT", help="what it is for")
    take.add_argument("--remove", action="store_true", help="remove the snapshot of this name")
    add_yes(take)
    back = add_guest_action(
        actions, "rollback", _roll_back, "put a VM that is off back to a snapshot, config and disks"
    )
    back.add_argument("name", metavar="NAME", type=_name)
    add_yes(back)
    add_guest_action(actions, "snapshots", _list, "show the snapshots of a VM", qm="listsnapshot")


def hint_at_removal(word: str, _value: str) -> str:
    """What was probably meant by an action that is none: whoever wants to remove a snapshot must not make one."""
    is_removal = any(part in word for part in ("del", "remove", "rm")) and "snapshot" in word
    return "; a snapshot is removed by 'snapshot VMID NAME --remove'" if is_removal else ""


def _name(text: str) -> str:
    try:
        return read_snapshot_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}': {error}") from error


async def _snapshot(args: argparse.Namespace, host: PlainHost) -> Answer:
    vmid = host.find(args.guest)
    if args.remove:
        entry = find_snapshot(host, vmid, args.name)
        agree(args, f"The snapshot '{entry.name}' of VM {vmid}, of {_taken(entry)}, is removed for good.")
        await remove_snapshot(host, vmid, args.name)
    else:
        await take_snapshot(host, vmid, args.name, args.description)
    return Answer({"vmid": vmid, "snapshot": args.name})


async def _roll_back(args: argparse.Namespace, host: PlainHost) -> Answer:
    vmid = host.find(args.guest)
    entry = find_snapshot(host, vmid, args.name)
    agree(args, f"What changed in the config and the disks of VM {vmid} since {_taken(entry)} is lost.")
    await roll_back(host, vmid, args.name)
    return Answer({"vmid": vmid, "snapshot": args.name})


async def _list(args: argparse.Namespace, host: PlainHost) -> Answer:
    vmid = host.find(args.guest)
    entries = list_snapshots(host, vmid)
    table = format_table([("NAME", "TAKEN", "AFTER", "DESCRIPTION"), *map(_row, entries)])
    data = {"vmid": vmid, "snapshots": [asdict(entry) for entry in entries]}
    return Answer(data, table)


def _row(entry: SnapshotEntry) -> tuple[str, str, str, str]:
    return clean(entry.name), _taken(entry), clean(entry.parent), clean(entry.description)


def _taken(entry: SnapshotEntry) -> str:
    try:
        return f"{datetime.fromtimestamp(entry.taken_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{entry.taken_s} s after 1970"
