"""A parked flow as a value: what another process needs to go on with it, beside its UNIX socket."""

from __future__ import annotations

from dataclasses import dataclass, field

from mtunnel_tx.stream.ends import Sender, Way
from mtunnel_tx.wire.kept import Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedWay:
    """How far one way has come. sender: see ends.Sender; done: everything that counts was delivered."""

    sender: str
    done: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedValue:
    """See the module.

    taken, is_end_passed: what the UNIX socket has taken, and whether the peer's end was passed on to it. sent, acked:
    positions of what was read from it; ended_at: where it has ended; is_end_delivered: the peer has passed that on.
    kept: the bytes from acked to sent.
    """

    inward: ParkedWay
    outward: ParkedWay
    taken: int
    is_end_passed: bool
    sent: int
    acked: int
    ended_at: int | None
    is_end_delivered: bool
    kept: Bytes = field(repr=False)


def park_way(way: Way) -> ParkedWay:
    """One way, to be told."""
    return ParkedWay(sender=way.sender.name, done=way.done)


def unpark_way(parked: ParkedWay) -> Way:
    """The same way again."""
    return Way(sender=Sender[parked.sender], done=parked.done)
