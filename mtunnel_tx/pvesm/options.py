"""Command lines as Proxmox's tools take them.

Options stand anywhere, with one dash or two, `-x y` or `-x=y`, in any case, cut short where that is unambiguous; a lone
`-` is an argument; `--` ends the options. A switch takes a boolean, or nothing, which is true. An argument may be given
as an option too, where the argument itself counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtunnel_tx.checks import Check, FormatError
from mtunnel_tx.errors import BadRequest

_TRUE = frozenset(("1", "on", "yes", "true"))
_FALSE = frozenset(("0", "off", "no", "false"))


class UsageError(BadRequest):
    """The command line cannot be used; `text` may have several lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Syntax:
    """What a command takes: positional arguments, options with a value, switches; and checks of values by name."""

    usage: str
    arguments: tuple[str, ...]
    values: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    checks: Mapping[str, Check]

    def help(self) -> str:
        """The usage line, and a line for each option."""
        kinds = {**dict.fromkeys(self.values, "value"), **dict.fromkeys(self.switches, "boolean")}
        return "\n".join([self.usage, *(f"    -{name} <{kind}>" for name, kind in kinds.items())])


@dataclass(frozen=True, slots=True)
class Parameters:
    """A command line after parsing: the values of options and arguments by name, and the switches by name."""

    texts: Mapping[str, str]
    switches: Mapping[str, bool]

    def __getitem__(self, name: str) -> str:
        return self.texts[name]

    def get(self, name: str) -> str | None:
        """An option's value, None where it was not given."""
        return self.texts.get(name)

    def switch(self, name: str) -> bool:
        """A switch; off where it was not given."""
        return self.switches.get(name, False)


def parse_parameters(syntax: Syntax, words: Sequence[str]) -> Parameters:
    """Read the words behind the command's name.

    Raises: UsageError: in Proxmox's words, the usage line at the end.
    """
    try:
        parameters = _Reader(syntax).read(words)
        _check(syntax, parameters.texts)
    except UsageError as error:
        raise UsageError(f"{error.text}\n{syntax.usage}") from None
    return parameters


class _Reader:
    """Parses the words of one command line from left to right."""

    def __init__(self, syntax: Syntax) -> None:
        self._syntax = syntax
        self._names = (*syntax.values, *syntax.switches, *syntax.arguments)
        self._texts: dict[str, str] = {}
        self._switches: dict[str, str] = {}
        self._positional: list[str] = []
        self._complaints: list[str] = []

    def read(self, words: Sequence[str]) -> Parameters:
        rest = list(words)
        while rest:
            self._take(rest)
        if self._complaints:
            raise UsageError("\n".join([*self._complaints, "400 unable to parse option"]))
        texts = self._texts | self._named_arguments()
        return Parameters(texts, {name: _read_boolean(text or "1") for name, text in self._switches.items()})

    def _take(self, rest: list[str]) -> None:
        word = rest.pop(0)
        if word == "--":
            self._positional += rest
            rest.clear()
        elif word.startswith("-") and word != "-":
            self._take_option(word, rest)
        else:
            self._positional.append(word)

    def _take_option(self, word: str, rest: list[str]) -> None:
        given, value = _split(word)
        name = self._find(given.lower())
        if name is None:
            return
        if name in self._syntax.switches:
            if value is None and rest and (rest[0] == "-" or not rest[0].startswith("-")):
                value = rest.pop(0)
            self._switches[name] = value or ""
        elif value == "" or (value is None and not rest):
            self._complaints.append(f"Option {name} requires an argument")
        else:
            self._texts[name] = rest.pop(0) if value is None else value

    def _find(self, given: str) -> str | None:
        found = [given] if given in self._names else [name for name in self._names if name.startswith(given)]
        if len(found) == 1:
            return found[0]
        if found:
            self._complaints.append(f"Option {given} is ambiguous ({', '.join(sorted(found))})")
        else:
            self._complaints.append(f"Unknown option: {given}")
        return None

    def _named_arguments(self) -> dict[str, str]:
        wanted = self._syntax.arguments
        if len(self._positional) < len(wanted):
            raise UsageError("400 not enough arguments")
        if len(self._positional) > len(wanted):
            raise UsageError("400 too many arguments")
        return dict(zip(wanted, self._positional, strict=True))


def _split(word: str) -> tuple[str, str | None]:
    """Split `--x=y` into `x` and `y`; the value is None where there is no `=`."""
    name = word.removeprefix("-").removeprefix("-")
    end = name.find("=", 1)
    return (name, None) if end < 0 else (name[:end], name[end + 1 :])


def _read_boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise UsageError("400 unable to parse boolean option")


def _check(syntax: Syntax, texts: Mapping[str, str]) -> None:
    lines = []
    for name in filter(syntax.checks.__contains__, texts):
        try:
            syntax.checks[name](texts[name])
        except FormatError as error:
            lines.append(f"{name}: {error}")
    if lines:
        raise UsageError("\n".join(["400 Parameter verification failed.", *lines]))
