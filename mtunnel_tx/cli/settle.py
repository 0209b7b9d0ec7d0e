"""`mtunnel settle`: somebody decides about a virtual machine of which nobody knows which side owns it."""

from __future__ import annotations

import argparse
from typing import Any

from mtunnel_tx.cli.status import ask_daemon
from mtunnel_tx.config import Settings

PATIENCE_S = 600.0
_DESCRIPTION = """\
Decide about a tunnel that was held (see `mtunnel status`). First look at the source: if the virtual machine runs or is
whole there, --discard; if it is gone there, --resume. Needs the running daemon."""


def configure(subparsers: Any) -> None:
    """Add `settle` to the commands of `mtunnel`."""
    parser = subparsers.add_parser("settle", help="decide about a tunnel that was held", description=_DESCRIPTION)
    parser.add_argument("vmid", type=read_vmid, metavar="VMID")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--resume",
        dest="discard",
        action="store_false",
        help="the VM is ours: let it run if its state is here, keep everything, remove the tunnel's lock",
    )
    choice.add_argument(
        "--discard",
        dest="discard",
        action="store_true",
        help="the source has it: free what the tunnel made, but nothing that ran here or that another config names",
    )
    parser.set_defaults(run=run)


def read_vmid(text: str) -> int:
    """A VMID from the command line."""
    if not (text.isascii() and text.isdigit() and 100 <= int(text) <= 999_999_999):
        raise argparse.ArgumentTypeError(f"'{text}' is not a VMID")
    return int(text)


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Tell the daemon, print which volumes stay. Returns: the exit code."""
    reply = ask_daemon(settings, {"cmd": "settle", "vmid": args.vmid, "discard": args.discard}, PATIENCE_S)
    print(f"VM {args.vmid} is settled")
    for volid in reply["left"]:
        print(f"volume {volid} stays")
    return 0
