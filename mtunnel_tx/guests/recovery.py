"""What a command left behind: undone, or finished where that is the only way to something whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

from mtunnel_tx.errors import NotFound
from mtunnel_tx.guests.plainhost import LOCK_S, PlainHost
from mtunnel_tx.guests.removalsteps import DESTROY, finish_destruction
from mtunnel_tx.guests.snapshotsteps import (
    REMOVE,
    ROLL_BACK,
    TAKE,
    finish_removal,
    finish_rollback,
    undo_taking,
)
from mtunnel_tx.guests.volumes import free_unnamed
from mtunnel_tx.ports.changes import Change
from mtunnel_tx.pve.guestconf import GuestConfig

CREATE_MARK = "create"
Recovery = Callable[[PlainHost, Change], Awaitable[None]]


async def recover(host: PlainHost, change: Change) -> None:
    """End what a command began, and forget it. Called with the VM's change lock held. Raises: TunnelError."""
    await host.changes.end_children(change.owner)
    if change.marked or change.action not in _OF_MARKED:
        await _OF_MARKED.get(change.action, undo)(host, change)
    await host.changes.remove(change.vmid)


async def undo(host: PlainHost, change: Change) -> None:
    """Remove what the command made, unless it came to its end and a config names it."""
    async with host.guests.locked(change.vmid, LOCK_S):
        with suppress(NotFound):
            if is_claimed(host.guests.read(change.vmid), change.claim):
                await host.guests.remove(change.vmid)
    await free_unnamed(host, change.volumes)
    for name in change.files:
        if not _is_named(host, name):
            Path(name).unlink(missing_ok=True)


def is_claimed(conf: GuestConfig, claim: str) -> bool:
    """Whether a config is the unfinished one that a change made."""
    return bool(claim) and conf.lock == CREATE_MARK and conf.options.get("vmgenid") == claim


def _is_named(host: PlainHost, file: str) -> bool:
    """Whether a config names the ISO image that has this file."""
    folders = {entry.id: entry.folder("iso") for entry in host.storage.config().values()}
    volids = [f"{name}:iso/{Path(file).name}" for name, folder in folders.items() if folder == str(Path(file).parent)]
    return any(host.guests.naming(volid) for volid in volids)


async def _finish_destruction(host: PlainHost, change: Change) -> None:
    await finish_destruction(host, change)


_OF_MARKED: Mapping[str, Recovery] = {
    DESTROY: _finish_destruction,
    TAKE: undo_taking,
    REMOVE: finish_removal,
    ROLL_BACK: finish_rollback,
}
"""What begins with a mark in the config: before that, there is nothing to undo, and a mark is somebody else's."""
