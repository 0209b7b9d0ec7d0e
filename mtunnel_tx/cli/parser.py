"""Command lines: common options wherever they stand, what was probably meant, and no secrets in what is refused."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from mtunnel_tx.cli.loudness import add_loudness

# Of an endpoint everything up to the next comma, however it is misspelled; else what stands behind a token's name.
_SECRETS = re.compile(r"(apitoken(?=[\s=:%]))[^,]*|((?:!|%21)[\w.-]+(?:=|%3d))[^,\s]*", re.I)
CONFIG_HELP = "configuration file; else $MTUNNEL_CONFIG, else the default one (docs/operations.md)"
_CHOICE = re.compile(r"argument .*: invalid choice: '(.*)' \(choose from (.*)\)", re.S)


class Paragraphs(argparse.HelpFormatter):
    """A help whose texts keep their paragraphs, which are as wide as the terminal."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(super(Paragraphs, self)._fill_text(part, width, indent) for part in text.split("\n\n"))


class Parser(argparse.ArgumentParser):
    """Takes common options wherever they stand: each subcommand's parser is one of these too.

    hint: what was meant by an unknown option and its value, or by an unknown choice: the end of a message, or nothing.
    """

    hint: Callable[[str, str], str] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.add_argument("--config", metavar="FILE", type=Path, default=argparse.SUPPRESS, help=CONFIG_HELP)
        add_loudness(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Each parser refuses itself what it does not know, so that its own usage is shown."""
        if self._subparsers is None:
            words = sys.argv[1:] if args is None else args
            self._refuse(self._unknown(words), words)
        found, rest = super().parse_known_args(args, namespace)
        try:
            rest = self._take_late(found, rest)
        except argparse.ArgumentError as error:
            self.error(str(error))
        self._refuse(rest)
        return found, rest

    def _take_late(self, found: argparse.Namespace, rest: list[str]) -> list[str]:
        """Arguments that may be missing can stand behind options: argparse takes them for missing before it sees them.

        Returns: what is left. Raises: ArgumentError.
        """
        if not rest or any(word.startswith("-") for word in rest):
            return rest
        exclusive = [action for group in self._mutually_exclusive_groups for action in group._group_actions]
        for action in self._get_positional_actions():
            if action.nargs == "*":
                values = [self._get_value(action, word) for word in rest]
                setattr(found, action.dest, [*getattr(found, action.dest), *values])
                return []
            if action.nargs == "?" and action not in exclusive and getattr(found, action.dest) is None:
                setattr(found, action.dest, self._get_value(action, rest[0]))
                return rest[1:]
        return rest

    def _unknown(self, args: Sequence[str]) -> list[str]:
        """Options that are none: looked for first, else what stands behind one would be taken for an argument."""
        words = args[: args.index("--")] if "--" in args else args
        names = [word.partition("=")[0] for word in words if word.startswith("--")]
        return [name for name in names if name not in self._option_string_actions]

    def _refuse(self, rest: Sequence[str], words: Sequence[str] = ()) -> None:
        if rest:
            name = rest[0].partition("=")[0]
            meant = self.hint(name, _value_of(name, words)) if self.hint is not None else ""
            meant = meant or _suggest(name, list(self._option_string_actions))
            self.error(f"unrecognized arguments: {' '.join(rest)}{meant}")

    def error(self, message: str) -> NoReturn:
        """Usage and reason; an endpoint that stands in the wrong place must not show its secret."""
        if choice := _CHOICE.fullmatch(message):
            meant = self.hint(choice[1], "") if self.hint is not None else ""
            message += meant or _suggest(choice[1], re.findall(r"[\w-]+", choice[2]))
        super().error(_SECRETS.sub(r"\1\2…", message))


def _value_of(name: str, words: Sequence[str]) -> str:
    """What stands behind an option, `--x=1` or `--x 1`."""
    for word, behind in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            return behind
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
    return ""


def _suggest(word: str, known: Sequence[str]) -> str:
    """What was probably meant, as the end of a message."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
