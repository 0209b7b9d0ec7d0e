"""The options of `mtunnel demo`. The demonstration itself is in `mtunnel_tx/demo`."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from typing import Any

from mtunnel_tx.cli.output import add_json, answer, print_failure
from mtunnel_tx.demo.show import run_demo

_DESCRIPTION = """\
Make two nodes in a temporary folder, start the daemon of the second one, and send it a VM from the first one: a raw
disk of 1 GiB and a qcow2 disk with an internal snapshot. Then compare both sides. Where QEMU is installed, also move
a running VM that counts, and see that it missed nothing; a link opens the status page, on which it is seen to arrive.
Everything is removed at the end.
Exit status 0: the VM arrived, and every disk is the same."""


def configure(subparsers: Any) -> None:
    """Add `demo` to the commands of `mtunnel`."""
    parser = subparsers.add_parser(
        "demo", help="send a virtual machine from one node to another, both made for it", description=_DESCRIPTION
    )
    parser.add_argument(
        "--data", type=_read_mib, default=200, metavar="MIB", help="random data on the first disk (default: 200)"
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="hold before the running VM moves, and at the end, to look at the status page",
    )
    add_json(parser)
    parser.set_defaults(run=run, load=lambda _path, _environ: None)


def _read_mib(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of MiB from 1 to 1000")
    return int(text)


def run(args: argparse.Namespace, _settings: None) -> int:
    """Returns: the exit code."""
    if not args.json:
        return run_demo(args.data, wait=args.wait)
    with redirect_stdout(sys.stderr):
        status = run_demo(args.data, wait=args.wait)
    if status:
        return print_failure(args, "the demonstration failed; standard error says why")
    answer(args, {})
    return 0
