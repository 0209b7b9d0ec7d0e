"""The record of a tunnel that is over: one line, whose values are also fields of the system's journal."""

from __future__ import annotations

from twisted.logger import Logger

from mtunnel_tx.ports.events import TunnelEnded, TunnelEvent

log = Logger()

FIELDS = ("vmid", "token", "address", "end", "verdict", "bytes_in", "bytes_out", "duration_s", "upid")
"""What a record has; never a secret."""


def observe(event: TunnelEvent) -> None:
    """Say who moved what, and what became of it, when a tunnel ends (ports.events.Observer)."""
    if isinstance(event, TunnelEnded):
        log.info(
            "tunnel of VM {vmid} is over: {verdict}, {end}; {token} from {address};"
            " {bytes_in} bytes in, {bytes_out} out, {duration_s} s; {upid}",
            vmid=event.tunnel.vmid,
            token=event.tunnel.token,
            address=event.tunnel.address,
            end=event.reason or "quit",
            verdict=event.outcome,
            bytes_in=event.traffic.bytes_in,
            bytes_out=event.traffic.bytes_out,
            duration_s=round(event.duration_s, 1),
            upid=event.tunnel.upid,
        )
