"""Section config, the format of storage.cfg (formats.md section 5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Warn = Callable[[str], None]
"""Takes one sentence about something that was skipped."""

_HEADER = re.compile(r"(\S+):\s*(\S+)\s*")
_OPTION = re.compile(r"\s+(\S+)(?:\s+(.*\S))?\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """`TYPE: ID` (the type in lower case) and its options; `line` is the number of the header's line."""

    type: str
    id: str
    options: dict[str, str]
    line: int


def _ignore(reason: str) -> None:
    """Nobody wants to know."""


def parse_sections(text: str, warn: Warn = _ignore) -> list[Section]:
    """All sections in their order; a bare key is `1`, of a duplicate key the first stays.

    Args: warn: told of everything that is skipped, as `line N: REASON`.
    """
    lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if not line.lstrip().startswith("#"))
    sections = []
    for number, line in lines:
        match = _HEADER.fullmatch(line)
        if match:
            options = _read_options(lines, warn)
            sections.append(Section(type=match[1].lower(), id=match[2], options=options, line=number))
        elif line:
            warn(f"line {number}: not a section header, skipped")
    return sections


def _read_options(lines: Iterator[tuple[int, str]], warn: Warn) -> dict[str, str]:
    """Take lines up to the empty one that ends the section."""
    options: dict[str, str] = {}
    for number, line in lines:
        if not line:
            break
        match = _OPTION.fullmatch(line)
        if match is None:
            warn(f"line {number}: not an option, skipped")
        elif match[1] in options:
            warn(f"line {number}: '{match[1]}' again, skipped")
        else:
            options[match[1]] = match[2] or "1"
    return options


def format_sections(sections: list[Section]) -> str:
    """The sections in this order, an option a line, an empty line between two."""
    return "\n".join(
        f"{section.type}: {section.id}\n" + "".join(f"\t{key} {value}\n" for key, value in section.options.items())
        for section in sections
    )
