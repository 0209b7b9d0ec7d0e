"""Section config, the format of storage.cfg (formats.md section 5)."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from mtunnel_tx.checks import Warn, ignore

_HEADER = re.compile(r"(\S+):\s*(\S+)\s*")
_OPTION = re.compile(r"\s+(\S+)(?:\s+(.*\S))?\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """`TYPE: ID` (the type in lower case) and its options; `line` is the number of the header's line."""

    type: str
    id: str
    options: dict[str, str]
    line: int


def parse_sections(text: str, warn: Warn = ignore, *, types: Collection[str] | None = None) -> list[Section]:
    """All sections in their order; a bare key is `1`, of a duplicate key the first stays.

    Args: warn: told of everything that is skipped, as `line N: REASON`. types: such a header begins a section even
        where the empty line before it is missing; None: any header does.
    """
    sections: list[Section] = []
    current: Section | None = None
    for number, line in enumerate(text.split("\n"), 1):
        header = _HEADER.fullmatch(line)
        if line.lstrip().startswith("#"):
            continue
        if not line.rstrip("\r"):
            current = None
        elif header and (current is None or types is None or header[1].lower() in types):
            if current is not None:
                warn(f"line {number}: no empty line before '{line.strip()}'; Proxmox skips such a section")
            current = Section(type=header[1].lower(), id=header[2], options={}, line=number)
            sections.append(current)
        elif current is None:
            warn(f"line {number}: not a section header, skipped")
        else:
            _read_option(current.options, number, line, warn)
    return sections


def _read_option(options: dict[str, str], number: int, line: str, warn: Warn) -> None:
    match = _OPTION.fullmatch(line)
    if match is None:
        warn(f"line {number}: not an option, skipped")
    elif match[1] in options:
        warn(f"line {number}: '{match[1]}' again, skipped")
    else:
        options[match[1]] = match[2] or "1"
