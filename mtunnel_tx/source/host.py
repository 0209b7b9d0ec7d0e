"""This host, as a source sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mtunnel_tx.ports.guests import Guests
from mtunnel_tx.ports.journal import Journal
from mtunnel_tx.ports.programs import Programs
from mtunnel_tx.ports.storage import Report, Storage
from mtunnel_tx.source.links import LineListener, Machines, Reactor

LOCK_S = 10.0
"""How long to wait for the lock of a config."""


@dataclass(frozen=True, slots=True)
class LinesOnly:
    """A LineListener where nothing is sent: passes its lines on."""

    note: Report
    alarm: Report

    def say(self, text: str) -> None:
        """One line, clean."""
        self.note(text)

    def warn(self, text: str) -> None:
        """One line that somebody has to act on."""
        self.alarm(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceHost:
    """Files, storages and VMs of this host, and who is told what happens.

    `running`: whether a VM's QEMU is there. `machines`: None where running VMs cannot be sent. `marks_moves`: whether
    configs have room for the mark of a VM that was moved away; Proxmox's have none. `runtime_dir`: for sockets.
    `journal`: of VMs on their way out. `wall_s`: the time in seconds since the epoch.
    """

    reactor: Reactor
    guests: Guests
    storage: Storage
    running: Callable[[int], bool]
    machines: Machines | None
    marks_moves: bool
    runtime_dir: Path
    journal: Journal
    programs: Programs
    progress: LineListener
    wall_s: Callable[[], float]
