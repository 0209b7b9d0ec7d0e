"""The record of a tunnel that is over: one line, whose values are also fields of the system's journal."""

from __future__ import annotations

from twisted.logger import Logger

from mtunnel_tx.tunnel.ending import Ending
from mtunnel_tx.tunnel.tunnel import Tunnel

log = Logger()

FIELDS = ("vmid", "token", "address", "end", "verdict", "bytes_in", "bytes_out", "duration_s", "upid")
"""What a record has; never a secret."""


def record(tunnel: Tunnel, end: str, ending: Ending) -> None:
    """Say who moved what, and what became of it.

    Args: end: why it ended, as its task log says; empty after `quit`. ending: what was done about it.
    """
    bytes_in, bytes_out = tunnel.sockets.traffic()
    log.info(
        "tunnel of VM {vmid} is over: {verdict}, {end}; {token} from {address};"
        " {bytes_in} bytes in, {bytes_out} out, {duration_s} s; {upid}",
        vmid=tunnel.vmid,
        token=tunnel.token,
        address=tunnel.address,
        end=end or "quit",
        verdict=ending.outcome,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        duration_s=round(tunnel.services.clock.seconds() - tunnel.since, 1),
        upid=tunnel.task.upid,
    )
