"""What is measured: the cases, and which relays take part in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One way to use a relay.

    direction: `in` is from the network to the UNIX socket. mask: `zero` or `random`, of frames to the relay; relays
    without websockets have neither masks nor frames. pinned: the relay has one core, all else the other. resumable: its
    flows outlive their connections.
    """

    direction: str = "in"
    tls: bool = True
    mask: str = "zero"
    frame_bytes: int = 128 * KIB
    streams: int = 1
    pinned: bool = True
    rate_mb_s: int = 0
    resumable: bool = False

    def __str__(self) -> str:
        tls = "TLS" if self.tls else "plain"
        pace = f", at {self.rate_mb_s} MB/s" if self.rate_mb_s else ""
        frames = f"{self.frame_bytes // KIB} KiB frames"
        kind = "resumable streams" if self.resumable else "streams"
        return f"{self.direction} {tls}, {self.mask} mask, {frames}, {self.streams} {kind}{pace}"


Comparison = Sequence[tuple[str, Case]]
"""Relays by name in cases, measured one after the other in each round: figures that are compared belong together."""


def each(relays: Sequence[str], *cases: Case) -> Comparison:
    """All of these relays in all of these cases."""
    return tuple((relay, case) for case in cases for relay in relays)


OURS = ("mtunnel", "mtunnel-reactor")
WITH_FRAMES = (*OURS, "autobahn", "websockify")
WITHOUT_FRAMES = ("socat", "socat-2m", "nginx")
ALL = (*WITH_FRAMES, *WITHOUT_FRAMES)
PROXMOX = "proxmox-like"
"""It takes part where Proxmox's own server would: in streams by TLS, one at a time."""

TO_UNIX = Case()
FROM_UNIX = Case(direction="out")
MASKED = Case(mask="random")
SMALL_FRAMES = Case(frame_bytes=4 * KIB)
FOUR = Case(streams=4, pinned=False)
SIXTEEN = Case(streams=16)
SIXTEEN_SHARING = Case(streams=16, pinned=False)
ONE_SHARING = Case(pinned=False)
RESUMABLE_IN = Case(resumable=True)
RESUMABLE_OUT = Case(direction="out", resumable=True)
PACED = {rate_mb_s: Case(rate_mb_s=rate_mb_s) for rate_mb_s in (10, 125, 1250)}
"""As a network of so many MB/s brings it: in small pieces, with pauses."""

SHARING = (*OURS, "mtunnel-w2", "socat", "nginx-w2")

FULL: Sequence[Comparison] = (
    (
        *each((*ALL, PROXMOX), TO_UNIX),
        *each(OURS, RESUMABLE_IN),
        *each((*WITH_FRAMES, PROXMOX), MASKED),
        *each(("mtunnel", "socat", "nginx"), SIXTEEN),
        *each(("mtunnel", "nginx"), *PACED.values()),
    ),
    (*each((*ALL, PROXMOX), FROM_UNIX), *each(OURS, RESUMABLE_OUT)),
    (*each(ALL, Case(tls=False)), *each(OURS, Case(tls=False, mask="random"))),
    each(ALL, Case(tls=False, direction="out")),
    each(WITH_FRAMES, Case(frame_bytes=16 * KIB)),
    (*each((*WITH_FRAMES, "nginx"), SMALL_FRAMES), *each(WITH_FRAMES, Case(frame_bytes=4 * KIB, mask="random"))),
    (*each(SHARING, FOUR, SIXTEEN_SHARING), *each((*OURS, "socat", "nginx"), ONE_SHARING)),
    each(SHARING, Case(direction="out", streams=4, pinned=False)),
)
"""Everything; takes minutes."""

QUICK: Sequence[Comparison] = (
    (*each(("mtunnel", "socat", "nginx"), TO_UNIX), *each(("mtunnel",), MASKED, SIXTEEN, PACED[125], RESUMABLE_IN)),
    (*each(("mtunnel", "socat"), FROM_UNIX), *each(("mtunnel",), RESUMABLE_OUT)),
    each(("mtunnel", "autobahn", "nginx"), SMALL_FRAMES),
    each(("mtunnel-w2", "nginx-w2"), FOUR, SIXTEEN_SHARING),
)
"""What the targets need, once each: for a look, not for a judgement."""

_VERIFIED: Sequence[dict[str, Any]] = (
    {},
    {"mask": "random", "frame_bytes": 4 * KIB, "streams": 4, "resumable": True},
    {"tls": False, "mask": "random", "streams": 16},
    {"direction": "out", "streams": 4, "resumable": True},
    {"direction": "out", "tls": False},
)
VERIFIED = tuple(Case(pinned=False, **case) for case in _VERIFIED)
"""Every byte is compared, nothing is timed."""
