"""The `mtunnel` command: finds the module of a subcommand, and nothing else is imported."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from mtunnel_tx.config import load_settings
from mtunnel_tx.errors import TunnelError, os_reason

COMMANDS: Mapping[str, str] = {
    "init": "make directories, certificate, storage and a first configuration",
    "check": "say what is well, what is not, and what to type",
    "token": "make, list and remove API tokens",
    "acl": "grant roles to users, tokens and groups",
    "endpoint": "print what a source needs to reach this host",
    "migrate": "send a virtual machine to another host",
    "vm": "make, import, run, change and remove the VMs of a host without Proxmox",
    "status": "show the tunnels of the running daemon",
    "history": "show the moves that are over",
    "settle": "end what was left open about a VM",
    "drain": "let the daemon end when its last tunnel has ended",
    "api": "describe the HTTP API",
    "websocket-tunnel": "carry a Proxmox source's commands and streams, over its standard input and output",
    "demo": "send a virtual machine from one node to another, both made for it",
}
"""Subcommands and their help, one module of this package each."""

# Of an endpoint everything up to the next comma, however it is misspelled; else what stands behind a token's name.
_SECRETS = re.compile(r"(apitoken(?=[\s=:%]))[^,]*|((?:!|%21)[\w.-]+(?:=|%3d))[^,\s]*", re.I)
CONFIG_HELP = "configuration file; else $MTUNNEL_CONFIG, else the default one (docs/operations.md)"


class Parser(argparse.ArgumentParser):
    """Takes `--config` wherever it stands: each subcommand's parser is one of these too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.add_argument("--config", metavar="FILE", type=Path, default=argparse.SUPPRESS, help=CONFIG_HELP)

    def error(self, message: str) -> NoReturn:
        """Usage and reason; an endpoint that stands in the wrong place must not show its secret."""
        super().error(_SECRETS.sub(r"\1\2…", message))


def make_parser(command: str | None) -> argparse.ArgumentParser:
    """Build the parser with the details of one command, and only the names of the others.

    Raises: ImportError: a library that the command needs is missing.
    """
    parser = Parser(prog="mtunnel", description="Receive and send virtual machines as Proxmox VE does.")
    parser.add_argument("--version", action="version", version=f"mtunnel-tx {_version()}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, text in COMMANDS.items():
        if name == command:
            import_module(f"mtunnel_tx.cli.{name.replace('-', '_')}").configure(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    return parser


def find_command(argv: Sequence[str]) -> str | None:
    """Returns: the subcommand's name: the first word that is neither an option nor the file of `--config`."""
    words = iter(argv)
    for word in words:
        if word == "--config":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns: the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser(find_command(argv)).parse_args(argv)
    try:
        load = getattr(args, "load", load_settings)
        return int(args.run(args, load(getattr(args, "config", None), os.environ)))
    except TunnelError as error:
        return _fail(error.text)
    except BrokenPipeError:
        _forget_output()
        return 1
    except OSError as error:
        return _fail(os_reason(error))
    except KeyboardInterrupt:
        return 130


def _fail(reason: str) -> int:
    print(f"mtunnel: {reason}", file=sys.stderr)
    return 1


def _forget_output() -> None:
    """Whoever read our output has gone: nothing may complain about it while we end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _version() -> str:
    try:
        return version("mtunnel-tx")
    except PackageNotFoundError:
        return "from a source tree"
