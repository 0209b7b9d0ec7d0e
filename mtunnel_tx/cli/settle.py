"""`mtunnel settle`: ends what was left open about a VM that came to this host, or that was sent from it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.journal import FileJournal
from mtunnel_tx.cli.migrate import add_endpoint, complete, find_endpoint, is_endpoint_given, make_target
from mtunnel_tx.cli.output import add_json, answer, fail, warn
from mtunnel_tx.cli.parser import Paragraphs
from mtunnel_tx.cli.program import USAGE, read_vmid, run_reactor
from mtunnel_tx.cli.sourcehost import source_parts
from mtunnel_tx.cli.status import ask_daemon
from mtunnel_tx.config import Settings
from mtunnel_tx.errors import BadRequest, NotFound, TunnelError
from mtunnel_tx.pve.maps import Endpoint
from mtunnel_tx.source.earlier import settle
from mtunnel_tx.source.host import LinesOnly, SourceHost
from mtunnel_tx.source.owner import Owner
from mtunnel_tx.source.target import TargetApi

PATIENCE_S = 600.0
_DESCRIPTION = """\
End what was left open about a virtual machine (see `mtunnel status`).

One that was sent from this host, by a `mtunnel migrate` that was killed: without an option it is finished, or undone,
where it is known who owns the VM. Where only the target can know, it is asked, if it is an mtunnel-tx and ENDPOINT,
--endpoint-file or $MTUNNEL_ENDPOINT names it as for `mtunnel migrate`: a VM that is all there is handed over, and one
that was removed there runs on here. Else it is said what happened, and --here or --there decides. No daemon is needed.

One that came to this host, and is held: --resume or --discard decides, through the running daemon. First look at the
source: if the VM runs or is whole there, --discard; if it is gone there, --resume."""
_CHOICES = (
    ("here", "sent from here: the VM is this host's; it runs on where it ran, and can be sent again"),
    ("there", "sent from here: the VM is the target's; its QEMU ends here, its copy stays, marked as moved"),
    ("resume", "came here: the VM is ours: let it run if its state is here, keep everything, remove the tunnel's lock"),
    ("discard", "came here: the source has it: free what the tunnel made, but nothing that ran here or that is used"),
)


def configure(subparsers: Any) -> None:
    """Add `settle` to the commands of `mtunnel`."""
    parser = subparsers.add_parser(
        "settle",
        help="end what was left open about a VM",
        description=_DESCRIPTION,
        formatter_class=Paragraphs,
    )
    parser.add_argument("vmid", type=read_vmid, metavar="VMID")
    add_endpoint(parser)
    choice = parser.add_mutually_exclusive_group()
    for name, text in _CHOICES:
        choice.add_argument(f"--{name}", dest="choice", action="store_const", const=name, help=text)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Returns: the exit code."""
    if args.choice in ("resume", "discard"):
        return _settle_coming(settings, args, discard=args.choice == "discard")
    try:
        endpoint = whom_to_ask(args, os.environ)
    except BadRequest as error:
        fail(args, error)
        return USAGE
    from twisted.internet import reactor

    return run_reactor(reactor, lambda: _settle_leaving(reactor, settings, args, endpoint))


def whom_to_ask(args: argparse.Namespace, environ: Mapping[str, str]) -> Endpoint | None:
    """The target, if one is named. Nobody is asked where the command line decides: then the environment does not count.

    Raises: BadRequest.
    """
    environ = {} if args.choice else environ
    return find_endpoint(args, environ) if is_endpoint_given(args, environ) else None


def _settle_coming(settings: Settings, args: argparse.Namespace, *, discard: bool) -> int:
    """Tell the daemon, say which volumes stay."""
    reply = ask_daemon(settings, {"cmd": "settle", "vmid": args.vmid, "discard": discard}, PATIENCE_S)
    left = [str(volid) for volid in reply["left"]]
    stays = [f"volume {volid} stays" for volid in left]
    answer(args, {"vmid": args.vmid, "left": left}, f"VM {args.vmid} is settled", *(() if discard else stays))
    for text in stays if discard and not args.json else ():
        warn(args, text)  # it was to go
    return 0


async def _settle_leaving(reactor: Any, settings: Settings, args: argparse.Namespace, endpoint: Endpoint | None) -> int:
    vmid = args.vmid
    decisions = {"here": Owner.HERE, "there": Owner.THERE}
    try:
        host = SourceHost(**await source_parts(reactor, settings, _make_listener(args)))
        target = await _find_target(reactor, host, endpoint)
        try:
            await settle(host, vmid, decisions.get(args.choice or ""), target)
        except NotFound as error:
            raise _other_side(reactor, settings, vmid, error) from error
    except TunnelError as error:
        return fail(args, error)
    answer(args, {"vmid": vmid, "left": []}, f"VM {vmid} is settled")
    return 0


async def _find_target(reactor: Any, host: SourceHost, endpoint: Endpoint | None) -> TargetApi | None:
    """Whom to ask. A target that cannot be reached does not matter where it is known whose the VM is."""
    if endpoint is None:
        return None
    try:
        return make_target(reactor, await complete(reactor, endpoint))
    except TunnelError as error:
        host.progress.warn(f"{endpoint.host} cannot be asked: {error.text}")
        return None


def _make_listener(args: argparse.Namespace) -> LinesOnly:
    """Nothing is sent any more: only lines are shown."""
    out = sys.stderr if args.json else sys.stdout
    return LinesOnly(partial(print, file=out, flush=True), partial(warn, args))


def _other_side(reactor: Any, settings: Settings, vmid: int, error: NotFound) -> TunnelError:
    """What to say where a VM was not sent from here: perhaps it came here."""
    journal = FileJournal(ReactorThreads(reactor, reactor.getThreadPool()), settings.state_dir)
    if vmid in journal.standing():
        return BadRequest(f"VM {vmid} came to this host and is held: give --resume or --discard (mtunnel status)")
    return error
