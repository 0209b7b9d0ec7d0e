"""When a flow ends, and how: a table of events. No sockets here, only events in and deeds out.

A flow has two ways: *inward*, websocket to UNIX socket, and *outward*, UNIX socket to websocket. Each way ends in order
(by a Close frame; by the end of file of the UNIX socket) or not. In order: every byte is delivered, then the end is
passed on, and the other way stays open for `half_close_s`. Anything else fails the flow and ends both ways: what has
arrived is still delivered, then both sides are closed. A Close frame is sent behind the last byte of the outward way.

`TABLE` says what each event does to the senders and the receivers of both ways. `Ends.settle` says what is to be done
when the bytes of a way are delivered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import ClassVar

from mtunnel_tx.wire.frames import CLOSE_NORMAL

FAILING_CODES = frozenset((1002, 1003, *range(1007, 1015)))
"""With these in its Close frame a peer says that it failed, not that it is done."""


class Sender(Enum):
    """How far the sender of a way has come."""

    OPEN = auto()
    LAST = auto()
    """The other way failed: what this sender has sent is still taken, up to the first moment when nothing is there."""
    ENDED = auto()
    """It ended in order."""
    CUT = auto()
    """It did not."""


class FlowEvent(Enum):
    """What happens to a flow. Its carrier is the connection with the peer, `local` is the UNIX socket."""

    CLOSE_CAME = auto()
    """A Close frame whose status says that the peer is done."""
    CLOSE_CAME_FOR_BOTH = auto()
    """The same, where it ends both ways (`ends_with_peer`)."""
    FAILING_CLOSE_CAME = auto()
    """A Close frame whose status says that the peer failed."""
    PROTOCOL_VIOLATED = auto()
    CLOSE_ANSWERED = auto()
    """The carrier ended behind our own Close frame: in order, even without a Close frame of the peer."""
    CARRIER_DEAF = auto()
    """The carrier cannot be written to; a Close frame of the peer may still be under way."""
    CARRIER_BROKEN = auto()
    """The carrier can be neither written to nor read; CARRIER_LOST follows unless the peer has closed before."""
    CARRIER_LOST = auto()
    """The carrier has ended, and the peer has not closed."""
    CARRIER_DETACHED = auto()
    """The owner of the flow takes its carrier away."""
    LOCAL_ENDED = auto()
    """End of file."""
    LOCAL_ENDED_FOR_BOTH = auto()
    """The same, where it ends both ways (`ends_with_local`)."""
    LOCAL_FAILED = auto()
    """The UNIX socket cannot be read."""
    LOCAL_DEAF = auto()
    """The UNIX socket cannot be written to; what its owner has sent before still counts."""
    LOCAL_DRAINED = auto()
    """Nothing more has come from a UNIX socket that is deaf."""
    HALF_CLOSE_EXPIRED = auto()
    """The peer has closed, everything was delivered, and the UNIX side has not ended within `half_close_s`."""
    GIVEN_UP = auto()
    """The flow is to end now."""


@dataclass(frozen=True, slots=True)
class Move:
    """What becomes of a sender that is OPEN, and of one that is LAST. One that is ENDED or CUT stays so for ever."""

    if_open: Sender
    if_last: Sender


STAY = Move(Sender.OPEN, Sender.LAST)
END = Move(Sender.ENDED, Sender.ENDED)
CUT = Move(Sender.CUT, Sender.CUT)
HEAR_OUT = Move(Sender.LAST, Sender.LAST)
END_OR_CUT = Move(Sender.ENDED, Sender.CUT)
DRAIN = Move(Sender.OPEN, Sender.CUT)
REOPEN = Move(Sender.OPEN, Sender.OPEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """What an event does.

    inward, outward: to the sender of that way: the peer, the UNIX socket. deaf: receivers that take no more: `local`,
    `carrier`. fails: the flow has failed; its first reason and close code stay. parks: it goes on without a carrier.
    """

    inward: Move = STAY
    outward: Move = STAY
    deaf: tuple[str, ...] = ()
    fails: bool = False
    parks: bool = False


A_LOST_CARRIER_ENDS_ITS_FLOW = EventRow(inward=CUT, outward=CUT, fails=True)
"""A flow that outlives its carrier has the row of CARRIER_DETACHED instead (`resumableends.py`)."""

TABLE: Mapping[FlowEvent, EventRow] = {
    FlowEvent.CLOSE_CAME: EventRow(inward=END),
    FlowEvent.CLOSE_CAME_FOR_BOTH: EventRow(inward=END, outward=CUT),
    FlowEvent.FAILING_CLOSE_CAME: EventRow(inward=CUT, outward=CUT, fails=True),
    FlowEvent.PROTOCOL_VIOLATED: EventRow(inward=CUT, outward=CUT, fails=True),
    FlowEvent.CLOSE_ANSWERED: EventRow(inward=END),
    FlowEvent.CARRIER_DEAF: EventRow(inward=HEAR_OUT, deaf=("carrier",)),
    FlowEvent.CARRIER_BROKEN: EventRow(deaf=("carrier",)),
    FlowEvent.CARRIER_LOST: A_LOST_CARRIER_ENDS_ITS_FLOW,
    FlowEvent.CARRIER_DETACHED: EventRow(inward=REOPEN, parks=True),
    FlowEvent.LOCAL_ENDED: EventRow(outward=END_OR_CUT),
    FlowEvent.LOCAL_ENDED_FOR_BOTH: EventRow(inward=CUT, outward=END_OR_CUT, deaf=("local",)),
    FlowEvent.LOCAL_FAILED: EventRow(inward=CUT, outward=CUT, deaf=("local",), fails=True),
    FlowEvent.LOCAL_DEAF: EventRow(inward=CUT, outward=HEAR_OUT, deaf=("local",), fails=True),
    FlowEvent.LOCAL_DRAINED: EventRow(outward=DRAIN),
    FlowEvent.HALF_CLOSE_EXPIRED: EventRow(outward=END),
    FlowEvent.GIVEN_UP: EventRow(inward=CUT, outward=CUT, deaf=("local", "carrier"), fails=True),
}


class Deed(Enum):
    """What the owner of the sockets has to do."""

    SHUT_LOCAL = auto()
    SAY_CLOSE = auto()
    SAY_END = auto()
    """Tell the peer that our UNIX side has ended; only of flows that are resumable."""


@dataclass(slots=True)
class Way:
    """One direction. deaf: its receiver takes no more. done: everything that counts was delivered."""

    sender: Sender = Sender.OPEN
    deaf: bool = False
    done: bool = False

    @property
    def takes(self) -> bool:
        """Its sender may be read."""
        return self.sender in (Sender.OPEN, Sender.LAST)

    @property
    def over(self) -> bool:
        return not self.takes

    def move(self, move: Move) -> None:
        if self.sender is Sender.OPEN:
            self.sender = move.if_open
        elif self.sender is Sender.LAST:
            self.sender = move.if_last


class Ends:
    """Where a flow stands.

    Args: half_close_s: how long one way outlives the other. ends_with_local: the end of file of the UNIX socket ends
    both ways (QEMU), not only its own. ends_with_peer: a Close frame of the peer does so too, where the UNIX side is a
    QEMU that would go on sending although nobody takes it.
    `reason`: why the flow failed, None as long as it did not. `parked`: why it has no carrier, None: it has, or had at
    its end. `due_s`: when `expire` is to be called.
    """

    table: ClassVar[Mapping[FlowEvent, EventRow] | None] = None
    """Another one than TABLE."""

    def __init__(self, *, half_close_s: float, ends_with_local: bool = False, ends_with_peer: bool = False) -> None:
        self.inward = Way()
        self.outward = Way()
        self.reason: str | None = None
        self.parked: str | None = None
        self.close_code: int | None = CLOSE_NORMAL
        self.due_s: float | None = None
        self._half_close_s = half_close_s
        self._ends_with_local = ends_with_local
        self._ends_with_peer = ends_with_peer
        self._deaf_reason = ""
        self._said = False

    @property
    def hears(self) -> bool:
        """The carrier is to be read."""
        return self.inward.takes

    @property
    def hears_out(self) -> bool:
        """The carrier is to be read up to the first moment when nothing is there."""
        return self.inward.sender is Sender.LAST

    @property
    def pings(self) -> bool:
        """Pings are sent and answered."""
        return self.outward.takes

    @property
    def can_change_carrier(self) -> bool:
        """The carrier may be taken away, and another one take its place."""
        return self.inward.sender is Sender.OPEN and self.outward.sender is Sender.OPEN

    @property
    def peer_over(self) -> bool:
        """Nothing more goes to or comes from the peer."""
        return self.outward.done and self.inward.over

    @property
    def local_over(self) -> bool:
        """Nothing more goes to or comes from the UNIX side."""
        return self.inward.done and self.outward.over

    # What happens

    def close_came(self, code: int) -> None:
        """A Close frame with this status came."""
        if code in FAILING_CODES:
            self._apply(FlowEvent.FAILING_CLOSE_CAME, f"peer closed with status {code}", code)
        else:
            self.close_code = code
            self._apply(FlowEvent.CLOSE_CAME_FOR_BOTH if self._ends_with_peer else FlowEvent.CLOSE_CAME)

    def violated(self, code: int, reason: str) -> None:
        """The peer broke the protocol."""
        self._apply(FlowEvent.PROTOCOL_VIOLATED, reason, code)

    def carrier_ended(self, reason: str) -> None:
        """End of file or close_notify."""
        if self.outward.done and not self.outward.deaf:
            self._apply(FlowEvent.CLOSE_ANSWERED)
        elif self.inward.takes:
            self._apply(FlowEvent.CARRIER_LOST, reason)

    def carrier_failed(self, reason: str) -> None:
        """The carrier cannot be read."""
        self._apply(FlowEvent.CARRIER_BROKEN)
        if self.inward.takes:
            self._apply(FlowEvent.CARRIER_LOST, reason)

    def carrier_deaf(self, reason: str) -> None:
        """The carrier cannot be written to."""
        self._deaf_reason = reason
        self._apply(FlowEvent.CARRIER_DEAF)

    def carrier_detached(self, reason: str) -> None:
        """The carrier is taken away."""
        self._apply(FlowEvent.CARRIER_DETACHED, reason)

    def carrier_attached(self) -> None:
        """The flow has a carrier again; limits of time begin anew."""
        self.parked = self.due_s = None
        self.outward.deaf = False

    def local_ended(self) -> None:
        """End of file of the UNIX side."""
        self._apply(FlowEvent.LOCAL_ENDED_FOR_BOTH if self._ends_with_local else FlowEvent.LOCAL_ENDED)

    def local_failed(self, reason: str) -> None:
        """The UNIX side cannot be read."""
        self._apply(FlowEvent.LOCAL_FAILED, reason)

    def local_deaf(self, reason: str) -> None:
        """The UNIX side cannot be written to."""
        self._apply(FlowEvent.LOCAL_DEAF, reason)

    def drained(self, way: Way) -> None:
        """Nothing more has arrived from the sender of a way, for now."""
        if way.sender is not Sender.LAST:
            return
        if way is self.inward:
            self._apply(FlowEvent.CARRIER_LOST, self._deaf_reason)
        else:
            self._apply(FlowEvent.LOCAL_DRAINED)

    def give_up(self, reason: str) -> None:
        """Both sides are to be dropped as they are."""
        self._apply(FlowEvent.GIVEN_UP, reason)
        self.inward.done = self.outward.done = True

    def end_by_peer(self) -> bool:
        """The peer says, over another connection, that it has everything. Returns: so have we; it is over."""
        return False

    def expire(self) -> None:
        """`due_s` has come."""
        self.due_s = None
        if self.reason is None and self.inward.done:
            self._apply(FlowEvent.HALF_CLOSE_EXPIRED)
        else:
            self.give_up(self.reason or "no Close frame came from the peer")

    def _apply(self, event: FlowEvent, reason: str = "", code: int | None = None) -> None:
        row = (self.table or TABLE)[event]
        self.inward.move(row.inward)
        self.outward.move(row.outward)
        self.inward.deaf |= "local" in row.deaf
        self.outward.deaf |= "carrier" in row.deaf
        if row.fails and self.reason is None:
            self.reason, self.close_code = reason, code
        if row.parks:
            self.parked = reason

    # What follows

    def settle(self, *, inward_waits: bool, outward_waits: bool, now_s: float) -> list[Deed]:
        """Draw the conclusions; to be called again until there is no deed left.

        Args: inward_waits, outward_waits: bytes of that way wait for their receiver.
        """
        deeds = self._settle_inward(inward_waits) + self._settle_outward(outward_waits)
        if not self._is_limited():
            self.due_s = None
        elif self.due_s is None:
            self.due_s = now_s + self._half_close_s
        return deeds

    def _settle_inward(self, waits: bool) -> list[Deed]:
        """Everything was delivered: shut the UNIX socket behind an end in order."""
        way = self.inward
        if way.done or way.takes or (waits and not way.deaf):
            return []
        way.done = True
        return [Deed.SHUT_LOCAL] if way.sender is Sender.ENDED and not way.deaf else []

    def _settle_outward(self, waits: bool) -> list[Deed]:
        """The sender is over: say Close behind its last byte, then wait until the peer has taken everything."""
        way = self.outward
        if way.done or way.takes:
            return []
        if not self._said:
            self._said = True
            if self.close_code is not None and not way.deaf:
                return [Deed.SAY_CLOSE]
        way.done = way.deaf or not waits
        return []

    def _is_limited(self) -> bool:
        """Whether `half_close_s` runs: one way is done and the other is not over, or the flow failed."""
        if self.inward.done and self.outward.done:
            return False
        if self.reason is not None:
            return True
        return (self.inward.done and self.outward.takes) or (self.outward.done and self.inward.takes)
