"""What a look at both hosts has found, as one value: for people, and as JSON (operations.md, "Before a move")."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mtunnel_tx.pve.findings import MoveFinding, Severity
from mtunnel_tx.source.amounts import format_amount, format_time
from mtunnel_tx.source.inventory import SourceDisk

KIB = 1024
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlace:
    """What would become of a disk; None: not known. `stream` None: it is mirrored, or not known."""

    storage: str
    format: str | None = None
    stream: str | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskReport:
    """One disk. `seconds`: how long it will take at the limit that was asked for; None: there is none."""

    disk: SourceDisk
    destination: DiskPlace | None
    seconds: float | None

    def as_json(self) -> dict[str, Any]:
        there = self.destination
        return {
            "key": self.disk.label,
            "keys": list(self.disk.keys),
            "volume": str(self.disk.volid),
            "size": self.disk.size_bytes,
            "allocated": self.disk.data_bytes,
            "mirrored": self.disk.mirrored,
            "format": self.disk.format,
            "target_storage": there and there.storage,
            "target_format": there and there.format,
            "stream": there and there.stream,
            "free": there and there.free_bytes,
            "seconds": self.seconds,
        }

    def cells(self) -> tuple[str, ...]:
        """For a table; see `Report.table`."""
        there = self.destination
        shown = [
            self.disk.label,
            format_amount(self.disk.size_bytes),
            format_amount(self.disk.data_bytes),
            self.disk.format,
            there.storage if there else UNKNOWN,
            (there and there.format) or UNKNOWN,
            UNKNOWN if there is None or there.free_bytes is None else format_amount(there.free_bytes),
            UNKNOWN if self.seconds is None else format_time(self.seconds),
        ]
        return tuple(shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class SidedFinding:
    """A finding, and who has it: `source` or `target`."""

    side: str
    finding: MoveFinding

    @property
    def sentence(self) -> str:
        """For people."""
        return f"target: {self.finding.sentence}" if self.side == "target" else self.finding.text

    def as_json(self) -> dict[str, str]:
        return {"side": self.side, **self.finding.as_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`nets`: key of each network card to its bridge here and there. `dropped`: keys that are left out on request.

    `unknown`: what the target does not tell, a sentence each.
    """

    vmid: int
    target: Mapping[str, Any]
    online: bool
    delete: bool
    disks: tuple[DiskReport, ...] = ()
    nets: Mapping[str, tuple[str | None, str | None]]
    dropped: tuple[str, ...] = ()
    findings: tuple[SidedFinding, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def obstacles(self) -> tuple[str, ...]:
        """What ends the move, one sentence each, each once."""
        refused = (found.sentence for found in self.findings if found.finding.severity is Severity.REFUSE)
        return tuple(dict.fromkeys(refused))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What does not."""
        told = (found.sentence for found in self.findings if found.finding.severity is not Severity.REFUSE)
        return tuple(dict.fromkeys(told))

    @property
    def warnings(self) -> frozenset[str]:
        """Those of the remarks that tell more than what will be different there."""
        return frozenset(found.sentence for found in self.findings if found.finding.severity is Severity.WARN)

    def as_json(self) -> dict[str, Any]:
        return {
            "success": not self.obstacles,
            "vmid": self.vmid,
            "target": dict(self.target),
            "online": self.online,
            "delete": self.delete,
            "disks": [disk.as_json() for disk in self.disks],
            "nets": [{"key": key, "bridge": here, "target_bridge": there} for key, (here, there) in self.nets.items()],
            "dropped": list(self.dropped),
            "findings": [found.as_json() for found in self.findings],
            "unknown": list(self.unknown),
        }

    def table(self) -> list[tuple[str, ...]]:
        """The disks; empty where there are none."""
        if not self.disks:
            return []
        heading = ("DISK", "SIZE", "ALLOCATED", "FORMAT", "STORAGE THERE", "FORMAT THERE", "FREE THERE", "TIME")
        return [heading, *(disk.cells() for disk in self.disks)]

    def lines(self) -> Iterator[str]:
        """Everything but the disks and the obstacles, for people."""
        for key, (here, there) in self.nets.items():
            yield f"{key}: bridge {here} -> {there}" if here else f"{key}: no bridge"
        yield from (f"{key}: is left out (--drop)" for key in self.dropped)
        yield from self.remarks
        yield from (f"not known: {text}" for text in self.unknown)


def estimate_s(disk: SourceDisk, limit_kib_s: int | None) -> float | None:
    """How long a disk takes at a limit in KiB/s; None: without one nobody knows."""
    if not limit_kib_s:
        return None
    sent_bytes = disk.data_bytes if disk.mirrored or disk.sparse_bytes else disk.stream_bytes
    return sent_bytes / (limit_kib_s * KIB)
