"""How fast a VM may go: both sides' limits, the order's, and the VM's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.ports.storage import Storage
from mtunnel_tx.pve.bandwidth import effective_limit
from mtunnel_tx.pve.rights import Rights
from mtunnel_tx.pve.users import ROOT, UserConfig
from mtunnel_tx.source.links import Json
from mtunnel_tx.source.order import Order, Plan
from mtunnel_tx.source.tunnel import TargetTunnel

KIB = 1024
DOWNTIME_S = 0.1
"""Where the VM's config has no `migrate_downtime`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Limits in bytes per second, 0: none; `disks` by the drive's key.

    `downtime_ms`: how long the VM may stand still for the rest of its memory.
    """

    disks: Mapping[str, int]
    memory_bytes_s: int
    downtime_ms: int


async def agree(order: Order, plan: Plan, storage: Storage, tunnel: TargetTunnel) -> Pace:
    """Ask the target about each volume, and hold it against our own limits. Raises: BackendFailed."""
    disks: dict[str, int] = {}
    for disk in plan.disks:
        theirs = read_limit(
            await tunnel.bandwidth_limit(order.storages.target(disk.volid.storage), order.bwlimit_kib_s)
        )
        disks[disk.label] = smaller_limit(_own_limit(order, storage, disk.volid.storage), theirs) * KIB
    options = plan.conf.options
    own_kib_s = smaller_limit(_own_limit(order, storage), read_limit(options.get("migrate_speed")) * KIB)
    downtime_s = float(options.get("migrate_downtime", DOWNTIME_S))
    return Pace(disks=disks, memory_bytes_s=own_kib_s * KIB, downtime_ms=max(1, round(downtime_s * 1000)))


def _own_limit(order: Order, storage: Storage, name: str | None = None) -> int:
    """Our own files' limit in KiB/s, for a storage or for memory; whoever runs a migration may override it."""
    if order.bwlimit_kib_s is not None:
        return order.bwlimit_kib_s
    nobody = Rights(UserConfig(), ROOT)
    return read_limit(
        effective_limit(storage.config(), storage.datacenter_bwlimit(), nobody, [name], "migration", None)
    )


def read_limit(value: Json) -> int:
    """A limit as null, number, or text. Returns: 0: none. Raises: BackendFailed."""
    try:
        return max(0, int(float(value or 0)))
    except (TypeError, ValueError, OverflowError) as error:
        raise BackendFailed("the bandwidth limit is no number") from error


def smaller_limit(first: int, second: int) -> int:
    """The smaller of two limits, where 0 is none."""
    return min(first, second) if first and second else first or second
