"""`mtunnel`, as a source that does not let go: after `unlock` was answered it goes on giving orders on the same tunnel.

It writes every order with its answer, as JSON, into the file that `MATRIX_ANSWERS` names, before it says `quit`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtunnel_tx.cli.main import program
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.source.tunnel import TargetTunnel

ANSWERS = "MATRIX_ANSWERS"
NO_SOCKET = "/run/qemu-server/200.nowhere"
WAIT_S = 30.0
_DRIVE = {"interface": "scsi", "index": 5, "size": 1 << 20}
_IMPORT = {"volname": "vm-200-disk-5.raw", "format": "raw+size", "storage": "local", "snapshot": None}
ORDERS: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("disk", {"storage": "local", "drive": _DRIVE, "format": "raw"}),
    ("disk-import", {**_IMPORT, "with-snapshots": 0, "allow-rename": 1, "migration_snapshot": 0}),
    ("stop", {}),
    ("config", {"conf": "memory: 16\n", "firewall-config": None}),
    ("start", {"start_params": {}, "migrate_opts": {}}),
    ("resume", {}),
    ("nbdstop", {}),
    ("ticket", {"path": NO_SOCKET}),
    ("version", {}),
    ("fstrim", {}),
)
GRANTED = ("version", "fstrim")
"""What still works, besides `quit` and tickets for streams that exist."""


async def unlock_and_insist(tunnel: TargetTunnel) -> None:
    await _unlock(tunnel)
    answers = [(name, await _order(tunnel, name, fields)) for name, fields in ORDERS]
    part = Path(os.environ[ANSWERS] + ".part")
    part.write_text(json.dumps(answers))
    part.rename(os.environ[ANSWERS])


async def _order(tunnel: TargetTunnel, name: str, fields: Mapping[str, Any]) -> str:
    """Returns: the refusal; empty: it was granted."""
    try:
        await tunnel._commands.call(name, WAIT_S, fields)
    except TunnelError as error:
        return error.text or "no reason"
    return ""


_unlock = TargetTunnel.unlock

if __name__ == "__main__":
    TargetTunnel.unlock = unlock_and_insist  # type: ignore[method-assign]
    sys.exit(program())
