"""The tables that `list` and `status` print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtunnel_tx.pvesm.driver import ListedVolume, StorageUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageStatus:
    """One line of `status`. `state`: `active`, `inactive` or `disabled`; `usage`: 0 where it is not known."""

    id: str
    type: str
    state: str
    usage: StorageUsage


def format_list(volumes: Sequence[ListedVolume]) -> str:
    """The table of `list`, without a final line feed: guests' volumes first, then the others by their format."""
    width = max((len(listed.volid) for listed in volumes), default=0)
    digits = max((len(str(listed.size_bytes)) for listed in volumes), default=1)
    others = sorted((listed for listed in volumes if listed.vmid is None), key=lambda listed: listed.format)
    rows = [
        (listed.volid, listed.format, listed.content, listed.size_bytes, listed.vmid)
        for listed in [*(listed for listed in volumes if listed.vmid is not None), *others]
    ]
    return "\n".join(
        f"{volid:<{width}} {format:<7} {content:<9} {size:>{digits}}" + (f" {vmid}" if vmid is not None else "")
        for volid, format, content, size, vmid in [("Volid", "Format", "Type", "Size", "VMID"), *rows]
    )


def format_status(storages: Sequence[StorageStatus]) -> str:
    """The table of `status`, without a final line feed."""
    width = max([len(storage.id) for storage in storages] + [len("Name")])
    lines = [f"{'Name':<{width}} {'Type':>8} {'Status':>10} {'Total':>15} {'Used':>15} {'Available':>15} {'%':>8}"]
    return "\n".join([*lines, *(_row(storage, width) for storage in storages)])


def _row(storage: StorageStatus, width: int) -> str:
    usage = storage.usage
    kib = " ".join(f"{size // 1024:>15}" for size in (usage.total_bytes, usage.used_bytes, usage.free_bytes))
    share = f"{100 * usage.used_bytes / usage.total_bytes:.2f}%" if usage.total_bytes else "0.00%"
    if storage.state == "disabled":
        share = "N/A"
    return f"{storage.id:<{width}} {storage.type:>8} {storage.state:>10} {kib} {share:>8}"
