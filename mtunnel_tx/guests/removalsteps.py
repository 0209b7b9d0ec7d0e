"""The rest of a destruction, which is finished after an interruption."""

from __future__ import annotations

from mtunnel_tx.guests.plainhost import LOCK_S, PlainHost
from mtunnel_tx.guests.volumes import free_unnamed
from mtunnel_tx.ports.changes import Change

DESTROY = "destroy"
DESTROYED = "destroyed"
"""Proxmox's mark in the config of a VM whose disks are being removed."""


async def finish_destruction(host: PlainHost, change: Change) -> list[str]:
    """Remove what is left of a VM whose destruction was begun. Returns: volumes that stay, since others name them."""
    async with host.guests.locked(change.vmid, LOCK_S):
        if host.has_config(change.vmid):
            if host.guests.read(change.vmid).lock != DESTROYED:
                return []
            await host.guests.remove(change.vmid)
            await host.guests.remove_firewall(change.vmid)
    return await free_unnamed(host, change.volumes)
