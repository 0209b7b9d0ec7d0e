"""What tunnels of different kinds of guests do differently, as one value for each kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from mtunnel_tx.pve.findings import Findings
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestlayout import GuestLayout
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.tunnel.command import Command
from mtunnel_tx.tunnel.services import Services
from mtunnel_tx.wire.checkrequest import CheckCall


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestKind:
    """One kind of guest that tunnels can receive.

    layout: its words, folders and names. commands: what its source can ask for, by name. read_config: reads the config
    that a source sends, as text for a VMID; returns it and what was dropped; raises TunnelError. check: looks at a
    guest that would come. watch: looks out for the moment when the whole state of a running one is here, and writes it
    down.
    """

    layout: GuestLayout
    commands: Mapping[str, Command]
    read_config: Callable[[str, int], tuple[GuestConfig, list[str]]]
    check: Callable[[Services, Rights, CheckCall, Findings], Awaitable[dict[str, Any]]]
    watch: Callable[[Any], Coroutine[Any, Any, None]]
