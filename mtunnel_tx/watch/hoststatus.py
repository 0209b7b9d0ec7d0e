"""What a running daemon says about itself, as one value: for `mtunnel status`, and for the status page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mtunnel_tx.ports.tunnels import TunnelStatus
from mtunnel_tx.watch.move import MoveState
from mtunnel_tx.watch.shape import move_json


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of a limit is used now, and its key's value."""

    used: int
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatus:
    """One look at the daemon.

    listening: `HOST:PORT` or paths. workers: pid, connections and busy ones of each. relay: what runs the streams.
    survives_restart: tunnels are left to the next daemon when this one ends. moves: those that come and go, and those
    that ended lately. held: why each VM waits for `mtunnel settle`. limits: by the names of their keys, without
    `limits.`.
    """

    version: str
    pid: int
    node: str
    listening: tuple[str, ...]
    workers: tuple[Mapping[str, int], ...]
    relay: str
    is_draining: bool
    survives_restart: bool = False
    tunnels: tuple[TunnelStatus, ...] = ()
    moves: tuple[MoveState, ...] = ()
    held: Mapping[int, str] = field(default_factory=dict)
    limits: Mapping[str, Usage] = field(default_factory=dict)


def status_json(status: HostStatus) -> dict[str, Any]:
    """The daemon's answer to `mtunnel status --json` (docs/watching.md)."""
    return {
        "version": status.version,
        "pid": status.pid,
        "node": status.node,
        "listening": list(status.listening),
        "workers": [dict(worker) for worker in status.workers],
        "relay": status.relay,
        "draining": status.is_draining,
        "survives_restart": status.survives_restart,
        "tunnels": [asdict(tunnel) for tunnel in status.tunnels],
        "moves": [move_json(move) for move in status.moves],
        "held": {str(vmid): reason for vmid, reason in sorted(status.held.items())},
        "limits": {name: asdict(usage) for name, usage in status.limits.items()},
    }
