"""Which connections are admitted: a limit in all, and one for each address that has not shown a valid token."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from mtunnel_tx.config import Limits
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.ports.clock import Clock

log = Logger()

TELL_EVERY_S = 60.0
IPV6_PREFIX = 64
"""One customer has a whole network of this prefix; all its addresses count as one."""


class TooManyConnections(TunnelError):
    """The peer must end others of its connections first."""

    status = 503


class Place:
    """One connection's share of `limits.connections`, from accept to its end, whatever it becomes in between."""

    def __init__(self, admission: Admission, group: str) -> None:
        self._admission = admission
        self._group: str | None = group
        self._token: str | None = None
        self._is_stream = False
        self._left = False

    def trust(self, token: str = "") -> None:
        """A request on this connection has shown a valid token; of several only the first one counts.

        Args: token: its id, where it is known. Raises: TooManyConnections: the token has as many, and all are busy.
        """
        if self._group is not None:
            self._admission.forget(self._group)
            self._group = None
        if token and self._token is None and not self._is_stream:
            self._token = token
            self._admission.count(self, token)

    def rest(self, end: Callable[[], object]) -> None:
        """Its request is answered. Args: end: ends the connection; may be called until there is another request."""
        if not self._is_stream and not self._left:
            self._admission.resting[self] = end

    def work(self) -> None:
        """A request comes in."""
        self._admission.resting.pop(self, None)

    def carry(self) -> None:
        """The connection is a stream of a tunnel from now on."""
        self._is_stream = True
        self._forget_token()
        self.work()

    def belongs_to(self, token: str) -> bool:
        """Whether this token was the first one shown, and the connection is no stream."""
        return self._token == token

    def leave(self) -> None:
        """The connection is over. Only the first call counts."""
        if not self._left:
            self._left = True
            self.trust()
            self._forget_token()
            self.work()
            self._admission.taken -= 1

    def _forget_token(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            self._admission.forget_token(token)


class Admission:
    """Gives places; `taken` counts them. A refused connection is closed before anything is read of it.

    Where no place is left, the connection ends that has waited longest for its next request; `resting` has those, and
    what ends them. So idle connections keep nobody out, streams of tunnels least of all.

    Args: refused: is told of each connection that is refused, in a word.
    """

    def __init__(self, limits: Limits, clock: Clock, refused: Callable[[str], object] = lambda _: None) -> None:
        self.taken = 0
        self._count_refusal = refused
        self.resting: dict[Place, Callable[[], object]] = {}
        self._limits = limits
        self._clock = clock
        self._unauthenticated: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._refused = 0
        self._silent_until_s = 0.0

    def enter(self, peer: IAddress | None) -> Place | None:
        """Returns: None: there is no place for this connection."""
        group = group_of(address_of(peer))
        if self._unauthenticated[group] >= self._limits.connections_unauthenticated_per_address:
            self._tell("too many connections of one address that have shown no valid token", peer)
            return None
        if self.taken >= self._limits.connections and not self._end_one(self.resting):
            self._tell("too many connections", peer)
            return None
        self.taken += 1
        self._unauthenticated[group] += 1
        return Place(self, group)

    def count(self, place: Place, token: str) -> None:
        """A connection has shown this token first; called by places. Raises: TooManyConnections."""
        self._tokens[token] += 1
        if self._tokens[token] <= self._limits.connections_per_token:
            return
        if not self._end_one([other for other in self.resting if other.belongs_to(token)]):
            raise TooManyConnections(f"no more than {self._limits.connections_per_token} connections of one token")

    def _end_one(self, places: Iterable[Place]) -> bool:
        """End the first of some connections that rest. Returns: there was one."""
        place = next(iter(places), None)
        if place is None:
            return False
        end = self.resting[place]
        place.leave()
        end()
        return True

    def forget_token(self, token: str) -> None:
        """One connection of a token less; called by places."""
        self._tokens[token] -= 1
        if not self._tokens[token]:
            del self._tokens[token]

    def forget(self, group: str) -> None:
        """One unauthenticated connection less; called by places."""
        self._unauthenticated[group] -= 1
        if not self._unauthenticated[group]:
            del self._unauthenticated[group]

    def _tell(self, reason: str, peer: IAddress | None) -> None:
        """Log a refusal, at most every TELL_EVERY_S."""
        self._refused += 1
        self._count_refusal("connection")
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
