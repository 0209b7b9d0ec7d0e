"""`mtunnel vm show, set, autostart, forget-move, clone, destroy`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from mtunnel_tx.checks import clean
from mtunnel_tx.cli.parser import Parser
from mtunnel_tx.cli.program import read_vmid
from mtunnel_tx.cli.vm.agreeing import add_yes, agree
from mtunnel_tx.cli.vm.making import finish, placement, read_guest_name
from mtunnel_tx.cli.vm.program import Actions, Answer, add_guest_action
from mtunnel_tx.errors import BadRequest
from mtunnel_tx.guests import autostart, running
from mtunnel_tx.guests.blueprint import checked, read_memory
from mtunnel_tx.guests.cloning import clone_guest
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.guests.removal import destroy, plan_destruction
from mtunnel_tx.guests.settings import read_assignments, set_options
from mtunnel_tx.pve.guestconf import GuestConfig

_LONGEST_DELAY_S = 86400


def configure(actions: Actions) -> None:
    """Add these actions."""
    add_guest_action(actions, "show", _show, "show a VM's config, and what waits for its next start", qm="config")
    change = add_guest_action(
        actions, "set", _set, "set and remove keys of a VM's config; where it runs, most count from its next start on"
    )
    change.add_argument("assignments", nargs="*", metavar="KEY=VALUE", help="as in Proxmox's config")
    if isinstance(change, Parser):
        change.hint = hint_at_key
    change.add_argument("--delete", action="append", default=[], metavar="KEY", help="back to its default")
    boot = add_guest_action(actions, "autostart", _autostart, "have a VM started after a boot, or not", qm="set")
    boot.add_argument("choice", choices=("on", "off"))
    for name, text in (
        ("order", "those with the least are started first, and shut down last"),
        ("up", "seconds to wait before the next one is started"),
        ("down", "seconds that it may take to shut down"),
    ):
        boot.add_argument(f"--{name}", type=_read_number, metavar="N", help=text)
    add_guest_action(
        actions,
        "forget-move",
        _forget_move,
        "make the copy that a move left here the VM again; look at the target first",
    )
    clone = add_guest_action(actions, "clone", _clone, "copy a VM that is off, with full copies of its disks")
    clone.add_argument("name", metavar="NAME", type=read_guest_name)
    clone.add_argument("--vmid", type=read_vmid, metavar="N", help="default: the first free one from 100")
    clone.add_argument("--storage", metavar="ID", help="where its disks go (default: where the original's are)")
    clone.add_argument("--format", choices=("qcow2", "raw", "vmdk"), help="of its disks (default: the original's)")
    clone.add_argument("--start", action="store_true", help="start it at once")
    end = add_guest_action(actions, "destroy", _destroy, "remove a VM that is off, with its disks and snapshots")
    add_yes(end)


def _read_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= _LONGEST_DELAY_S):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to {_LONGEST_DELAY_S}")
    return int(text)


def hint_at_key(option: str, value: str) -> str:
    """What was probably meant by an option that is a key: `--memory 4G` is `memory=4096`; empty where it is none."""
    key = option.removeprefix("--")
    try:
        text = read_memory(value) if key == "memory" else checked(key, value)
    except BadRequest:
        return ""
    return f"; keys are set as KEY=VALUE: {key}={text}"


async def _show(args: argparse.Namespace, host: PlainHost) -> Answer:
    vmid = host.find(args.guest)
    conf = host.guests.read(vmid)
    state = await running.status(host, vmid)
    pending = dict(conf.pending.options) if conf.pending else {}
    data = {
        **asdict(state),
        "config": dict(conf.options),
        "description": conf.description,
        "pending": pending,
        "snapshots": sorted(conf.snapshots),
        "stray_lines": [line.text for line in conf.strays],
    }
    return Answer(data, [f"status: {state.status}", *_config_lines(conf), *_pending_lines(pending)])


def _config_lines(conf: GuestConfig) -> list[str]:
    lines = [f"description: {clean(line)}" for line in conf.description.splitlines()]
    lines += [f"{key}: {clean(value)}" for key, value in sorted(conf.options.items())]
    lines += [f"line {line.number} is not understood: {clean(line.text)}" for line in conf.strays]
    return [*lines, *([f"snapshots: {' '.join(map(clean, sorted(conf.snapshots)))}"] if conf.snapshots else [])]


def _pending_lines(pending: dict[str, str]) -> list[str]:
    return [f"from the next start on: {key}: {clean(value)}" for key, value in sorted(pending.items())]


async def _set(args: argparse.Namespace, host: PlainHost) -> Answer:
    vmid = host.find(args.guest)
    assigned = read_assignments(args.assignments, drives=True)
    deleted = [key for text in args.delete for key in text.split(",") if key]
    if not assigned and not deleted:
        raise BadRequest("nothing to set: give KEY=VALUE, or --delete KEY")
    if both := assigned.keys() & set(deleted):
        raise BadRequest(f"{', '.join(sorted(both))}: set and removed at once")
    done = await set_options(host, vmid, assigned, deleted)
    return Answer(asdict(done), [f"{key}: from the next start on" for key in done.pending])


async def _autostart(args: argparse.Namespace, host: PlainHost) -> Answer:
    vmid = host.find(args.guest)
    given = {"order": args.order, "up": args.up, "down": args.down}
    startup = {key: value for key, value in given.items() if value is not None}
    await autostart.set_autostart(host, vmid, args.choice == "on", startup)
    return Answer({"vmid": vmid, "onboot": args.choice == "on"})


async def _forget_move(args: argparse.Namespace, host: PlainHost) -> Answer:
    vmid = host.find(args.guest)
    await running.forget(host, vmid)
    return Answer({"vmid": vmid})


async def _clone(args: argparse.Namespace, host: PlainHost) -> Answer:
    made = await clone_guest(host, host.find(args.guest), args.name, placement(args))
    return await finish(args, host, made)


async def _destroy(args: argparse.Namespace, host: PlainHost) -> Answer:
    vmid = host.find(args.guest)
    plan = await plan_destruction(host, vmid)
    volumes = ", ".join(plan.volumes) or "no disks"
    agree(args, f"VM {plan.vmid} '{plan.name}' is removed for good, with {volumes}.")
    done = await destroy(host, vmid)
    return Answer(asdict(done), [*_listed("removed", done.volumes, done.kept), *_listed("kept", done.kept)])


def _listed(word: str, volids: Sequence[str], but: Sequence[str] = ()) -> list[str]:
    return [f"{word} {clean(volid)}" for volid in volids if volid not in but]
