"""The config of a virtual machine: a text file of `key: value` lines with sections (formats.md section 5)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field

PENDING = "PENDING"
SPECIAL = "special:"
_BLANKS = " \t\r\f\v"
_HEADER = re.compile(r"\[([^\]]*)\]\s*")
_ENTRY = re.compile(r"([a-z][a-z_-]*[0-9]*):(.*)", re.DOTALL)
_ESCAPED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_TO_ESCAPE = re.compile(r"[^ -~]|[%:]")
_RENAMED = {"cdrom": "ide2", "smp": "sockets"}


@dataclass(slots=True)
class Section:
    """One section: its keys, its description (lines that end in LF), and lines that are none of both."""

    options: dict[str, str] = field(default_factory=dict)
    description: str = ""
    strays: list[str] = field(default_factory=list)


@dataclass(slots=True)
class GuestConfig(Section):
    """A whole config; `sections` maps what stands between the brackets to the section."""

    sections: dict[str, Section] = field(default_factory=dict)

    @property
    def lock(self) -> str | None:
        """The `lock` mark."""
        return self.options.get("lock")

    @property
    def pending(self) -> Section | None:
        """Changes that wait for the next start."""
        return self.sections.get(PENDING)

    @property
    def special(self) -> dict[str, Section]:
        """Sections `[special:NAME]` by NAME."""
        return {name.removeprefix(SPECIAL): part for name, part in self.sections.items() if name.startswith(SPECIAL)}

    @property
    def snapshots(self) -> dict[str, Section]:
        """Snapshots by name."""
        return {name: part for name, part in self.sections.items() if name != PENDING and not name.startswith(SPECIAL)}

    def copy(self) -> GuestConfig:
        """A copy that shares nothing."""
        return deepcopy(self)


def section_name(header: str) -> str:
    """The name under which a section is kept: `[pending]` is `[PENDING]`."""
    return PENDING if header.upper() == PENDING else header


def split_header(line: str) -> str | None:
    """What stands between the brackets of a section's first line; None for any other line."""
    found = _HEADER.fullmatch(line)
    return found[1] if found else None


def split_entry(line: str) -> tuple[str, str] | None:
    """Key and trimmed value of a line `key: value`; None for any other line."""
    found = _ENTRY.fullmatch(line)
    value = found[2].strip(_BLANKS) if found else ""
    return (_RENAMED.get(found[1], found[1]), value) if found and value else None


def parse_guest_config(text: str) -> GuestConfig:
    """Read a config file; what cannot be understood is kept as it is."""
    conf = GuestConfig()
    section: Section = conf
    for line in text.split("\n"):
        header = split_header(line)
        if header is not None:
            section = conf.sections.setdefault(section_name(header), Section())
        elif line.strip(_BLANKS):
            _add_line(section, line)
    return conf


def _add_line(section: Section, line: str) -> None:
    entry = split_entry(line)
    if line.startswith("#"):
        section.description += decode_description(line[1:]) + "\n"
    elif entry is None:
        section.strays.append(line)
    elif entry[0] == "description":
        section.description += decode_description(entry[1]) + "\n"
    else:
        section.options[entry[0]] = entry[1]


def format_guest_config(conf: GuestConfig) -> str:
    """Write a config as Proxmox does: keys in byte order, each section after an empty line."""
    parts = [_format_section(conf)]
    for name in sorted(conf.sections, key=_section_order):
        parts.append(f"\n[{name}]\n" + _format_section(conf.sections[name]))
    return "".join(parts)


def _section_order(name: str) -> tuple[bool, bool, str]:
    return name != PENDING, not name.startswith(SPECIAL), name


def _format_section(section: Section) -> str:
    return "".join(f"{line}\n" for line in _section_lines(section))


def _section_lines(section: Section) -> Iterator[str]:
    if section.description:
        for line in section.description.removesuffix("\n").split("\n"):
            yield "#" + encode_description(line)
    for key in sorted(section.options):
        yield f"{key}: {section.options[key]}"
    yield from section.strays


def decode_description(text: str) -> str:
    """Undo the %XX of one line; bytes that are no UTF-8 survive as surrogates."""
    return _ESCAPED.sub(lambda run: bytes.fromhex(run[0].replace("%", "")).decode("utf-8", "surrogateescape"), text)


def encode_description(line: str) -> str:
    """One line with control, non-ASCII (UTF-8), `:` and `%` as %XX."""
    return _TO_ESCAPE.sub(lambda char: _escape(char[0]), line)


def _escape(char: str) -> str:
    errors = "surrogateescape" if "\udc80" <= char <= "\udcff" else "replace"
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", errors))
