"""When a resumable flow ends, and how: as in `ends.py`, but its carriers have no part in it.

The end of a UNIX side travels as a record (`e N`), and the other end answers when it was passed on (`d`). A lost
carrier parks the flow. Where both ends were passed on, the server says Close, and the client answers: so a client that
has lost its last carrier asks the server, which knows. A failure is told by `x`, or by a Close frame that says so.
"""

from __future__ import annotations

from mtunnel_tx.stream.ends import CUT, FAILING_CODES, TABLE, Deed, Ends, EventRow, FlowEvent, Sender, Way
from mtunnel_tx.stream.parkedvalue import ParkedValue
from mtunnel_tx.wire.frames import CLOSE_PROTOCOL_ERROR

CARRIER_CODES = frozenset((1001, 1006, 1012))
"""With these in a Close frame a peer, or a proxy between us, says that the connection ends, not the flow."""
CLOSE_INTERNAL_ERROR = 1011

RESUMABLE_TABLE = {
    **TABLE,
    FlowEvent.CARRIER_LOST: TABLE[FlowEvent.CARRIER_DETACHED],
    FlowEvent.CLOSE_ANSWERED: EventRow(outward=CUT),
    FlowEvent.GIVEN_UP: EventRow(inward=CUT, outward=CUT, deaf=("local",), fails=True),
}
"""CLOSE_ANSWERED: the server has closed behind all ends. GIVEN_UP: the peer is told before the carrier goes."""


class ResumableEnds(Ends):
    """See the module, and `Ends`. Args: is_client: ours is the end that dials."""

    table = RESUMABLE_TABLE

    def __init__(
        self, *, half_close_s: float, ends_with_local: bool = False, ends_with_peer: bool = False, is_client: bool
    ) -> None:
        super().__init__(half_close_s=half_close_s, ends_with_local=ends_with_local, ends_with_peer=ends_with_peer)
        self.is_delivered = False
        self._is_client = is_client
        self._is_closed = False
        self._end_said = False
        self._hears_out = False

    def restore(self, inward: Way, outward: Way, value: ParkedValue) -> None:
        """Go on, parked, where another process has stopped."""
        self.inward, self.outward = inward, outward
        self.is_delivered = value.is_end_delivered
        self._end_said = value.ended_at is not None

    @property
    def hears(self) -> bool:
        return self.reason is None and not self._is_closed and not self.outward.done

    @property
    def hears_out(self) -> bool:
        return self._hears_out and self.hears

    @property
    def pings(self) -> bool:
        return self.hears

    @property
    def can_change_carrier(self) -> bool:
        return self.hears

    # What happens

    def peer_ended(self) -> None:
        """`e N` came, and everything before it."""
        self._apply(FlowEvent.CLOSE_CAME_FOR_BOTH if self._ends_with_peer else FlowEvent.CLOSE_CAME)

    def delivered(self) -> None:
        """`d` came: the peer has passed our end on."""
        self.is_delivered = True

    def peer_gave_up(self, reason: str) -> None:
        """`x` came."""
        self._apply(FlowEvent.FAILING_CLOSE_CAME, f"peer gave up: {reason}" if reason else "peer gave up")

    def close_came(self, code: int) -> None:
        if code in CARRIER_CODES:
            self._apply(FlowEvent.CARRIER_LOST, f"peer closed the connection with status {code}")
        elif code in FAILING_CODES:
            super().close_came(code)
        elif self._has_all and (self._is_client or self.is_delivered):
            self._is_closed = True
            self._apply(FlowEvent.CLOSE_ANSWERED)
        else:
            self._apply(FlowEvent.FAILING_CLOSE_CAME, "peer closed before the end", CLOSE_PROTOCOL_ERROR)

    @property
    def _has_all(self) -> bool:
        return self.inward.done and self.inward.sender is Sender.ENDED

    def end_by_peer(self) -> bool:
        if self._has_all:
            self._is_closed = True
            self._apply(FlowEvent.CLOSE_ANSWERED)
            self.outward.done = True
        return self._has_all

    def carrier_ended(self, reason: str) -> None:
        if self.hears:
            self._apply(FlowEvent.CARRIER_LOST, reason)

    def carrier_failed(self, reason: str) -> None:
        self.carrier_ended(reason)

    def carrier_deaf(self, reason: str) -> None:
        """What the peer has sent before still counts, most of all that it gave up."""
        self._deaf_reason = reason
        self.outward.deaf = True
        self._hears_out = self.hears

    def carrier_attached(self) -> None:
        super().carrier_attached()
        self._hears_out = False

    def drained(self, way: object) -> None:
        if way is self.inward:
            if self.hears_out:
                self._apply(FlowEvent.CARRIER_LOST, self._deaf_reason)
        else:
            super().drained(self.outward)

    def give_up(self, reason: str) -> None:
        """Tell the peer where that is possible; without that it would wait for another carrier."""
        if self.reason is None and self.parked is None and not self.outward.deaf:
            self._apply(FlowEvent.GIVEN_UP, reason, CLOSE_INTERNAL_ERROR)
            self.inward.done = True
        else:
            self.outward.deaf = True
            super().give_up(reason)

    def _apply(self, event: FlowEvent, reason: str = "", code: int | None = None) -> None:
        super()._apply(event, reason, code)
        if self.parked is not None:
            self._said = False
            if self.inward.sender is Sender.ENDED and not self.inward.done:
                self.inward.sender = Sender.OPEN  # the end comes again, behind what was not taken

    # What follows

    def _settle_outward(self, waits: bool) -> list[Deed]:
        """The sender is over: say so, wait for the answer, and close behind both ends."""
        way = self.outward
        if self.reason is None and not self._is_closed:
            if way.done or way.takes or self._hears_out:
                return []
            if way.sender is Sender.ENDED and not self._end_said:
                self._end_said = True
                return [Deed.SAY_END]
            if self._is_client or not (self.inward.done and self.is_delivered):
                return []
        return super()._settle_outward(waits)
