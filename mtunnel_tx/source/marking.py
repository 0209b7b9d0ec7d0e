"""The source's own config while its VM is on the way: marked, so that nobody starts or changes it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mtunnel_tx.errors import NotFound, WrongState
from mtunnel_tx.ports.guests import Guests
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.waiting import finish

MARK = "migrate"
LOCK_S = 10.0


@dataclass(slots=True)
class Mark:
    """The lock in a config; `stays`: nobody may start the VM until somebody has looked at the target."""

    stays: bool = False


@asynccontextmanager
async def marked(guests: Guests, vmid: int, expected: GuestConfig) -> AsyncIterator[Mark]:
    """Hold `lock: migrate` in a config, until the end or, where `Mark.stays`, for good; a removed one stays removed.

    Args: expected: what was checked. Raises: WrongState: it is not that any more.
    """
    mark = Mark(stays=True)
    try:
        async with guests.locked(vmid, LOCK_S):
            conf = guests.read(vmid)
            if conf != expected:
                raise WrongState(f"the config of VM {vmid} was changed meanwhile")
            conf.options["lock"] = MARK
            mark.stays = False
            await finish(guests.write(vmid, conf))
        yield mark
    finally:
        if not mark.stays:
            await finish(_unmark(guests, vmid))


async def _unmark(guests: Guests, vmid: int) -> None:
    async with guests.locked(vmid, LOCK_S):
        try:
            conf = guests.read(vmid)
        except NotFound:
            return
        if conf.lock == MARK:
            del conf.options["lock"]
            await guests.write(vmid, conf)


def check_marked(guests: Guests, vmid: int) -> None:
    """Raises: WrongState: somebody took the mark away."""
    if guests.read(vmid).lock != MARK:
        raise WrongState(f"the lock of VM {vmid} was changed meanwhile")
