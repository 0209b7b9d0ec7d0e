"""The resumable flows of this daemon: their keys, how long they may be parked, what is said of those that ended.

A flow is parked when its connection is lost. For `park_s` its peer may attach another one; then the flow is aborted,
which is what the loss of its connection was to a plain flow. What parked flows keep is bounded: of those that keep too
much together, the largest is aborted.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from twisted.logger import Logger

from mtunnel_tx.errors import TunnelError, Unauthenticated, WrongState
from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.ports.clock import Clock, Timer
from mtunnel_tx.ports.events import TunnelEnded, TunnelEvent
from mtunnel_tx.ports.streams import Route
from mtunnel_tx.stream.flow import Flow, FlowOutcome
from mtunnel_tx.wire.resuming import ID_BYTES, AttachClaim, ResumeOffer, make_flow_id, make_key

log = Logger()

MOST_TOMBSTONES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeLimits:
    """park_s: how long a flow waits for another connection. window_bytes: what one may keep unacknowledged.

    parked_bytes: what all parked flows may keep together.
    """

    park_s: float = 600.0
    window_bytes: int = 16 << 20
    parked_bytes: int = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """What is known of a flow that has ended. verdict: what became of it, or of its tunnel's VM; until_s: forgotten."""

    vmid: int
    token: str
    upid: str
    orderly: bool
    reason: str
    verdict: str
    until_s: float


class FlowEndedBefore(TunnelError):
    """There is nothing to attach a connection to any more."""

    status = 410

    def __init__(self, tombstone: Tombstone) -> None:
        super().__init__(f"the flow has ended: {tombstone.verdict}")
        self.tombstone = tombstone


class Resumption:
    """One resumable flow. `offer`: what its peer is told; `generation`: of the connection that it was given last."""

    def __init__(self, owner: Resumptions, clock: Clock, route: Route, offer: ResumeOffer) -> None:
        self.route = route
        self.offer = offer
        self.generation = 0
        self.flow: Flow | None = None
        self.parked_s: float | None = None
        self._owner = owner
        self._clock = clock
        self._timer: Timer | None = None

    @property
    def kept_bytes(self) -> int:
        return self.flow.kept_bytes if self.flow is not None else 0

    def begin(self, flow: Flow) -> None:
        """The flow is about to run."""
        self.flow = flow
        flow.done.addCallback(self._end)

    def parked(self, reason: str) -> None:
        """The flow has lost its connection (FlowTerms.parked)."""
        self._stop_timer()
        if self.parked_s is None:
            self.parked_s = self._clock.seconds()
        self._timer = self._clock.callLater(self.offer.park_s, self._expire)
        self.route.parked(reason)
        self._owner.bound_parked()

    def resumed(self) -> None:
        """It has another one (FlowTerms.resumed)."""
        assert self.parked_s is not None, "it was parked"
        waited_s, self.parked_s = self._clock.seconds() - self.parked_s, None
        self._stop_timer()
        self.route.resumed(waited_s)

    def check(self, generation: int) -> None:
        """Whether a connection of that generation may be attached. Raises: WrongState (409): a younger one was."""
        if generation <= self.generation:
            raise WrongState("a younger connection was attached to this flow")

    def abort(self, reason: str) -> None:
        """End it, as the loss of its connection would have."""
        log.warn("a parked flow of VM {vmid} is given up: {reason}", vmid=self.route.vmid, reason=reason)
        self._stop_timer()
        if self.flow is not None:
            self.flow.abort(reason)

    def _expire(self) -> None:
        self.abort(f"no connection came within {self.offer.park_s:g} s")

    def _end(self, outcome: FlowOutcome) -> FlowOutcome:
        self._stop_timer()
        self.parked_s = None
        self._owner.bury(self, outcome)
        return outcome

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


