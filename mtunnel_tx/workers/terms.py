"""The terms of a flow, as the daemon tells them to the worker that is to run it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict

from mtunnel_tx.stream.flow import FlowTerms, ignore_parking
from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.wire.frames import Role
from mtunnel_tx.workers.channel import Message


def write_terms(terms: FlowTerms) -> Message:
    """What a worker has to know; who hears of the end stays with the daemon."""
    return {
        "role": terms.role.name,
        "urgent": terms.urgent,
        "ends_with_local": terms.ends_with_local,
        "ends_with_peer": terms.ends_with_peer,
        "limits": asdict(terms.limits),
        "window_bytes": terms.window_bytes,
        "park_s": terms.park_s,
    }


def read_terms(
    message: Message, closed: Callable[[bool], Awaitable[None]], parked: Callable[[str], None] = ignore_parking
) -> FlowTerms:
    """Args: closed, parked: as in FlowTerms, in the worker."""
    return FlowTerms(
        role=Role[message["role"]],
        urgent=message["urgent"],
        ends_with_local=message["ends_with_local"],
        ends_with_peer=message["ends_with_peer"],
        limits=FlowLimits(**message["limits"]),
        window_bytes=message["window_bytes"],
        park_s=message["park_s"],
        closed=closed,
        parked=parked,
    )
