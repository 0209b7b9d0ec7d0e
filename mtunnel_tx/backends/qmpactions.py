"""What both hypervisors ask of a running QEMU through its monitor: NBD exports, and to let the guest run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mtunnel_tx.backends.qmp import Monitor, QmpCommandFailed
from mtunnel_tx.errors import WrongState

EXPORT_S = 30.0
RESUME_S = 20.0
_RESETTING = frozenset({"shutdown", "guest-panicked", "internal-error"})
_NO_SERVER = "NBD server not running"


async def expect_state(monitor: Monitor, *, postcopy: bool) -> None:
    """Prepare a QEMU that waits for the state of another host. Raises: QmpCommandFailed: no post-copy here."""
    wanted = {"events": True} | ({"postcopy-ram": True} if postcopy else {})
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    await monitor.call("migrate-set-capabilities", {"capabilities": capabilities})


async def export_nodes(monitor: Monitor, path: Path, nodes: Mapping[str, str]) -> None:
    """Start an NBD server that exports each drive, writable, under the name `drive-KEY`.

    Args: path: the UNIX socket to listen on. nodes: drive key to block node.
    """
    address: Mapping[str, Any] = {"type": "unix", "data": {"path": str(path)}}
    await monitor.call("nbd-server-start", {"addr": address}, wait_s=EXPORT_S)
    for key, node in nodes.items():
        name = f"drive-{key}"
        export = {"type": "nbd", "id": name, "node-name": node, "name": name, "writable": True}
        await monitor.call("block-export-add", export, wait_s=EXPORT_S)


async def stop_exports(monitor: Monitor) -> None:
    """End the NBD server; success where none runs."""
    try:
        await monitor.call("nbd-server-stop", wait_s=EXPORT_S)
    except QmpCommandFailed as error:
        if _NO_SERVER not in error.reason:
            raise


async def wake(monitor: Monitor, status: str) -> None:
    """Let the guest run.

    Args: status: QEMU's `query-status`. Raises: WrongState: QEMU refused it, so it does not run; TimedOut, MonitorLost:
    it may run, or will.
    """
    if status == "running":
        return
    if status in _RESETTING:
        await monitor.call("system_reset", wait_s=RESUME_S)
    with suppress(QmpCommandFailed):
        if status == "suspended":
            await monitor.call("system_wakeup", wait_s=RESUME_S)
            return
    try:
        await monitor.call("cont", wait_s=RESUME_S)
    except QmpCommandFailed as error:
        raise WrongState(error.text) from error
