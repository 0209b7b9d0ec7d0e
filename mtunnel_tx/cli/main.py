"""The `mtunnel` command: finds the module of a subcommand, and nothing else is imported."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtunnel_tx import __version__
from mtunnel_tx.cli.loudness import loudness
from mtunnel_tx.cli.output import end_output, forget_output, print_failure, speak_any_text
from mtunnel_tx.cli.parser import Parser
from mtunnel_tx.config import Settings, load_settings
from mtunnel_tx.errors import TunnelError, os_reason

if TYPE_CHECKING:
    from mtunnel_tx.cli.words import CommandPlace

COMMANDS: Mapping[str, str] = {
    "init": "make directories, certificate, storage and a first configuration",
    "check": "say what is well, what is not, and what to type",
    "token": "make, list and remove API tokens",
    "acl": "grant roles to users, tokens and groups",
    "endpoint": "print what a source needs to reach this host",
    "migrate": "send a virtual machine to another host",
    "vm": "make, import, run, change and remove the VMs of a host without Proxmox",
    "status": "show the tunnels of the running daemon",
    "watch": "show how far moves are, while they run",
    "history": "show the moves that are over",
    "page": "print a link to the status page, good for one log-in",
    "settle": "end what was left open about a VM",
    "drain": "let the daemon end when its last tunnel has ended",
    "api": "describe the HTTP API",
    "websocket-tunnel": "carry a Proxmox source's commands and streams, over its standard input and output",
    "demo": "send a virtual machine from one node to another, both made for it",
}
"""Subcommands and their help, one module of this package each."""

SHELLS = ("bash", "fish", "zsh")
INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the number of SIGINT."""


def make_parser(command: str | None) -> argparse.ArgumentParser:
    """Build the parser with the details of one command, and only the names of the others.

    Raises: ImportError: a library that the command needs is missing.
    """
    parser = Parser(prog="mtunnel", description="Receive and send virtual machines as Proxmox VE does.")
    parser.add_argument("--version", action="version", version=f"mtunnel-tx {__version__}")
    parser.add_argument(
        "--completion",
        action=_PrintCompletion,
        choices=SHELLS,
        metavar="SHELL",
        help="print a script for bash, fish or zsh",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, text in COMMANDS.items():
        if name == command:
            import_module(f"mtunnel_tx.cli.{name.replace('-', '_')}").configure(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    return parser


class _PrintCompletion(argparse.Action):
    """Prints the script of a shell, and ends."""

    def __call__(self, _parser: Any, _namespace: Any, shell: Any, _name: Any = None) -> None:
        from mtunnel_tx.cli.completion import make_script

        try:
            print(make_script(str(shell), all_places()), end="", flush=True)
        except BrokenPipeError:
            raise SystemExit(forget_output()) from None
        except OSError as error:
            raise SystemExit(end_output(print_failure(argparse.Namespace(), os_reason(error)))) from None
        raise SystemExit(0)


def all_places() -> list[CommandPlace]:
    """Everything that can stand on a command line: the program, each command, and what is below it."""
    from mtunnel_tx.cli.words import find_places

    top = next(find_places(make_parser(None)))
    found = {command: find_places(make_parser(command)) for command in COMMANDS}
    return [top, *(place for name, places in found.items() for place in places if place.words[:1] == (name,))]


def find_command(argv: Sequence[str]) -> str | None:
    """Returns: the subcommand's name: the first word that is neither an option nor the file of `--config`."""
    words = iter(argv)
    for word in words:
        if word == "--config":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None


def program() -> int:
    """The process `mtunnel`: `main` without the garbage collector's work, a third of a short command's time.

    It need not search what was imported: that stays until the process ends, and nothing need be torn down then.
    """
    gc.disable()
    speak_any_text()
    try:
        args = parse(sys.argv[1:])
    except BrokenPipeError:  # nobody reads the usage
        return forget_output()
    except OSError as error:
        return end_output(print_failure(argparse.Namespace(), os_reason(error)))
    except KeyboardInterrupt:  # the command was being imported
        return INTERRUPTED
    gc.freeze()
    gc.enable()
    status = run(args)
    gc.freeze()
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns: the exit code."""
    return run(parse(sys.argv[1:] if argv is None else argv))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read a command line; its command is imported. Raises: SystemExit: it is wrong, or was answered."""
    return make_parser(find_command(argv)).parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Run the command that a command line asks for. Returns: the exit code."""
    try:
        with loudness(args) as tell:
            settings = getattr(args, "load", load_settings)(getattr(args, "config", None), os.environ)
            if isinstance(settings, Settings):
                tell(f"configuration: {settings.file or 'none, so the defaults hold'}")
            status = int(args.run(args, settings))
            sys.stdout.flush()
            return status
    except TunnelError as error:
        return print_failure(args, error.text)
    except BrokenPipeError:
        return forget_output()
    except OSError as error:
        return end_output(print_failure(args, os_reason(error)))
    except KeyboardInterrupt:
        return INTERRUPTED
