"""`status`: one line for each storage, sizes in KiB."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mtunnel_tx.config import Settings
from mtunnel_tx.pve.storagecfg import StorageEntry
from mtunnel_tx.pvesm.directory import activation_problem, read_entries
from mtunnel_tx.pvesm.output import warn


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageStatus:
    """How a storage is: `active`, `inactive` or `disabled`; sizes are 0 where they are not known."""

    id: str
    type: str
    state: str
    total_bytes: int = 0
    used_bytes: int = 0
    free_bytes: int = 0


def storage_status(
    settings: Settings, storage: str | None, kinds: Collection[str] = (), *, enabled: bool = False
) -> list[StorageStatus]:
    """The storages of this node, all or one, all or those that are enabled; sorted.

    Args: kinds: of content: only what is enabled and may hold one of them; empty: no matter what.
    """
    entries = read_entries(settings).values()
    wanted = [entry for entry in entries if storage in (None, entry.id) and entry.on_node(settings.node)]
    if enabled or kinds:
        wanted = [entry for entry in wanted if entry.enabled]
    return [_status(entry) for entry in sorted(wanted, key=_name) if not kinds or not entry.content.isdisjoint(kinds)]


def _name(entry: StorageEntry) -> str:
    return entry.id


def _status(entry: StorageEntry) -> StorageStatus:
    if not entry.enabled:
        return StorageStatus(id=entry.id, type=entry.type, state="disabled")
    problem = activation_problem(entry) if entry.type == "dir" else "type is not supported"
    if problem:
        warn(f"unable to activate storage '{entry.id}' - {problem}")
        return StorageStatus(id=entry.id, type=entry.type, state="inactive")
    usage = shutil.disk_usage(entry.path or "/")
    return StorageStatus(
        id=entry.id,
        type=entry.type,
        state="active",
        total_bytes=usage.total,
        used_bytes=usage.used,
        free_bytes=usage.free,
    )


def format_status(storages: Sequence[StorageStatus]) -> str:
    """The table of `status`, without a final line feed."""
    width = max([len(storage.id) for storage in storages] + [len("Name")])
    lines = [f"{'Name':<{width}} {'Type':>8} {'Status':>10} {'Total':>15} {'Used':>15} {'Available':>15} {'%':>8}"]
    return "\n".join([*lines, *(_row(storage, width) for storage in storages)])


def _row(storage: StorageStatus, width: int) -> str:
    sizes = (storage.total_bytes, storage.used_bytes, storage.free_bytes)
    kib = " ".join(f"{size // 1024:>15}" for size in sizes)
    share = f"{100 * storage.used_bytes / storage.total_bytes:.2f}%" if storage.total_bytes else "0.00%"
    if storage.state == "disabled":
        share = "N/A"
    return f"{storage.id:<{width}} {storage.type:>8} {storage.state:>10} {kib} {share:>8}"
