"""When a stream ends, and how; no sockets here, only events in and deeds out.

A stream has two ways: *inward*, websocket to UNIX socket, and *outward*, UNIX socket to websocket. Each ends in order
(a Close frame; the end of file of the UNIX side) or not at all. In order: every byte is delivered, then the end is
passed on, and the other way stays up for `half_close_s`. Anything else is an abort of both ways: what has arrived is
still delivered, then both sides are closed. No Close frame goes out before the last byte of the outward way.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from mtunnel_tx.wire.frames import CLOSE_NORMAL

FAILING_CODES = frozenset((1002, 1003, *range(1007, 1015)))
"""With these in its Close frame a peer says that it failed, not that it is done."""


class Source(Enum):
    """How far the sender of a way has come."""

    OPEN = auto()
    LAST = auto()
    """The other way failed: what has arrived is taken, up to the first moment when there is nothing."""
    ENDED = auto()
    CUT = auto()


class Deed(Enum):
    """What the owner of the sockets has to do."""

    SHUT_LOCAL = auto()
    SAY_CLOSE = auto()


@dataclass(slots=True)
class Way:
    """One direction; `deaf`: its receiver takes no more; `done`: everything that counts was delivered."""

    source: Source = Source.OPEN
    deaf: bool = False
    done: bool = False

    @property
    def takes(self) -> bool:
        """Its sender may be read."""
        return self.source in (Source.OPEN, Source.LAST)

    @property
    def over(self) -> bool:
        return not self.takes

    def cut(self) -> None:
        if self.takes:
            self.source = Source.CUT


class Ends:
    """The rules; `reason` is why the stream was aborted, None as long as it was not.

    Args: half_close_s: how long one way outlives the other. ends_with_local: the end of the UNIX side ends both ways
    (QEMU), not only its own. ends_with_peer: so does an end of the peer, where the UNIX side is a QEMU that would go on
    sending into the void.
    """

    def __init__(self, *, half_close_s: float, ends_with_local: bool = False, ends_with_peer: bool = False) -> None:
        self.inward = Way()
        self.outward = Way()
        self.reason: str | None = None
        self.close_code: int | None = CLOSE_NORMAL
        self.due_s: float | None = None
        self._half_close_s = half_close_s
        self._ends_with_local = ends_with_local
        self._ends_with_peer = ends_with_peer
        self._deaf_reason = ""
        self._said = False

    @property
    def peer_over(self) -> bool:
        """Nothing more goes to or comes from the peer."""
        return self.outward.done and self.inward.over

    @property
    def local_over(self) -> bool:
        """Nothing more goes to or comes from the UNIX side."""
        return self.inward.done and self.outward.over

    def peer_closed(self, code: int) -> None:
        """A Close frame with this status came."""
        if code in FAILING_CODES:
            self._abort(f"peer closed with status {code}", code)
        else:
            self.inward.source = Source.ENDED
            self.close_code = code
            if self._ends_with_peer:
                self.outward.cut()

    def peer_ended(self, reason: str) -> None:
        """End of file or close_notify; in order only as the answer to our own Close frame."""
        if self.outward.done and not self.outward.deaf and self.inward.takes:
            self.inward.source = Source.ENDED
        elif self.inward.takes:
            self._abort(reason)

    def peer_failed(self, reason: str) -> None:
        """The peer cannot be read."""
        self.outward.deaf = True
        if self.inward.takes:
            self._abort(reason)

    def peer_deaf(self, reason: str) -> None:
        """The peer cannot be written to; a Close frame of its own may still be on the way."""
        self.outward.deaf = True
        self._deaf_reason = reason
        if self.inward.source is Source.OPEN:
            self.inward.source = Source.LAST

    def local_ended(self) -> None:
        """End of file of the UNIX side."""
        self.outward.source = Source.CUT if self.outward.source is Source.LAST else Source.ENDED
        if self._ends_with_local:
            self.inward.cut()
            self.inward.deaf = True

    def local_failed(self, reason: str) -> None:
        """The UNIX side cannot be read."""
        self.inward.deaf = True
        self._abort(reason)

    def local_deaf(self, reason: str) -> None:
        """The UNIX side cannot be written to; what it has sent still counts."""
        self.inward.deaf = True
        self.inward.cut()
        self._fail(reason, None)
        if self.outward.source is Source.OPEN:
            self.outward.source = Source.LAST

    def violated(self, code: int, reason: str) -> None:
        """The peer broke the protocol."""
        self._abort(reason, code)

    def give_up(self, reason: str) -> None:
        """Both sides are to be dropped as they are."""
        self._abort(reason)
        for way in (self.inward, self.outward):
            way.deaf = way.done = True

    def drained(self, way: Way) -> None:
        """Nothing more has arrived from the sender of a way, for now."""
        if way.source is Source.LAST:
            way.source = Source.CUT
            if way is self.inward:
                self._abort(self._deaf_reason)

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

    def expire(self) -> None:
        """`due_s` has come."""
        self.due_s = None
        if self.reason is None and self.inward.done:
            self.outward.source = Source.ENDED
        else:
            self.give_up(self.reason or "no Close frame came from the peer")

    def _settle_inward(self, waits: bool) -> list[Deed]:
        way = self.inward
        if way.done or way.takes or (waits and not way.deaf):
            return []
        way.done = True
        return [Deed.SHUT_LOCAL] if way.source is Source.ENDED and not way.deaf else []

    def _settle_outward(self, waits: bool) -> list[Deed]:
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
        if self.inward.done and self.outward.done:
            return False
        if self.reason is not None:
            return True
        return (self.inward.done and self.outward.takes) or (self.outward.done and self.inward.takes)

    def _abort(self, reason: str, code: int | None = None) -> None:
        self.inward.cut()
        self.outward.cut()
        self._fail(reason, code)

    def _fail(self, reason: str, code: int | None) -> None:
        if self.reason is None:
            self.reason = reason
            self.close_code = code