class Resumptions:
    """See the module. Args: secret: 32 bytes. random_bytes: os.urandom."""

    def __init__(
        self, clock: Reactor, secret: bytes, random_bytes: Callable[[int], bytes], limits: ResumeLimits
    ) -> None:
        self.clock = clock
        self._secret = secret
        self._random_bytes = random_bytes
        self._limits = limits
        self._flows: dict[str, Resumption] = {}
        self._tombstones: dict[str, Tombstone] = {}

    def begin(self, route: Route) -> Resumption:
        """Make the name and the key of a new flow; it counts from `Resumption.begin` on."""
        flow_id = make_flow_id(self._random_bytes(ID_BYTES))
        key = make_key(self._secret, vmid=route.vmid, flow_id=flow_id, token=route.token)
        limits = self._limits
        offer = ResumeOffer(id=flow_id, key=key, window_bytes=limits.window_bytes, park_s=limits.park_s)
        resumption = self._flows[flow_id] = Resumption(self, self.clock, route, offer)
        return resumption

    def drop(self, resumption: Resumption) -> None:
        """The flow came to nothing."""
        self._flows.pop(resumption.offer.id, None)

    def find(self, vmid: int, flow_id: str, claim: AttachClaim | None, token: str) -> Resumption | Tombstone:
        """The flow that a connection is to be attached to.

        Raises: Unauthenticated: there is none, it is somebody else's, or the key is wrong; nobody learns which.
        """
        key = make_key(self._secret, vmid=vmid, flow_id=flow_id, token=token)
        is_right = claim is not None and hmac.compare_digest(claim.key.encode(), key.encode())
        known = self._flows.get(flow_id)
        buried = self._tombstones.get(flow_id)
        if is_right and known is not None and (known.route.vmid, known.route.token) == (vmid, token):
            return known
        if is_right and buried is not None and (buried.vmid, buried.token) == (vmid, token):
            return buried
        raise Unauthenticated("permission denied - no such flow")

    def bound_parked(self) -> None:
        """Give up parked flows until the others keep no more than they may: the largest of the token with the most."""
        parked = {flow: flow.kept_bytes for flow in self._flows.values() if flow.parked_s is not None}
        by_token: Counter[str] = Counter()
        for flow, kept_bytes in parked.items():
            by_token[flow.route.token] += kept_bytes
        while parked and by_token.total() > self._limits.parked_bytes:
            ((token, _),) = by_token.most_common(1)
            largest = max((flow for flow in parked if flow.route.token == token), key=parked.__getitem__)
            by_token[token] -= parked.pop(largest)
            largest.abort("parked flows keep more than limits.parked_bytes")

    def bury(self, resumption: Resumption, outcome: FlowOutcome) -> None:
        """A flow has ended; its peer may not know yet."""
        route, now_s = resumption.route, self.clock.seconds()
        if self._flows.pop(resumption.offer.id, None) is None:
            return
        self._tombstones[resumption.offer.id] = Tombstone(
            vmid=route.vmid,
            token=route.token,
            upid=route.upid,
            orderly=outcome.orderly,
            reason=outcome.reason,
            verdict="ended",
            until_s=now_s + self._limits.park_s,
        )
        self._bound_tombstones(now_s)

    def _bound_tombstones(self, now_s: float) -> None:
        """Those whose time is over go, then the oldest of the token that has the most."""
        for flow_id in [flow_id for flow_id, tombstone in self._tombstones.items() if tombstone.until_s <= now_s]:
            del self._tombstones[flow_id]
        if len(self._tombstones) > MOST_TOMBSTONES:
            by_token = Counter(tombstone.token for tombstone in self._tombstones.values())
            ((token, _),) = by_token.most_common(1)
            del self._tombstones[next(key for key, tombstone in self._tombstones.items() if tombstone.token == token)]

    def observe(self, event: TunnelEvent) -> None:
        """What became of a tunnel's VM is said of its flows, too (ports.events.Observer)."""
        if isinstance(event, TunnelEnded):
            for flow_id, tombstone in self._tombstones.items():
                if tombstone.upid == event.tunnel.upid:
                    self._tombstones[flow_id] = replace(tombstone, verdict=event.outcome)
