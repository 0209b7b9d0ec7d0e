"""Commands that every guest kind has: version, bwlimit, ticket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.bandwidth import effective_limit
from mtunnel_tx.tunnel.tunnel import Guest
from mtunnel_tx.wire.args import BandwidthArgs, NoArgs, TicketArgs
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
