"""Joins the two QEMUs of a VM in two parts again, as docs/states.md has people do it."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

from tests.matrix.cell import HERE, THERE, Cell, Side
from tests.patience import patience_s, wait_for

BROKEN_OFF = "postcopy-paused"


def join(cell: Cell) -> list[str]:
    """`migrate-recover` there, `migrate` here; then each side is settled. Returns: what the orders failed with."""
    meeting = cell.folder / "again"
    _order(cell.there, THERE, "migrate-recover", {"uri": f"unix:{meeting}"})
    wait_for("the socket where they meet", meeting.exists)
    _order(cell.here, HERE, "migrate", {"uri": f"unix:{meeting}", "resume": True})
    wait_for("all of the memory", lambda: find_state(cell) == ("completed", "completed"))
    meeting.unlink(missing_ok=True)
    orders = ((cell.here, str(HERE), "--there"), (cell.there, str(THERE), "--resume"))
    done = [side.run("mtunnel_tx.cli", "settle", *words, check=False) for side, *words in orders]
    return [each.stderr for each in done if each.returncode]


def find_state(cell: Cell) -> tuple[str, ...]:
    """What `query-migrate` says at both."""
    spies = (cell.here.spy(), cell.there.spy())
    return tuple(str(spy.migration().get("status")) if spy is not None else "off" for spy in spies)


def _order(side: Side, vmid: int, command: str, arguments: Mapping[str, Any]) -> None:
    """By a new connection to QEMU's own monitor."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(patience_s())
        sock.connect(str(side.runtime / f"{vmid}.qmp"))
        with sock.makefile("rwb") as lines:
            for order in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": dict(arguments)}):
                lines.write(json.dumps(order).encode() + b"\n")
                lines.flush()
                _await_answer(lines)


def _await_answer(lines: Any) -> None:
    """Past the greeting and events. Raises: AssertionError: QEMU refuses."""
    while "return" not in (message := json.loads(lines.readline())):
        assert "error" not in message, message
