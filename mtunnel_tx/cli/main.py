"""The `mtunnel` command: finds the module of a subcommand, and nothing else is imported."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mtunnel_tx.config import load_settings
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

# Of an endpoint everything up to the next comma, however it is misspelled; else what stands behind a token's name.
_SECRETS = re.compile(r"(apitoken(?=[\s=:%]))[^,]*|((?:!|%21)[\w.-]+(?:=|%3d))[^,\s]*", re.I)
_LOUDNESS = {"quiet": "print errors only, and what --json asks for", "verbose": "print the log, too"}
SHELLS = ("bash", "fish", "zsh")
CONFIG_HELP = "configuration file; else $MTUNNEL_CONFIG, else the default one (docs/operations.md)"


_CHOICE = re.compile(r"argument .*: invalid choice: '(.*)' \(choose from (.*)\)", re.S)


class Parser(argparse.ArgumentParser):
    """Takes common options wherever they stand: each subcommand's parser is one of these too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.add_argument("--config", metavar="FILE", type=Path, default=argparse.SUPPRESS, help=CONFIG_HELP)
        for name, text in _LOUDNESS.items():
            self.add_argument(f"--{name}", action="store_true", default=argparse.SUPPRESS, help=text)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Each parser refuses itself what it does not know, so that its own usage is shown."""
        if self._subparsers is None:
            self._refuse(self._unknown(sys.argv[1:] if args is None else args))
        found, rest = super().parse_known_args(args, namespace)
        self._refuse(rest)
        return found, rest

    def _unknown(self, args: Sequence[str]) -> list[str]:
        """Options that are none: looked for first, else what stands behind one would be taken for an argument."""
        words = args[: args.index("--")] if "--" in args else args
        names = [word.partition("=")[0] for word in words if word.startswith("--")]
        return [name for name in names if name not in self._option_string_actions]

    def _refuse(self, rest: Sequence[str]) -> None:
        if rest:
            known = list(self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(rest)}{_suggest(rest[0].partition('=')[0], known)}")

    def error(self, message: str) -> NoReturn:
        """Usage and reason; an endpoint that stands in the wrong place must not show its secret."""
        if choice := _CHOICE.fullmatch(message):
            message += _suggest(choice[1], re.findall(r"[\w-]+", choice[2]))
        super().error(_SECRETS.sub(r"\1\2…", message))


def _suggest(word: str, known: Sequence[str]) -> str:
    """What was probably meant, as the end of a message."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def make_parser(command: str | None) -> argparse.ArgumentParser:
    """Build the parser with the details of one command, and only the names of the others.

    Raises: ImportError: a library that the command needs is missing.
    """
    parser = Parser(prog="mtunnel", description="Receive and send virtual machines as Proxmox VE does.")
    parser.add_argument("--version", action="version", version=f"mtunnel-tx {_version()}")
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

        print(make_script(str(shell), all_places()), end="")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns: the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser(find_command(argv)).parse_args(argv)
    try:
        with _loudness(args):
            load = getattr(args, "load", load_settings)
            status = int(args.run(args, load(getattr(args, "config", None), os.environ)))
            sys.stdout.flush()
            return status
    except TunnelError as error:
        if getattr(args, "json", False):
            print(json.dumps({"success": False, "msg": error.text}))
            return 1
        return _fail(error.text)
    except BrokenPipeError:
        _forget_output()
        return 1
    except OSError as error:
        return _fail(os_reason(error))
    except KeyboardInterrupt:
        return 130


@contextmanager
def _loudness(args: argparse.Namespace) -> Iterator[None]:
    """Do what --quiet and --verbose ask for."""
    if getattr(args, "verbose", False):
        from twisted.logger import globalLogBeginner, textFileLogObserver

        observer: Any = textFileLogObserver(sys.stderr)
        globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
    if not getattr(args, "quiet", False) or getattr(args, "json", False):
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


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
