"""What all actions of `mtunnel vm` share: the host they work on, how they answer, how they fail."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol
from uuid import uuid4

from twisted.internet.defer import CancelledError

from mtunnel_tx.backends.changes import FileChanges
from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.journal import LEAVING, FileJournal
from mtunnel_tx.backends.orphans import VARIABLE
from mtunnel_tx.backends.programs import HostPrograms
from mtunnel_tx.backends.qemuimg import QemuImages
from mtunnel_tx.backends.virsh import Virsh
from mtunnel_tx.checks import FormatError, clean, dns_name
from mtunnel_tx.cli.output import fail, forget_output, print_failure, warn
from mtunnel_tx.cli.program import read_vmid, run_reactor
from mtunnel_tx.config import Settings
from mtunnel_tx.config.host import make_private_directory
from mtunnel_tx.errors import NoSuchGuest, TunnelError, os_reason
from mtunnel_tx.guests.plainhost import PlainHost
from mtunnel_tx.local import make_environ, make_guests, make_machines, make_storage
from mtunnel_tx.ports.storage import Report, Storage
from mtunnel_tx.source.journal import describe_departure


@dataclass(frozen=True, slots=True)
class Answer:
    """What an action says at its end: `data` with --json, else `lines`, for people.

    `then`: what is left to do once the reactor has stopped, without --json; it returns the exit status.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[str] = ()
    then: Callable[[], int] | None = None
    status: int = 0


Act = Callable[[argparse.Namespace, PlainHost], Awaitable[Answer]]


class Actions(Protocol):
    """Where actions are added: what argparse calls subparsers."""

    def add_parser(self, name: str, **details: Any) -> argparse.ArgumentParser: ...


def add_action(actions: Actions, name: str, act: Act, help: str, *, qm: str | None = None) -> argparse.ArgumentParser:
    """Add an action with the options that all have. Args: qm: what Proxmox calls it, where that is another name."""
    parser = actions.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    parser.add_argument("--json", action="store_true", help="answer as one JSON object (docs/vm.md)")
    parser.set_defaults(run=run, act=act, action=name, qm=qm or name)
    return parser


def add_guest_action(
    actions: Actions, name: str, act: Act, help: str, *, qm: str | None = None
) -> argparse.ArgumentParser:
    """Add an action for one VM."""
    parser = add_action(actions, name, act, help, qm=qm)
    parser.add_argument("guest", metavar="VMID", type=read_guest, help="its number, or its name")
    return parser


def add_action_for_several(
    actions: Actions, name: str, act: Act, help: str, *, option: str, option_help: str
) -> argparse.ArgumentParser:
    """Add an action for one VM, or with an option for several."""
    parser = add_action(actions, name, act, help)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("guest", nargs="?", metavar="VMID", type=read_guest, help="its number, or its name")
    which.add_argument(option, action="store_true", help=option_help)
    return parser


def read_guest(text: str) -> int | str:
    """A VM from the command line: digits are its VMID, else it is a name."""
    if text.isdecimal():
        return read_vmid(text)
    try:
        return dns_name(text)
    except FormatError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is neither a VMID nor a VM's name") from error


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Returns: the exit status."""
    if settings.profile == "proxmox":
        words = ["qm", *shlex.split(args.qm), *([str(args.guest)] if getattr(args, "guest", None) else [])]
        return print_failure(args, f"VMs belong to Proxmox here; run instead:\n{shlex.join(words)}")
    from twisted.internet import reactor

    follow: list[Callable[[], int]] = []
    status = run_reactor(reactor, lambda: _act(reactor, args, settings, follow))
    return follow[0]() if follow and not status else status


async def _act(reactor: Any, args: argparse.Namespace, settings: Settings, follow: list[Callable[[], int]]) -> int:
    notes: list[str] = []
    machines = None
    try:
        make_private_directory(settings.machine_dir)
        threads = ReactorThreads(reactor, reactor.getThreadPool())
        host = make_host(threads, settings, note=notes.append if args.json else partial(warn, args))
        machines = host.machines
        await machines.find_all()
        answer: Answer = await args.act(args, host)
        _show(args, answer, notes)
        follow += [answer.then] if answer.then and not args.json else []
        return answer.status
    except NoSuchGuest as error:
        return print_failure(args, f"there is no VM {error.vmid}; mtunnel vm list shows those that are there")
    except BrokenPipeError:
        return forget_output()
    except TunnelError as error:
        return fail(args, error)
    except OSError as error:
        return print_failure(args, clean(os_reason(error)))
    except CancelledError:
        print_failure(args, "interrupted")
        raise
    finally:
        if machines is not None:
            machines.close()


def make_host(threads: ReactorThreads, settings: Settings, note: Report) -> PlainHost:
    """This host, as its configuration describes it."""
    owner = f"{settings.state_dir}/changes:{os.getpid()}:{uuid4()}"
    departures = FileJournal(threads, settings.state_dir, LEAVING)
    storage = make_storage(threads.reactor, settings, owner=owner)
    return PlainHost(
        guests=make_guests(threads, settings),
        machines=make_machines(threads, settings, storage),
        storage=storage,
        images=QemuImages(threads, {**make_environ(settings, os.environ), VARIABLE: owner}),
        libvirt=Virsh(threads.reactor, os.environ),
        journal=FileJournal(threads, settings.state_dir),
        departures=departures,
        changes=FileChanges(threads, state_dir=settings.state_dir, lock_dir=settings.lock_dir),
        owner=owner,
        note=note,
        settle_kept=partial(_settle_kept, threads, settings, storage, note),
        departing=partial(describe_departure, departures, HostPrograms()),
    )


async def _settle_kept(threads: ReactorThreads, settings: Settings, storage: Storage, note: Report, vmid: int) -> None:
    from mtunnel_tx.cli.vm.departures import settle_kept  # half of the imports, for a few VMs at a boot

    await settle_kept(threads, settings, storage, note, vmid)


def _show(args: argparse.Namespace, answer: Answer, notes: Sequence[str]) -> None:
    if args.json:
        print(json.dumps({"success": True, **answer.data, "notes": [clean(note) for note in notes]}, indent=2))
    for line in () if args.json else answer.lines:
        print(line)
