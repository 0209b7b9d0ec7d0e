"""The firewall file of a guest, in the form in which Proxmox writes it (protocol.md section 7.1)."""

from __future__ import annotations

import re

from mtunnel_tx.checks import clean, shorten

# Nothing in it may match the same blanks in two ways: a line of them would take for ever.
_HEADER = re.compile(r"\[([^\]]*)\][^\S\n]*(#.*)?")
_KIND = re.compile(r"[A-Za-z]+")
_ORDER = ("OPTIONS", "ALIASES", "IPSET", "RULES")

Heading = tuple[str, str]
"""Kind and name of a section; only an IPSET has a name."""


def format_firewall(text: str) -> tuple[str, list[str]]:
    """Put the sections into their order, each as header, empty line, its lines, empty line.

    What stands outside a known section is dropped; a section without lines, too, unless it is an IPSET.
    Returns: the canonical text, empty where nothing is left; and warnings for the task log.
    """
    sections, dropped = _read_sections(text)
    warnings = [f"line {number} stands outside a section, dropped" for number in dropped]
    warnings = [f"firewall config: {text}" for text in shorten(warnings)]
    kept = [heading for heading, lines in sections.items() if len(lines) > 1 or heading[0] == "IPSET"]
    kept.sort(key=lambda heading: (_ORDER.index(heading[0]), heading[1]))
    return "".join(_format_section(sections[heading]) for heading in kept), warnings


def _read_sections(text: str) -> tuple[dict[Heading, list[str]], list[int]]:
    """Each section's header line and lines; the numbers of lines outside."""
    sections: dict[Heading, list[str]] = {}
    dropped: list[int] = []
    heading: Heading | None = None
    for number, raw in enumerate(text.split("\n"), 1):
        line = clean(raw.replace("\t", " ").rstrip())
        found = _find_header(line)
        if found:
            heading = _read_heading(*found[:2])
        if heading is not None and found:
            sections.setdefault(heading, [_header_line(heading, found[2])])
        elif heading is not None and line:
            sections[heading].append(line)
        elif line:
            dropped.append(number)
    return sections, dropped


def _find_header(line: str) -> tuple[str, str, str | None] | None:
    """Kind, name and comment of a line that is a header, in whatever case."""
    found = _HEADER.fullmatch(line)
    kind, _, name = found[1].strip().replace("\t", " ").partition(" ") if found else ("", "", "")
    return (kind, name.strip(), found[2]) if found and _KIND.fullmatch(kind) else None


def _read_heading(kind: str, name: str) -> Heading | None:
    kind, name = kind.upper(), name.lower()
    return (kind, name) if kind in _ORDER and bool(name) == (kind == "IPSET") else None


def _header_line(heading: Heading, comment: str | None) -> str:
    header = f"[{' '.join(filter(None, heading))}]"
    return f"{header} {comment}" if comment and heading[0] == "IPSET" else header


def _format_section(lines: list[str]) -> str:
    header, *rest = lines
    return "\n".join([header, "", *rest, "", ""])
