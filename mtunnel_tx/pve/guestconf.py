"""The config of a virtual machine: a text file of `key: value` lines with sections (formats.md section 5).

`parse_guest_config` takes any file and loses nothing; `read_sent_config` is for a config that a source sends, and
refuses what Proxmox refuses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field

from mtunnel_tx.checks import CONFIG_ID, CONFIG_KEY, CONTROL, FormatError, boolean, clean, shorten
from mtunnel_tx.errors import Refusal, TunnelError, at_once
from mtunnel_tx.pve.drive import DRIVE_KEYS
from mtunnel_tx.pve.guestformats import CHECKS, DROPPED_KEYS, check_value

PENDING = "PENDING"
SPECIAL = "special:"
_CLOUDINIT = SPECIAL + "cloudinit"
_FLEECING = SPECIAL + "fleecing"
_BLANKS = " \t\r\f\v"
_HEADER = re.compile(rf"\[([^\]]*)\][{_BLANKS}]*")
_ENTRY = re.compile(rf"({CONFIG_KEY}):(.+)", re.DOTALL)
_SNAPSHOT = re.compile(CONFIG_ID)
_ESCAPED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_TO_ESCAPE = re.compile(r"[^ -~]|[%:]")


@dataclass(frozen=True, slots=True)
class StrayLine:
    """A line that is neither a setting nor a comment, and its number in the file, from 1.

    Configs that differ in such numbers only are equal: stray lines are written behind the settings.
    """

    number: int = field(compare=False)
    text: str


@dataclass(slots=True)
class GuestSection:
    """One section: its keys, its description (lines that end in LF), and lines that are none of both."""

    options: dict[str, str] = field(default_factory=dict)
    description: str = ""
    strays: list[StrayLine] = field(default_factory=list)


@dataclass(slots=True)
class GuestConfig(GuestSection):
    """A whole config; `sections` maps what stands between the brackets to the section."""

    sections: dict[str, GuestSection] = field(default_factory=dict)

    @property
    def lock(self) -> str | None:
        """The `lock` mark."""
        return self.options.get("lock")

    @property
    def pending(self) -> GuestSection | None:
        """Changes that wait for the next start."""
        return self.sections.get(PENDING)

    @property
    def special(self) -> dict[str, GuestSection]:
        """Sections `[special:NAME]` by NAME."""
        return {name.removeprefix(SPECIAL): part for name, part in self.sections.items() if name.startswith(SPECIAL)}

    @property
    def snapshots(self) -> dict[str, GuestSection]:
        """Snapshots by name."""
        return {name: part for name, part in self.sections.items() if name != PENDING and not name.startswith(SPECIAL)}

    def copy(self) -> GuestConfig:
        """A copy that shares nothing."""
        return deepcopy(self)


def parse_guest_config(text: str) -> GuestConfig:
    """Read a config file. Unknown keys and sections stay; lines that are neither key nor comment are `strays`."""
    conf = GuestConfig()
    for header, lines in _split_sections(text):
        section = conf if header is None else conf.sections.setdefault(_section_name(header), GuestSection())
        _fill_section(section, lines)
    return conf


def _split_sections(text: str) -> Iterator[tuple[str | None, list[tuple[int, str]]]]:
    """Header and numbered lines of each section, the first without header; empty lines are skipped."""
    header: str | None = None
    lines: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        found = _HEADER.fullmatch(line)
        if found:
            yield header, lines
            header, lines = found[1], []
        elif line.strip(_BLANKS):
            lines.append((number, line))
    yield header, lines


def _section_name(header: str) -> str:
    return PENDING if header.upper() == PENDING else header


def _fill_section(section: GuestSection, lines: Iterable[tuple[int, str]]) -> None:
    description: list[str] = []
    for number, line in lines:
        entry = _split_entry(line)
        if line.startswith("#"):
            description.append(decode_description(line[1:]))
        elif entry is None:
            section.strays.append(StrayLine(number, line))
        elif entry[0] == "description":
            description.append(decode_description(entry[1]))
        else:
            section.options[entry[0]] = _normalise(*entry)
    section.description += "".join(f"{line}\n" for line in description)
    _rename_old(section.options)


def _split_entry(line: str) -> tuple[str, str] | None:
    """Key and trimmed value of `key: value`; a value of blanks alone is one blank (an empty boot order)."""
    found = _ENTRY.fullmatch(line)
    return (found[1], found[2].strip(_BLANKS) or " ") if found else None


def _normalise(key: str, value: str) -> str:
    try:
        return boolean(value) if CHECKS.get(key) is boolean else value
    except FormatError:
        return value


def _rename_old(options: dict[str, str]) -> None:
    """Keys of former versions take their names of today."""
    if "smp" in options:
        options.setdefault("sockets", options.pop("smp"))
    if "cdrom" in options:
        value = options.pop("cdrom")
        options.setdefault("ide2", value if "media=" in value else f"{value},media=cdrom")


def format_guest_config(conf: GuestConfig) -> str:
    """Write a config as Proxmox does: keys in byte order, each section after an empty line."""
    sections = (
        f"\n[{name}]\n{_format_section(conf.sections[name])}" for name in sorted(conf.sections, key=_section_order)
    )
    return _format_section(conf) + "".join(sections)


def _section_order(name: str) -> tuple[bool, bool, str]:
    return name != PENDING, not name.startswith(SPECIAL), name


def _format_section(section: GuestSection) -> str:
    return "".join(f"{line}\n" for line in _section_lines(section))


def _section_lines(section: GuestSection) -> Iterator[str]:
    if section.description:
        for line in section.description.removesuffix("\n").split("\n"):
            yield "#" + encode_description(line)
    for key in sorted(section.options):
        yield f"{key}: {section.options[key]}"
    yield from (stray.text for stray in section.strays)


def decode_description(text: str) -> str:
    """Undo the %XX of one line; bytes that are no UTF-8 survive as surrogates."""
    return _ESCAPED.sub(lambda run: bytes.fromhex(run[0].replace("%", "")).decode("utf-8", "surrogateescape"), text)


def encode_description(line: str) -> str:
    """One line with control, non-ASCII (UTF-8), `:` and `%` as %XX."""
    return _TO_ESCAPE.sub(lambda char: _escape(char[0]), line)


def _escape(char: str) -> str:
    errors = "surrogateescape" if "\udc80" <= char <= "\udcff" else "replace"
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", errors))


def read_sent_config(text: str, vmid: int, refused: Refusal = at_once) -> tuple[GuestConfig, list[str]]:
    """Read a config that a source sends (protocol.md section 7).

    Args: refused: takes each line that cannot be read; it is left out then.
    Returns: the config without snapshots, `parent`, `[PENDING]`, `lock`, `digest` and `[special:fleecing]`; and
        warnings for the task log.
    Raises: TunnelError: `vm 100 - unable to parse config: LINE`, `vm 100 - unable to parse value of 'X' - REASON`, ….
    """
    conf = GuestConfig()
    warnings: list[str] = []

    def refuse(key: str, error: FormatError) -> None:
        refused(key, TunnelError(f"vm {vmid} - {error}".removesuffix("\n")))

    for header, lines in _split_sections(text):
        try:
            section = conf if header is None else _new_section(conf, header)
        except FormatError as error:
            refuse("", error)
            continue
        warnings += _read_section(section, header, (line for _, line in lines), refuse)
    _drop_history(conf)
    return conf, [f"vm {vmid} - {warning}" for warning in shorten(warnings)]


def _new_section(conf: GuestConfig, header: str) -> GuestSection:
    name = _section_name(header)
    kind = "snapshot section"
    if name == PENDING:
        kind, header = "section", "pending"
    elif name.lower() in (_CLOUDINIT, _FLEECING):
        name = name.lower()
        kind, header = "special section", name.removeprefix(SPECIAL)
    elif not _SNAPSHOT.fullmatch(header):
        raise FormatError(f"skipping unknown section: '{clean(header)}'")
    if name in conf.sections:
        raise FormatError(f"duplicate {kind}: {header}")
    conf.sections[name] = GuestSection()
    return conf.sections[name]


def _read_section(
    section: GuestSection, header: str | None, lines: Iterable[str], refuse: Callable[[str, FormatError], None]
) -> Iterator[str]:
    """Fill a section. Yields: warnings."""
    description: list[str] = []
    for line in lines:
        if line.startswith("#"):
            description.append(decode_description(line[1:]))
            continue
        try:
            key, value = _sent_entry(line, header)
        except FormatError as error:
            refuse(_key_of(line), error)
            continue
        if key == "description":
            description.append(decode_description(value))
            continue
        if key in section.options:
            yield f"'{key}' is given twice, the last one counts"
        section.options[key] = value
    trimmed = "\n".join(description).rstrip()
    section.description = f"{trimmed}\n" if trimmed else ""
    _rename_old(section.options)


def _key_of(line: str) -> str:
    entry = _split_entry(line)
    return entry[0] if entry else ""


def _sent_entry(line: str, header: str | None) -> tuple[str, str]:
    entry = _split_entry(line)
    if entry is None or CONTROL.search(entry[1]):
        raise FormatError(f"unable to parse config: {clean(line)}")
    key, value = entry
    where = _section_name(header or "").lower()
    if key == "delete":
        if where != PENDING.lower():
            raise FormatError("property 'delete' is only allowed in [PENDING]")
        return entry
    if where == _CLOUDINIT or (where == _FLEECING and key == "fleecing-images"):
        return entry
    return key, _check_sent(key, value)


def _check_sent(key: str, value: str) -> str:
    """Check a value; of a drive that cannot be parsed Proxmox names no reason."""
    try:
        return check_value("ide2" if key == "cdrom" else "sockets" if key == "smp" else key, value)
    except FormatError as error:
        reason = "" if key in DRIVE_KEYS or key == "cdrom" else f" - {error}"
        raise FormatError(f"unable to parse value of '{key}'{reason}") from error


def _drop_history(conf: GuestConfig) -> None:
    conf.sections = {name: part for name, part in conf.sections.items() if name == _CLOUDINIT}
    for key in DROPPED_KEYS:
        conf.options.pop(key, None)
