"""The record of a tunnel that is over: one line, whose values are also fields of the system's journal."""

from __future__ import annotations

from twisted.logger import Logger

from mtunnel_tx.ports.events import FlowParked, FlowResumed, TunnelEnded, TunnelEvent

log = Logger()

FIELDS = ("vmid", "token", "address", "end", "verdict", "bytes_in", "bytes_out", "duration_s", "upid")
"""What a record has; never a secret."""


def observe(event: TunnelEvent) -> None:
    """Say who moved what, and what became of it, when a tunnel ends (ports.events.Observer)."""
    if isinstance(event, FlowParked | FlowResumed):
        _tell_parking(event)
    elif isinstance(event, TunnelEnded):
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


def _tell_parking(event: FlowParked | FlowResumed) -> None:
    """One line for a connection that is lost, and one for the next one."""
    facts = {"vmid": event.tunnel.vmid, "flow": event.socket.name, "upid": event.tunnel.upid}
    if isinstance(event, FlowParked) and event.waited_s:
        facts |= {"reason": event.reason, "waited_s": round(event.waited_s, 1)}
        log.info("VM {vmid}, {flow}: no connection for {waited_s} s, waiting: {reason}; {upid}", **facts)
    elif isinstance(event, FlowParked):
        log.info("VM {vmid}, {flow}: connection lost, waiting: {reason}; {upid}", reason=event.reason, **facts)
    else:
        log.info("VM {vmid}, {flow}: resumed after {waited_s} s; {upid}", waited_s=round(event.waited_s, 1), **facts)
