"""What can stand on a command line, as the parsers have it: for completion by shells, and for the manual."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any


class Value(Enum):
    """What an option wants behind it."""

    NOTHING = "nothing"
    CHOICE = "choice"
    FILE = "file"
    TEXT = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option, or an argument where it has no names. metavar: how its value is called, empty where it has none."""

    names: tuple[str, ...]
    help: str
    value: Value
    metavar: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandPlace:
    """A command, a command of it, or the program itself. words: what leads there; `commands`: what can follow."""

    words: tuple[str, ...]
    help: str
    description: str
    usage: str
    options: tuple[Option, ...]
    arguments: tuple[Option, ...]
    commands: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Its words, one blank apart."""
        return " ".join(self.words)


def find_places(parser: argparse.ArgumentParser, words: tuple[str, ...] = (), help: str = "") -> Iterator[CommandPlace]:
    """Yields: the parser's own place, then those below it."""
    below = next((one for one in parser._actions if isinstance(one, argparse._SubParsersAction)), None)
    helps = {choice.dest: choice.help or "" for choice in below._choices_actions} if below else {}
    shown = [one for one in parser._actions if one.help != argparse.SUPPRESS and one is not below]
    yield CommandPlace(
        words=words,
        help=help,
        description=parser.description or "",
        usage=" ".join(parser.format_usage().removeprefix("usage: ").split()),
        options=tuple(_read(parser, one) for one in shown if one.option_strings),
        arguments=tuple(_read(parser, one) for one in shown if not one.option_strings),
        commands=helps,
    )
    for name, text in helps.items():
        yield from find_places(below.choices[name] if below else parser, (*words, name), text)


def _read(parser: argparse.ArgumentParser, action: argparse.Action) -> Option:
    choices = tuple(str(getattr(choice, "value", choice)) for choice in action.choices or ())
    takes = action.nargs != 0
    return Option(
        names=tuple(action.option_strings),
        help=_help(parser, action),
        value=_value(action, choices) if takes else Value.NOTHING,
        metavar=_metavar(action, choices) if takes else "",
        choices=choices,
    )


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    values: dict[str, Any] = {**vars(action), "prog": parser.prog}
    return (action.help or "") % values


def _metavar(action: argparse.Action, choices: tuple[str, ...]) -> str:
    name = action.metavar if isinstance(action.metavar, str) else "|".join(choices) or action.dest.upper()
    if action.option_strings:
        return name
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}.get(str(action.nargs), name)


def _value(action: argparse.Action, choices: tuple[str, ...]) -> Value:
    if choices:
        return Value.CHOICE
    is_file = action.type is Path or str(action.metavar).rpartition("=")[2] in ("FILE", "DIR", "FOLDER", "PATH")
    return Value.FILE if is_file else Value.TEXT
