"""The resumable flows of this daemon: their keys, how long they may be parked, what is said of those that ended.

A flow is parked when its connection is lost. For `park_s` its peer may attach another one; then the flow is aborted,
which is what the loss of its connection was to a plain flow. What parked flows keep is bounded: of those that keep too
much together, the largest is aborted. What those with a connection may keep is bounded too: each has a window, and
where there is no room for one more, a flow is a plain one, which ends with its connection.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.errors import NotYet, TunnelError, Unauthenticated, WrongState
from mtunnel_tx.net.kinds import Reactor
from mtunnel_tx.ports.clock import Clock, Timer
from mtunnel_tx.ports.events import TunnelEnded, TunnelEvent
from mtunnel_tx.ports.streams import Route, TunnelFlow
from mtunnel_tx.stream.flow import Flow, FlowOutcome
from mtunnel_tx.wire.flow import LEAST_WINDOW_BYTES
from mtunnel_tx.wire.resuming import ID_BYTES, AttachClaim, ResumeOffer, make_flow_id, make_key
from mtunnel_tx.wire.socketkinds import COMMANDS

log = Logger()

MOST_ATTACHES, ATTACHES_PER_S = 40, 2.0
"""Connections that a flow is given at once, and from then on; a network that is worse is none."""
MOST_TOMBSTONES = 1000
ENDED = "ended"
"""The verdict on a flow whose tunnel is not over."""
FORGOTTEN = "it is not known here any more, as after a restart"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeLimits:
    """park_s: how long a flow waits for another connection. window_bytes: what one may keep unacknowledged.

    parked_bytes: what all parked flows may keep together. windows_bytes: the windows of all flows together; those of
    one token may be the half of it.
    """

    park_s: float = 600.0
    window_bytes: int = 16 << 20
    parked_bytes: int = 256 << 20
    windows_bytes: int = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """What is known of a flow that has ended.

    is_commands: it carried the commands of its tunnel. verdict: what became of it, or of its tunnel's VM. until_s: when
    it is forgotten.
    """

    vmid: int
    token: str
    upid: str
    is_commands: bool
    orderly: bool
    reason: str
    verdict: str
    until_s: float

    @property
    def is_undecided(self) -> bool:
        """The tunnel ends because this flow has: what becomes of the VM is being decided."""
        return self.is_commands and not self.orderly and self.verdict == ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Lasting:
    """What another daemon has to know of a resumable flow; its key can be made again."""

    id: str
    generation: int
    window_bytes: int
    park_s: float

    def as_json(self) -> dict[str, Any]:
        """The same, by its names."""
        return asdict(self)


def _forgotten(vmid: int, token: str) -> Tombstone:
    """Of a flow of which nothing is known but that there was one: it may have ended well."""
    return Tombstone(
        vmid=vmid,
        token=token,
        upid="",
        is_commands=False,
        orderly=False,
        reason=FORGOTTEN,
        verdict=ENDED,
        until_s=0.0,
    )


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
        self._attaches, self._attached_s = float(MOST_ATTACHES), clock.seconds()
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

    @property
    def lasting(self) -> Lasting:
        """What `Resumptions.restore` makes it of."""
        offer = self.offer
        return Lasting(id=offer.id, generation=self.generation, window_bytes=offer.window_bytes, park_s=offer.park_s)

    def parked(self, reason: str) -> None:
        """The flow has lost its connection (FlowTerms.parked)."""
        self._stop_timer()
        now_s = self._clock.seconds()
        if self.parked_s is None:
            self.parked_s = now_s
        waited_s = now_s - self.parked_s
        self._timer = self._clock.callLater(max(0.0, self.offer.park_s - waited_s), self._expire)
        self.route.parked(reason, waited_s)
        self._owner.bound_parked()

    def resumed(self) -> None:
        """It has another one (FlowTerms.resumed)."""
        assert self.parked_s is not None, "it was parked"
        waited_s, self.parked_s = self._clock.seconds() - self.parked_s, None
        self._stop_timer()
        self.route.resumed(waited_s)

    def check(self, generation: int) -> None:
        """Whether a connection of that generation may be attached.

        Raises: WrongState (409): a younger one was. NotYet (503): there were too many of late.
        """
        if generation <= self.generation:
            raise WrongState("a younger connection was attached to this flow")
        if self._attachable() < 1:
            raise NotYet("too many connections were attached to this flow")

    def attaching(self, generation: int) -> None:
        """A connection of that generation, which was checked, is being attached."""
        self.generation = generation
        self._attaches, self._attached_s = self._attachable() - 1, self._clock.seconds()

    def _attachable(self) -> float:
        """How many connections may follow at once."""
        passed_s = self._clock.seconds() - self._attached_s
        return min(MOST_ATTACHES, self._attaches + passed_s * ATTACHES_PER_S)

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
        self._verdicts: dict[str, str] = {}

    def begin(self, route: Route) -> Resumption | None:
        """Make the name and the key of a new flow; it counts from `Resumption.begin` on.

        Returns: None: there is no room for its window.
        """
        window_bytes = self._find_window(route.token)
        if window_bytes is None:
            log.warn("VM {vmid}: one more flow would end with its connection: limits.windows_bytes", vmid=route.vmid)
            return None
        flow_id = make_flow_id(self._random_bytes(ID_BYTES))
        return self._make(
            route, Lasting(id=flow_id, generation=0, window_bytes=window_bytes, park_s=self._limits.park_s)
        )

    def _find_window(self, token: str) -> int | None:
        """What is left for one more flow of a token, up to the usual window; None: too little."""
        taken: Counter[str] = Counter()
        for flow in self._flows.values():
            taken[flow.route.token] += flow.offer.window_bytes
        most_bytes = self._limits.windows_bytes
        left_bytes = min(most_bytes - taken.total(), most_bytes // 2 - taken[token])
        return min(left_bytes, self._limits.window_bytes) if left_bytes >= LEAST_WINDOW_BYTES else None

    def restore(self, route: Route, lasting: Lasting, parked_s: float | None) -> Resumption:
        """A flow of an earlier daemon's. Args: parked_s: since when it is parked, by the monotonic clock, if it is.

        Its peer was promised its window. It counts as the others do, even where it is more than `windows_bytes` now
        allows: then there is none for a new flow.
        """
        resumption = self._make(route, lasting)
        resumption.generation = lasting.generation
        if parked_s is not None:
            resumption.parked_s = min(parked_s, self.clock.seconds())
        return resumption

    def _make(self, route: Route, lasting: Lasting) -> Resumption:
        key = make_key(self._secret, vmid=route.vmid, flow_id=lasting.id, token=route.token)
        offer = ResumeOffer(id=lasting.id, key=key, window_bytes=lasting.window_bytes, park_s=lasting.park_s)
        resumption = self._flows[lasting.id] = Resumption(self, self.clock, route, offer)
        return resumption

    def renew(self, flow: TunnelFlow) -> Resumption | None:
        """Give a flow that nobody has used another name and key. Returns: None: it cannot be resumed."""
        resumption = next((one for one in self._flows.values() if one.flow is flow), None)
        if resumption is not None:
            self.drop(resumption)
            offer, flow_id = resumption.offer, make_flow_id(self._random_bytes(ID_BYTES))
            key = make_key(self._secret, vmid=resumption.route.vmid, flow_id=flow_id, token=resumption.route.token)
            resumption.offer, resumption.generation = replace(offer, id=flow_id, key=key), 0
            self._flows[flow_id] = resumption
        return resumption

    def drop(self, resumption: Resumption) -> None:
        """The flow came to nothing."""
        self._flows.pop(resumption.offer.id, None)

    def find(self, vmid: int, flow_id: str, claim: AttachClaim | None, token: str) -> Resumption | Tombstone:
        """The flow that a connection is to be attached to. Who has a right key had it from here, or before a restart.

        Raises: Unauthenticated: the key is not that of this token's flow of that name; nobody learns what is wrong.
        """
        key = make_key(self._secret, vmid=vmid, flow_id=flow_id, token=token)
        if claim is None or not hmac.compare_digest(claim.key.encode(), key.encode()):
            raise Unauthenticated("permission denied - no such flow")
        known, buried = self._flows.get(flow_id), self._tombstones.get(flow_id)
        return known or buried or _forgotten(vmid, token)

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
            is_commands=route.kind is COMMANDS,
            orderly=outcome.orderly,
            reason=outcome.reason,
            verdict=self._verdicts.get(route.upid, ENDED),
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

    def _remember(self, upid: str, verdict: str) -> None:
        """For flows that end after their tunnel, as that of the commands may."""
        self._verdicts.pop(upid, None)
        self._verdicts[upid] = verdict
        if len(self._verdicts) > MOST_TOMBSTONES:
            del self._verdicts[next(iter(self._verdicts))]

    def observe(self, event: TunnelEvent) -> None:
        """What became of a tunnel's VM is said of its flows, too (ports.events.Observer)."""
        if isinstance(event, TunnelEnded):
            self._remember(event.tunnel.upid, event.outcome)
            for flow_id, tombstone in self._tombstones.items():
                if tombstone.upid == event.tunnel.upid:
                    self._tombstones[flow_id] = replace(tombstone, verdict=event.outcome)
