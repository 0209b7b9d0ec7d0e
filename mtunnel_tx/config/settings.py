"""Settings of the daemon and the commands: frozen, checked and complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.wire.socketkinds import NBD

LONGEST_SOCKET_PATH = 107
LONGEST_RUNTIME_DIR = LONGEST_SOCKET_PATH - len(f"/999999999{NBD.suffix}")
DEFAULT_PORT = 8016
PROFILES = ("standalone", "proxmox")
REACHES = ("loopback", "everywhere", "nowhere")


class LimitSet(Protocol):
    """A dataclass of some limits, each with a default."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Chosen = TypeVar("Chosen", bound=LimitSet)


class ConfigError(TunnelError):
    """The configuration cannot be used; the text names file, key and reason."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the certificate with its chain, and its private key.

    `named`: the keys that the configuration gave; files that it did not name may come and go (`find_tls`).
    """

    certificate: Path
    key: Path
    named: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True, slots=True)
class Commands:
    """Programs with their leading arguments, as argument vectors."""

    pvesm: tuple[str, ...]
    qm: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterNode:
    """Another node of the cluster; `fingerprint` is the SHA-256 of its certificate, `AA:BB:…`."""

    host: str
    port: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Forward:
    """Where requests go that are not for us: `api` a base URL, `nodes` the daemons of other nodes.

    `fingerprint`: of the certificate at `api`; None: our own one.
    """

    api: str | None
    nodes: Mapping[str, ClusterNode]
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The status page; `KEYS` explains each of it."""

    reach: str = "loopback"
    session_s: float = 28800
    sessions: int = 64
    streams: int = 16
    slow_s: float = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """Who is told what becomes of moves; `KEYS` explains each of it. command: empty: none."""

    command: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    parked_s: float = 60
    end_s: float = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one peer may use; `KEYS` explains each limit."""

    body_bytes: int = 1 << 20
    header_bytes: int = 32 << 10
    request_s: float = 30
    handshake_s: float = 20
    connections: int = 1024
    connections_unauthenticated_per_address: int = 32
    connections_per_token: int = 128
    tunnels: int = 64
    tunnels_per_token: int = 16
    streams_per_tunnel: int = 64
    children: int = 16
    children_per_token: int = 4
    children_per_tunnel: int = 2
    line_bytes: int = 4 << 20
    config_bytes: int = 1 << 20
    queued_lines: int = 64
    queued_bytes: int = 4 << 20
    frame_bytes: int = 64 << 20
    child_output_bytes: int = 1 << 20
    stall_s: float = 600
    dead_peer_s: float = 60
    ping_s: float = 25
    half_close_s: float = 60
    park_s: float = 600
    window_bytes: int = 16 << 20
    parked_bytes: int = 256 << 20
    windows_bytes: int = 2 << 30
    restart_s: float = 120
    connect_s: float = 300
    unlocked_s: float = 86400
    history_rows: int = 10_000
    history_days: float = 400

    def of(self, kind: type[Chosen]) -> Chosen:
        """The limits that one room wants: a dataclass of theirs, filled by the names of its fields."""
        known = {field.name for field in fields(self)}
        return kind(**{field.name: getattr(self, field.name) for field in fields(kind) if field.name in known})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. `file`: where they came from; None: only defaults are used."""

    file: Path | None
    node: str
    profile: str
    listen: tuple[str, ...]
    workers: int
    user: str
    pve_dir: Path
    state_dir: Path
    runtime_dir: Path
    machine_dir: Path
    lock_dir: Path
    tls: Tls
    commands: Commands
    forward: Forward
    page: Page
    notify: Notify
    limits: Limits
