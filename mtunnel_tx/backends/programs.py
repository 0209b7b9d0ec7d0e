"""Processes known by more than their number: numbers are used again, and after a reboot from the start."""

from __future__ import annotations

import os
from pathlib import Path

from mtunnel_tx.ports.programs import Program

_PROC = Path("/proc")
_ENDED = frozenset("ZX")


def find_program(pid: int) -> Program | None:
    """The process that has this number now; None: there is none."""
    started = start_ticks(pid)
    return None if started is None else Program(boot=boot_id(), pid=pid, started=started)


class HostPrograms:
    """ports.Programs."""

    def this(self) -> Program:
        """See ports.Programs."""
        pid = os.getpid()
        return Program(boot=boot_id(), pid=pid, started=start_ticks(pid) or 0)

    def is_alive(self, program: Program) -> bool:
        """See ports.Programs."""
        state, started = _look(program.pid)
        return program.boot == boot_id() and started == program.started and state not in _ENDED


def boot_id() -> str:
    """Another one after each reboot."""
    return (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()


def start_ticks(pid: int) -> int | None:
    """When a process was started, in clock ticks since the boot; None: there is none."""
    return _look(pid)[1]


def _look(pid: int) -> tuple[str, int | None]:
    """Its state, one letter, and its start."""
    try:
        fields = (_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return "", None
    return fields[0].decode("ascii"), int(fields[19])
