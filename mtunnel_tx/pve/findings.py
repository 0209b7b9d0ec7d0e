"""What a look at a move found before it began: what ends it, what is worth knowing, and what will be different."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import InvalidParameters, TunnelError
from mtunnel_tx.pve.drive import Drive, is_drive_key
from mtunnel_tx.pve.sizes import format_size

MOST_FINDINGS = 200
"""A config may have thousands of lines that are none; nobody reads that many."""
LONGEST_TEXT = 500
"""Characters; a line of a config may have a million."""
SUBJECTS = ("vm", "key", "disk", "net", "bridge", "storage", "cpu", "machine")


class Severity(Enum):
    """`refuse`: it cannot be moved so; `warn`: it can; `change`: it can, and will be different there."""

    REFUSE = "refuse"
    WARN = "warn"
    CHANGE = "change"


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveFinding:
    """`about`: one of SUBJECTS; `name`: which key, storage or bridge, empty for the VM itself; `text`: one line."""

    about: str
    name: str
    text: str
    severity: Severity

    @property
    def sentence(self) -> str:
        """The text, with the name in front where it does not say it."""
        return self.text if not self.name or self.name in self.text else f"{self.name}: {self.text}"

    def as_json(self) -> dict[str, str]:
        return {"about": self.about, "name": self.name, "text": self.text, "severity": self.severity.value}


def read_findings(entries: object) -> Iterator[MoveFinding]:
    """Findings as a peer sends them, cleaned. What is none is left out; an unknown severity is the worst."""
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping) and isinstance(entry.get("text"), str):
            word = entry.get("severity")
            severity = next((known for known in Severity if known.value == word), Severity.REFUSE)
            about, name, text = (clean(str(entry.get(field, ""))) for field in ("about", "name", "text"))
            yield MoveFinding(about=about, name=name, text=text, severity=severity)


class Findings:
    """Collects them, each once, in order, a bounded number."""

    def __init__(self) -> None:
        self._found: dict[MoveFinding, None] = {}
        self._too_many = 0

    def __iter__(self) -> Iterator[MoveFinding]:
        yield from self._found
        if self._too_many:
            text = f"{self._too_many} more are not listed"
            yield MoveFinding(about="vm", name="", text=text, severity=Severity.REFUSE)

    def add(self, about: str, name: str, text: str, severity: Severity = Severity.REFUSE) -> None:
        """One more."""
        text = shorten_text(clean(text.strip().replace("\n", "; ")))
        finding = MoveFinding(about=about, name=shorten_text(name), text=text, severity=severity)
        if len(self._found) < MOST_FINDINGS or finding in self._found:
            self._found[finding] = None
        else:
            self._too_many += 1

    def refused(self, key: str, error: TunnelError) -> None:
        """A Refusal (errors.py) that remembers."""
        self.add(subject_of(key), key, reason_of(error))

    def warned(self, key: str, error: TunnelError) -> None:
        """The same for what is no obstacle; what was refused already is not said twice."""
        if not any(key and found.name == key for found in self._found):
            self.add(subject_of(key), key, reason_of(error), Severity.WARN)


def shorten_text(text: str) -> str:
    """At most LONGEST_TEXT characters of it."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def subject_of(key: str) -> str:
    """What a key of a config is about."""
    stem = key.rstrip("0123456789")
    if stem in ("cpu", "machine", "net"):
        return stem
    return "disk" if is_drive_key(key) else "key" if key else "vm"


def reason_of(error: TunnelError) -> str:
    """An error as one line."""
    if isinstance(error, InvalidParameters):
        return "; ".join(reason.strip() for reason in error.errors.values())
    return error.line


def judge_room(
    storage: str, *, size_bytes: int, written_bytes: int, free_bytes: int | None, strict: bool
) -> Iterator[MoveFinding]:
    """Whether disks fit on a storage; nothing where its free space is not known.

    Args: size_bytes: all that the disks can become. written_bytes: what will be written of it now. strict: there must
    be room for all that they can become.
    """
    if free_bytes is None or max(size_bytes, written_bytes) <= free_bytes:
        return
    needed_bytes = max(size_bytes, written_bytes) if strict else written_bytes
    there = f"{format_size(free_bytes)} available"
    severity = Severity.REFUSE if needed_bytes > free_bytes else Severity.WARN
    if severity is Severity.REFUSE:
        text = f"storage '{storage}' has no space: {format_size(needed_bytes)} needed, {there}"
    else:
        text = f"storage '{storage}' may become full: the disks can grow to {format_size(size_bytes)}, {there}"
    yield MoveFinding(about="storage", name=storage, text=text, severity=severity)


def judge_leftover(storage: str, volid: str, vmid: int, coming: Collection[str], *, remakes: bool) -> MoveFinding:
    """What of a volume of the VMID that no VM has; a cloud-init drive is made of a config, and no loss.

    Args: coming: the bare names of volumes that will come. remakes: the target makes such a drive anew.
    """
    text = f"storage '{storage}' has '{volid}' of VM {vmid}, which no VM has"
    comes = volid.rpartition("/")[2] in coming
    if not Drive(volid).is_cloudinit or (comes and not remakes):
        text = f"{text}: remove it, or choose another VMID"
        return MoveFinding(about="disk", name=volid, text=text, severity=Severity.REFUSE)
    severity, end = (Severity.CHANGE, "it is made anew") if comes else (Severity.WARN, "it stays")
    return MoveFinding(about="disk", name=volid, text=f"{text}: {end}", severity=severity)
