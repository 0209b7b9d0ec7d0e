"""Which connections are admitted: a limit in all, and one for each address that has not shown a valid token."""

from __future__ import annotations

import ipaddress
from collections import Counter

from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from mtunnel_tx.config import Limits
from mtunnel_tx.ports.clock import Clock

log = Logger()

TELL_EVERY_S = 60.0
IPV6_PREFIX = 64
"""One customer has a whole network of this prefix; all its addresses count as one."""


class Place:
    """One connection's share of `limits.connections`, from accept to its end, whatever it becomes in between."""

    def __init__(self, admission: Admission, group: str) -> None:
        self._admission = admission
        self._group: str | None = group
        self._left = False

    def trust(self) -> None:
        """A request on this connection has shown a valid token."""
        if self._group is not None:
            self._admission.forget(self._group)
            self._group = None

    def leave(self) -> None:
        """The connection is over. Only the first call counts."""
        if not self._left:
            self._left = True
            self.trust()
            self._admission.taken -= 1


class Admission:
    """Gives places; `taken` counts them. A refused connection is closed before anything is read of it."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self.taken = 0
        self._most = limits.connections
        self._most_unauthenticated = limits.connections_unauthenticated_per_address
        self._clock = clock
        self._unauthenticated: Counter[str] = Counter()
        self._refused = 0
        self._silent_until_s = 0.0

    def enter(self, peer: IAddress | None) -> Place | None:
        """Returns: None: there is no place for this connection."""
        group = group_of(address_of(peer))
        if self.taken >= self._most:
            self._tell("too many connections", peer)
            return None
        if self._unauthenticated[group] >= self._most_unauthenticated:
            self._tell("too many connections of one address that have shown no valid token", peer)
            return None
        self.taken += 1
        self._unauthenticated[group] += 1
        return Place(self, group)

    def forget(self, group: str) -> None:
        """One unauthenticated connection less; called by places."""
        self._unauthenticated[group] -= 1
        if not self._unauthenticated[group]:
            del self._unauthenticated[group]

    def _tell(self, reason: str, peer: IAddress | None) -> None:
        """Log a refusal, at most every TELL_EVERY_S."""
        self._refused += 1
        now_s = self._clock.seconds()
        if now_s >= self._silent_until_s:
            log.warn(
                "connection from {address} refused, {count} in all: {reason}",
                address=address_of(peer),
                count=self._refused,
                reason=reason,
            )
            self._silent_until_s = now_s + TELL_EVERY_S


def address_of(peer: IAddress | None) -> str:
    """A peer's address as people write it: IPv4 also where it came by an IPv6 socket; `local` where it has none."""
    host = str(getattr(peer, "host", "") or "local")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def group_of(address: str) -> str:
    """What counts as one address: an IPv6 network of one customer, else the address itself."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((int(parsed), IPV6_PREFIX), strict=False))
