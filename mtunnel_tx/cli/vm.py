"""`mtunnel vm`: the virtual machines of a host without Proxmox, by hand."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.guests import GuestFiles
from mtunnel_tx.backends.journal import FileJournal
from mtunnel_tx.backends.qemu import QemuMachines
from mtunnel_tx.checks import clean
from mtunnel_tx.cli.acl import print_table
from mtunnel_tx.cli.program import FAILED, read_vmid, run_reactor
from mtunnel_tx.config import Settings
from mtunnel_tx.config.host import make_private_directory
from mtunnel_tx.errors import BackendFailed, TimedOut, TunnelError, WrongState, os_reason
from mtunnel_tx.local import make_guests, make_machines, make_storage
from mtunnel_tx.pve.guestconf import GuestConfig

LOCK_S = 10.0


@dataclass(frozen=True, slots=True)
class Host:
    """This host's guests, what runs them, and what is owed for those that came from another host."""

    guests: GuestFiles
    machines: QemuMachines
    journal: FileJournal


def configure(subparsers: Any) -> None:
    """Add `vm` to the commands of `mtunnel`."""
    text = "list, start, stop and mend the VMs of a host without Proxmox"
    parser = subparsers.add_parser("vm", help=text, description=f"{text[0].upper()}{text[1:]}.")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    actions.add_parser("list", help="show all VMs").set_defaults(run=run, act=_list, action="list")
    for name, act, explanation in (
        ("start", _start, "start a VM; it runs on whatever becomes of the daemon"),
        ("stop", _stop, "end a VM at once, as if its power were cut"),
        ("resume", _resume, "let a paused VM run on, for example after its migration came to nothing"),
        ("unlock", _unlock, "remove the lock of a migration whose program has ended; look at the other side first"),
        ("status", _status, "say whether a VM runs, or why it does not"),
    ):
        action = actions.add_parser(name, help=explanation)
        action.add_argument("vmid", metavar="VMID", type=read_vmid)
        action.set_defaults(run=run, act=act, action=name)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Returns: the exit status."""
    if settings.profile == "proxmox":
        words = ["qm", args.action, *([str(args.vmid)] if "vmid" in args else [])]
        print(f"mtunnel: VMs belong to Proxmox here; run instead:\n{shlex.join(words)}", file=sys.stderr)
        return FAILED
    from twisted.internet import reactor

    return run_reactor(reactor, lambda: _act(reactor, args, settings))


async def _act(reactor: Any, args: argparse.Namespace, settings: Settings) -> int:
    act: Callable[[argparse.Namespace, Host], Awaitable[None]] = args.act
    machines = None
    try:
        make_private_directory(settings.machine_dir)
        threads = ReactorThreads(reactor, reactor.getThreadPool())
        machines = make_machines(threads, settings, make_storage(reactor, settings))
        await act(args, Host(make_guests(threads, settings), machines, FileJournal(threads, settings.state_dir)))
    except (TunnelError, OSError) as error:
        reason = error.text if isinstance(error, TunnelError) else os_reason(error)
        print(f"mtunnel vm: {clean(reason)}", file=sys.stderr)
        return FAILED
    finally:
        if machines is not None:
            machines.close()
    return 0


async def _list(_args: argparse.Namespace, host: Host) -> None:
    entries = [entry for entry in host.guests.entries() if entry.node == host.guests.node and entry.kind == "qemu"]
    rows = [
        (str(entry.vmid), "running" if host.machines.running(entry.vmid) else "stopped", clean(entry.name))
        for entry in sorted(entries, key=lambda entry: entry.vmid)
    ]
    print_table([("VMID", "STATUS", "NAME"), *rows])


async def _start(args: argparse.Namespace, host: Host) -> None:
    async with host.guests.locked(args.vmid, LOCK_S):
        conf = _unlocked(args.vmid, host)
        await host.machines.local_start(args.vmid, conf, lambda line: print(f"mtunnel vm: {line}", file=sys.stderr))


async def _stop(args: argparse.Namespace, host: Host) -> None:
    async with host.guests.locked(args.vmid, LOCK_S):
        _unlocked(args.vmid, host)
        await host.machines.stop(args.vmid)


async def _resume(args: argparse.Namespace, host: Host) -> None:
    async with host.guests.locked(args.vmid, LOCK_S):
        _unlocked(args.vmid, host)
        await host.machines.resume(args.vmid)


async def _unlock(args: argparse.Namespace, host: Host) -> None:
    async with host.guests.locked(args.vmid, LOCK_S):
        if args.vmid in host.journal.standing():
            raise WrongState(f"VM {args.vmid} came from another host: mtunnel status, mtunnel settle")
        conf = host.guests.read(args.vmid)
        if conf.options.pop("lock", None) is not None:
            await host.guests.write(args.vmid, conf)


async def _status(args: argparse.Namespace, host: Host) -> None:
    host.guests.read(args.vmid)
    status, reason = "running", ""
    with suppress(TimedOut, BackendFailed):  # the daemon talks to it now, or nobody can; it runs in any case
        state = await host.machines.state(args.vmid)
        status, reason = state.status, state.dirty_end
    print(f"status: {'stopped' if status == 'off' else status}")
    if reason:
        print(f"reason: {reason}")


def _unlocked(vmid: int, host: Host) -> GuestConfig:
    """The VM's config. Raises: WrongState: somebody works on the VM, a migration for example."""
    conf = host.guests.read(vmid)
    if conf.lock is not None:
        raise WrongState(f"VM {vmid} is locked ({conf.lock})")
    return conf
