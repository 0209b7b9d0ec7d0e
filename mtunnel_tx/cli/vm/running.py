"""`mtunnel vm list, start, stop, shutdown, resume, unlock, status`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import cast

from mtunnel_tx.checks import clean
from mtunnel_tx.cli.output import FAILED
from mtunnel_tx.cli.table import format_table
from mtunnel_tx.cli.vm.program import Actions, Answer, add_action, add_action_for_several, add_guest_action
from mtunnel_tx.guests import running
from mtunnel_tx.guests.autostart import AutostartResult, shut_all_down, start_all
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.ports.clock import Clock


def configure(actions: Actions) -> None:
    """Add these actions."""
    add_action(actions, "list", _list, "show all VMs, and every QEMU whose config was removed")
    start = add_action_for_several(
        actions,
        "start",
        _start,
        "start a VM; it runs on whatever becomes of the daemon",
        option="--onboot",
        option_help="start those that are to run after a boot, in their order",
    )
    start.add_argument("--force", action="store_true", help="also where it was moved to another host: run two of it")
    add_guest_action(actions, "stop", _stop, "end a VM at once, as if its power were cut")
    shutdown = add_action_for_several(
        actions,
        "shutdown",
        _shutdown,
        "press a VM's power button, and wait until it is off",
        option="--all",
        option_help="shut all down, those started last first; one that takes longer than its config allows is ended",
    )
    shutdown.add_argument(
        "--timeout",
        type=read_seconds,
        default=running.SHUTDOWN_S,
        metavar="S",
        help=f"seconds that its guest may take (default: {running.SHUTDOWN_S:g})",
    )
    add_guest_action(
        actions, "resume", _resume, "let a paused VM run on, for example after its migration came to nothing"
    )
    add_guest_action(
        actions,
        "unlock",
        _unlock,
        "remove the lock of a migration whose program has ended; look at the other side first",
    )
    add_guest_action(actions, "status", _status, "say whether a VM runs, or why it does not")


def read_seconds(text: str) -> float:
    """A time from the command line."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 86400):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds from 1 to 86400")
    return float(text)


async def _list(_args: argparse.Namespace, host: PlainHost) -> Answer:
    rows = running.list_guests(host)
    table = [("VMID", "STATUS", "NAME", "NOTE"), *((str(r.vmid), r.status, clean(r.name), clean(r.note)) for r in rows)]
    return Answer({"guests": [asdict(row) for row in rows]}, format_table(table))


async def _start(args: argparse.Namespace, host: PlainHost) -> Answer:
    if args.onboot:
        from twisted.internet import reactor

        return _results(await start_all(host, cast("Clock", reactor)))
    vmid = host.find(args.guest)
    await running.start(host, vmid, force=args.force)
    return Answer({"vmid": vmid})


async def _stop(args: argparse.Namespace, host: PlainHost) -> Answer:
    vmid = host.find(args.guest)
    await running.stop(host, vmid)
    return Answer({"vmid": vmid})


def _results(results: Sequence[AutostartResult]) -> Answer:
    """What failed was told when it did."""
    failed = any(result.problem for result in results)
    return Answer({"guests": [asdict(result) for result in results]}, status=FAILED if failed else 0)


async def _shutdown(args: argparse.Namespace, host: PlainHost) -> Answer:
    if args.all:
        return _results(await shut_all_down(host))
    vmid = host.find(args.guest)
    await running.shut_down(host, vmid, args.timeout)
    return Answer({"vmid": vmid})


async def _resume(args: argparse.Namespace, host: PlainHost) -> Answer:
    vmid = host.find(args.guest)
    await running.resume(host, vmid)
    return Answer({"vmid": vmid})


async def _unlock(args: argparse.Namespace, host: PlainHost) -> Answer:
    vmid = host.find(args.guest)
    await running.unlock(host, vmid)
    return Answer({"vmid": vmid})


async def _status(args: argparse.Namespace, host: PlainHost) -> Answer:
    found = await running.status(host, host.find(args.guest))
    accelerator = {"kvm": "KVM", "tcg": "none, the VM is emulated"}.get(found.accelerator, "")
    shown = {"status": found.status, "accelerator": accelerator, "reason": found.reason, "note": found.note}
    return Answer(asdict(found), [f"{name}: {clean(text)}" for name, text in shown.items() if text])
