"""What every tunnel of this daemon shares: the ports, and the bounds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtunnel_tx.ports.access import Access
from mtunnel_tx.ports.children import ChildTurn
from mtunnel_tx.ports.clock import Clock, Threads, WallClock
from mtunnel_tx.ports.guests import Guests
from mtunnel_tx.ports.holding import Store
from mtunnel_tx.ports.journal import Journal, Tasks
from mtunnel_tx.ports.lines import Listen, Resume
from mtunnel_tx.ports.machines import Hypervisor
from mtunnel_tx.ports.notes import NoNotes, Notes
from mtunnel_tx.ports.storage import Storage
from mtunnel_tx.tunnel import audit
from mtunnel_tx.tunnel.observers import Observers


async def forget(_vmid: int, _token: str, _upid: str) -> str | None:
    """For hosts without a history."""
    return None


async def record_nothing(_vmid: int, _token: str, _upid: str, _outcome: str) -> None:
    """For hosts without a history."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelLimits:
    """Bounds of the control path; seconds, counts, and bytes."""

    connect_s: float = 300.0
    claim_lock_s: float = 5.0
    command_lock_s: float = 10.0
    ready_s: float = 5.0
    query_s: float = 5.0
    exit_s: float = 60.0
    unlocked_s: float = 86400.0
    park_s: float = 600.0
    tunnels: int = 64
    tunnels_per_token: int = 16
    streams_per_tunnel: int = 64
    config_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The ports, joined by the composition root.

    `runtime_dir` holds the socket files of tunnels, `machine_dir` those of QEMU; `ticket_key` is 32 bytes;
    `remember(vmid, token, upid)`: what became of a VM, where an earlier daemon ended its tunnel; None: nobody knows.
    `record(vmid, token, upid, outcome)` has that found from now on, also after a crash.
    `notes`, `store` and `resume` let tunnels go on in the next daemon; without a store they end with this one.
    `random_bytes(n)` fills MAC addresses; `bridge_exists(name)` looks at this host's network; `observers` are told what
    happens.
    """

    access: Access
    guests: Guests
    storage: Storage
    hypervisor: Hypervisor
    journal: Journal
    tasks: Tasks
    child_turn: ChildTurn
    clock: Clock
    wall: WallClock
    threads: Threads
    listen: Listen
    bridge_exists: Callable[[str], bool]
    random_bytes: Callable[[int], bytes]
    ticket_key: bytes
    runtime_dir: Path
    machine_dir: Path
    limits: TunnelLimits
    remember: Callable[[int, str, str], Awaitable[str | None]] = forget
    record: Callable[[int, str, str, str], Coroutine[Any, Any, None]] = record_nothing
    notes: Notes = field(default_factory=NoNotes)
    store: Store | None = None
    resume: Resume | None = None
    observers: Observers = field(default_factory=lambda: Observers(audit.observe))
