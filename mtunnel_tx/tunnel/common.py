"""Commands about the tunnel itself: version, bwlimit, ticket, unlock, quit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.errors import TunnelError, WrongState
from mtunnel_tx.pve.bandwidth import effective_limit
from mtunnel_tx.tunnel.claim import marked
from mtunnel_tx.tunnel.ending import announce_rollback, roll_back
from mtunnel_tx.tunnel.tunnel import Guest, State
from mtunnel_tx.wire.args import BandwidthArgs, NoArgs, QuitArgs, TicketArgs
from mtunnel_tx.wire.socketkinds import COMMANDS
from mtunnel_tx.wire.ticket import make_ticket, normalise

log = Logger()
API, AGE = 2, 0
Result = Mapping[str, Any]
DONE: Result = {}


async def version(_guest: Guest, _args: NoArgs) -> Result:
    """Say which protocol this is."""
    return {"api": API, "age": AGE}


async def bwlimit(guest: Guest, args: BandwidthArgs) -> Result:
    """Tell the bandwidth limit that holds for some storages, in KiB/s; null: none."""
    storage, tunnel = guest.tunnel.services.storage, guest.tunnel
    limit = effective_limit(
        storage.config(), storage.datacenter_bwlimit(), tunnel.rights, args.storages, args.operation, args.bwlimit
    )
    return {"bwlimit": limit}


async def ticket(guest: Guest, args: TicketArgs) -> Result:
    """Sign a ticket for a socket of this tunnel; the command socket is not one."""
    tunnel = guest.tunnel
    found = tunnel.sockets.find("/" + normalise(args.path))
    if found is None or found.kind is COMMANDS:
        raise TunnelError(f"Not allowed to generate ticket for unknown socket '{args.path}'")
    now = tunnel.services.wall()
    return {"ticket": make_ticket(tunnel.services.ticket_key, tunnel.token, args.path, now)}


async def unlock(guest: Guest, _args: NoArgs) -> Result:
    """Give the VM to this node: everything on disk first, then the mark, then the lock goes."""
    tunnel, conf = guest.tunnel, guest.conf
    if conf.lock is None:
        raise TunnelError("no lock found trying to remove any lock")
    await tunnel.services.storage.sync(tunnel.own.volumes)
    await tunnel.ledger.write("handed_over")
    await tunnel.services.guests.write(tunnel.vmid, marked(conf, None))
    await tunnel.ledger.note("unlocked")
    return DONE


async def leave(guest: Guest, args: QuitArgs) -> Result:
    """`quit`: undo everything if asked to, then exit mode."""
    tunnel = guest.tunnel
    try:
        await (_clean_up(guest) if args.cleanup else _keep(guest))
    finally:
        tunnel.state = State.LEAVING
        tunnel.task.line("switching to exit-mode, waiting for client to disconnect")
    return DONE


async def _clean_up(guest: Guest) -> None:
    owed = guest.tunnel.ledger.owed
    if owed.is_given_up:
        why = "already unlocked" if owed.handed_over else "running here"
        raise WrongState(f"refusing cleanup: VM {owed.vmid} is {why}")
    await announce_rollback(guest.tunnel.claim)
    await guest.tunnel.end_children()
    await roll_back(guest.tunnel.claim)


async def _keep(guest: Guest) -> None:
    tunnel = guest.tunnel
    if tunnel.disk_import is not None and not tunnel.disk_import.over:
        await tunnel.disk_import.cancel()
    if not tunnel.ledger.owed.handed_over:
        log.warn("VM {vmid} is left locked and as it is: its source quit without cleanup", vmid=tunnel.vmid)
    await tunnel.ledger.discharge()
