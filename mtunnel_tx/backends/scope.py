"""A scope of systemd's for each VM: without one it would end with the session in which somebody started it.

The scope is stopped after `mtunnel-guests.service`, so that this shuts a VM down before systemd ends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtunnel_tx.backends.child import run
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.ports.storage import Report

BOOTED = Path("/run/systemd/system")
"""There where systemd is PID 1: sd_booted(3)."""
_CALL_S = 10.0
_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_UNLIMITED = str((1 << 64) - 1)


async def join_scope(reactor: Any, environ: Mapping[str, str], vmid: int, pid: int, report: Report) -> None:
    """Move a VM's QEMU into a scope of its own, where systemd runs; what stands in the way is reported only."""
    if not BOOTED.is_dir():
        return
    try:
        await run(reactor, scope_call(vmid, pid), environ, _CALL_S)
    except TunnelError as error:
        reason = " ".join(error.text.split())
        report(f"VM {vmid} ends with the session or service that started it, as it has no scope of its own: {reason}")


def scope_call(vmid: int, pid: int) -> list[str]:
    """The call of systemd's manager. Source: org.freedesktop.systemd1(5), StartTransientUnit."""
    properties = {
        "Description": ("s", f"VM {vmid} (mtunnel)"),
        "PIDs": ("au", "1", str(pid)),
        "Slice": ("s", "mtunnel.slice"),
        "CollectMode": ("s", "inactive-or-failed"),
        "Before": ("as", "1", "mtunnel-guests.service"),
        "TasksMax": ("t", _UNLIMITED),
    }
    words = [word for name, value in properties.items() for word in (name, *value)]
    unit = [f"mtunnel-vm-{vmid}.scope", "replace", str(len(properties))]
    method = ["StartTransientUnit", "ssa(sv)a(sa(sv))"]
    return ["busctl", "--quiet", "call", *_MANAGER, *method, *unit, *words, "0"]
