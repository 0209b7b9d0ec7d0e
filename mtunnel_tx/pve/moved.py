"""The mark in the config of a VM that was moved away: its copy here must not run beside the one there.

The key `moved` is ours; Proxmox's own configs have no room for it. Its value is what people read:
`to HOST as VM 200 on 2026-10-01 12:00 UTC`.
"""

from __future__ import annotations

from datetime import UTC, datetime

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import WrongState
from mtunnel_tx.pve.guestconf import GuestConfig

KEY = "moved"


def mark_moved(conf: GuestConfig, *, host: str, vmid: int, at_s: float) -> GuestConfig:
    """The same config with the mark. Args: host, vmid: where it is now. at_s: since when, seconds since the epoch."""
    marked = conf.copy()
    marked.options[KEY] = f"to {clean(host)} as VM {vmid} on {datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M} UTC"
    return marked


def find_move(conf: GuestConfig) -> str | None:
    """Returns: `moved to HOST as VM N on DATE`; None: it is this host's."""
    return f"moved {clean(conf.options[KEY])}" if KEY in conf.options else None


def forget_move(conf: GuestConfig) -> GuestConfig:
    """The same config without the mark."""
    unmarked = conf.copy()
    unmarked.options.pop(KEY, None)
    return unmarked


def check_not_moved(vmid: int, conf: GuestConfig) -> None:
    """To be asked before a start or a change of its disks. Raises: WrongState: the VM lives on another host by now."""
    move = find_move(conf)
    if move is not None:
        raise WrongState(
            f"VM {vmid} was {move}; if it is gone there, 'mtunnel vm forget-move {vmid}' makes this copy the VM"
        )
