"""The lock in a VM's config while it is on its way, so that nobody starts or changes it; and the mark afterwards."""

from __future__ import annotations

from mtunnel_tx.errors import NotFound, WrongState
from mtunnel_tx.ports.guests import Guests
from mtunnel_tx.pve.guestconf import GuestConfig

LOCK = "migrate"


async def lock_config(guests: Guests, vmid: int) -> None:
    """Write `lock: migrate`; the caller holds the config's flock."""
    conf = guests.read(vmid)
    conf.options["lock"] = LOCK
    await guests.write(vmid, conf)


def check_unchanged(guests: Guests, vmid: int, expected: GuestConfig) -> None:
    """Raises: WrongState: the config is not what was looked at."""
    if guests.read(vmid) != expected:
        raise WrongState(f"the config of VM {vmid} was changed meanwhile")


def find_locked(guests: Guests, vmid: int) -> GuestConfig | None:
    """The config without our lock; None: it is gone, or somebody else has changed the lock."""
    try:
        conf = guests.read(vmid)
    except NotFound:
        return None
    return conf if conf.options.pop("lock", None) == LOCK else None


async def unlock_config(guests: Guests, vmid: int) -> None:
    """Take our lock off, where it is ours; the caller holds the config's flock."""
    conf = find_locked(guests, vmid)
    if conf is not None:
        await guests.write(vmid, conf)
