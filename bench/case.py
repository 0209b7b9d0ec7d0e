"""What is measured: the cases, and which relays take part in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to use a relay.

    direction: `in` is from the network to the UNIX socket. mask: `zero` or `random`, of frames to the relay; relays
    without websockets have neither masks nor frames. pinned: the relay has one core, all else the other.
    """

    direction: str = "in"
    tls: bool = True
    mask: str = "zero"
    frame_bytes: int = 128 * KIB
    streams: int = 1
    pinned: bool = True

    def __str__(self) -> str:
        tls = "TLS" if self.tls else "plain"
        return f"{self.direction} {tls}, {self.mask} mask, {self.frame_bytes // KIB} KiB frames, {self.streams} streams"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A case, and the names of the relays that are measured in it, one after the other in each round."""

    case: Case
    relays: Sequence[str]


OURS = ("mtunnel", "mtunnel-reactor")
WITH_FRAMES = (*OURS, "autobahn", "websockify")
WITHOUT_FRAMES = ("socat", "socat-2m", "nginx")
ALL = (*WITH_FRAMES, *WITHOUT_FRAMES)

TO_UNIX = Case()
FROM_UNIX = Case(direction="out")
MASKED = Case(mask="random")
SMALL_FRAMES = Case(frame_bytes=4 * KIB)
FOUR = Case(streams=4, pinned=False)
SIXTEEN = Case(streams=16, pinned=False)
ONE_UNPINNED = Case(pinned=False)

FULL = (
    Comparison(case=TO_UNIX, relays=ALL),
    Comparison(case=MASKED, relays=WITH_FRAMES),
    Comparison(case=FROM_UNIX, relays=ALL),
    Comparison(case=Case(tls=False), relays=ALL),
    Comparison(case=Case(tls=False, mask="random"), relays=OURS),
    Comparison(case=Case(tls=False, direction="out"), relays=ALL),
    Comparison(case=Case(frame_bytes=16 * KIB), relays=WITH_FRAMES),
    Comparison(case=SMALL_FRAMES, relays=WITH_FRAMES),
    Comparison(case=Case(frame_bytes=4 * KIB, mask="random"), relays=WITH_FRAMES),
    Comparison(case=ONE_UNPINNED, relays=OURS),
    Comparison(case=FOUR, relays=(*OURS, "mtunnel-w2", "socat", "nginx-w2")),
    Comparison(case=Case(direction="out", streams=4, pinned=False), relays=(*OURS, "mtunnel-w2", "socat", "nginx-w2")),
    Comparison(case=SIXTEEN, relays=(*OURS, "mtunnel-w2", "socat", "nginx-w2")),
)
"""Everything; takes minutes."""

QUICK = (
    Comparison(case=TO_UNIX, relays=("mtunnel", "socat", "nginx")),
    Comparison(case=MASKED, relays=("mtunnel",)),
    Comparison(case=FROM_UNIX, relays=("mtunnel", "socat")),
    Comparison(case=SMALL_FRAMES, relays=("mtunnel", "autobahn")),
    Comparison(case=ONE_UNPINNED, relays=("mtunnel",)),
    Comparison(case=SIXTEEN, relays=("mtunnel",)),
)
"""What the targets need, once each: for a look, not for a judgement."""

VERIFIED = tuple(
    Case(direction=direction, tls=tls, mask=mask, frame_bytes=frame_kib * KIB, streams=streams, pinned=False)
    for direction, tls, mask, frame_kib, streams in (
        ("in", True, "zero", 128, 1),
        ("in", True, "random", 4, 4),
        ("in", False, "random", 128, 16),
        ("out", True, "zero", 128, 4),
        ("out", False, "zero", 128, 1),
    )
)
"""Every byte is compared, nothing is timed."""
