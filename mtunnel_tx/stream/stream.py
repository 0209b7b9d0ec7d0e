"""One websocket joined with one UNIX socket, from the first byte to the end of both, without ever blocking.

`Stream.service` is called when a socket is ready or a time has come, on one thread at a time; then the caller asks
`interest` and `next_call_s` what to wait for. The bytes are moved in `ways.py`, the rules are in `ends.py`; here both
come together, with the clock and with the end of the peer's socket.
"""

from __future__ import annotations

import contextlib
import socket
from enum import Enum, auto
from typing import NamedTuple

from mtunnel_tx.stream.ends import Deed, Ends, Sender
from mtunnel_tx.stream.engine import StreamEnded, StreamFailed
from mtunnel_tx.stream.limits import StreamLimits, Watch
from mtunnel_tx.stream.sides import Side, is_peer_dead, receive, reset_on_close
from mtunnel_tx.stream.ways import BATCHES, Inward, Outward, Tools
from mtunnel_tx.wire.frames import Role

__all__ = ["Interest", "Phase", "Stream", "StreamLimits", "Tools"]


class Interest(NamedTuple):
    """What to wait for on the two sockets."""

    peer_reads: bool
    peer_writes: bool
    local_reads: bool
    local_writes: bool


class Phase(Enum):
    """The peer's socket: TALKING, then FLUSHING our last bytes, then LINGERING for its end, then CLOSED."""

    TALKING = auto()
    FLUSHING = auto()
    LINGERING = auto()
    CLOSED = auto()


class Stream:
    """See the module.

    Args: peer, local: connected, non-blocking sockets. side: speaks over `peer`. The owner closes both sockets, when
    `is_peer_closed` and `is_local_over`.
    """

    def __init__(
        self, *, peer: socket.socket, side: Side, local: socket.socket, ends: Ends, role: Role, limits: StreamLimits,
        tools: Tools,
    ) -> None:  # fmt: skip
        self.peer = peer
        self.local = local
        self.ends = ends
        self.phase = Phase.TALKING
        self._limits = limits
        self._blocks = tools.blocks
        self._now = tools.now
        self._inward = Inward(side, local, ends, role=role, limits=limits, tools=tools)
        self._outward = Outward(side, local, ends, role=role, limits=limits, tools=tools)
        self._inward_watch = Watch(limits.stall_s)
        self._outward_watch = Watch(limits.stall_s)
        self._linger_due_s: float | None = None
        self._sweep_s = limits.dead_peer_s / 4
        self._sweep_due_s = self._now() + self._sweep_s

    # What the owner asks

    @property
    def bytes_in(self) -> int:
        """Payload bytes from the peer."""
        return self._inward.carried_bytes

    @property
    def bytes_out(self) -> int:
        """Payload bytes to the peer."""
        return self._outward.carried_bytes

    @property
    def carried_bytes(self) -> int:
        """Payload bytes, both ways together."""
        return self.bytes_in + self.bytes_out

    @property
    def is_local_over(self) -> bool:
        """The UNIX socket may be closed."""
        return self.ends.local_over

    @property
    def is_peer_over(self) -> bool:
        """The peer has been told everything."""
        return self.phase in (Phase.LINGERING, Phase.CLOSED)

    @property
    def is_peer_closed(self) -> bool:
        """The peer's socket may be closed."""
        return self.phase is Phase.CLOSED

    @property
    def is_ending(self) -> bool:
        """One way at least has seen its end; before that there is nothing to tell anybody."""
        return self.ends.inward.sender is not Sender.OPEN or self.ends.outward.sender is not Sender.OPEN

    def interest(self) -> Interest:
        """What to wait for."""
        return Interest(
            peer_reads=self.phase is Phase.LINGERING or (self.phase is Phase.TALKING and self._inward.reads),
            peer_writes=self._outward.waits,
            local_reads=self._outward.reads,
            local_writes=self._inward.waits,
        )

    def next_call_s(self) -> float | None:
        """When `service` is to be called even if no socket is ready; 0: at once; None: it is over."""
        if self.is_local_over and self.is_peer_closed:
            return None
        earliest_s = 0.0 if self._inward.again or self._outward.again else self._sweep_due_s
        for due_s in (
            self.ends.due_s,
            self._inward.bucket.due_s,
            self._outward.bucket.due_s,
            self._inward_watch.due_s,
            self._outward_watch.due_s,
            self._linger_due_s,
        ):
            if due_s is not None and due_s < earliest_s:
                earliest_s = due_s
        return earliest_s

    # What the owner does

    def service(self, *, peer_event: bool = True, local_event: bool = True) -> None:
        """Move what can be moved.

        Args: peer_event, local_event: the socket may have become ready; False saves a useless look at it.
        """
        inward, outward, now_s = self._inward, self._outward, self._now()
        local_event, outward.again = local_event or outward.again, False
        peer_event, inward.again = peer_event or inward.again, False
        self._expire(now_s)
        if local_event or outward.waits:
            outward.carry(now_s)
        if peer_event or inward.waits or self.ends.inward.sender is Sender.LAST:
            inward.carry(now_s)
            outward.flush()
        if inward.pings:
            outward.answer(inward.pings)
        if self.is_ending:
            self._settle(now_s)
        self._watch(now_s)
        inward.give_back()
        outward.give_back()

    def give_up(self, reason: str) -> None:
        """End both ways as they are; to be followed by `service`."""
        self.ends.give_up(reason)
        if self.phase is Phase.LINGERING:
            self._drop_peer()

    def destroy(self, reason: str) -> None:
        """End everything without a look at the sockets, after a failure that nobody expected."""
        self.ends.give_up(reason)
        self._inward.drop()
        self._inward.again = self._outward.again = False
        self._drop_peer()

    # Ends

    def _settle(self, now_s: float) -> None:
        if self.ends.inward.deaf:
            self._inward.drop()
        while deeds := self._conclude(now_s):
            for deed in deeds:
                self._do(deed)
        self._close_peer(now_s)

    def _conclude(self, now_s: float) -> list[Deed]:
        waits = {"inward_waits": self._inward.waits, "outward_waits": self._outward.waits}
        return self.ends.settle(**waits, now_s=now_s)

    def _do(self, deed: Deed) -> None:
        if deed is Deed.SAY_CLOSE:
            self._outward.say_close()
        else:
            with contextlib.suppress(OSError):
                self.local.shutdown(socket.SHUT_WR)

    def _close_peer(self, now_s: float) -> None:
        """Take the peer's socket through its phases.

        To close it with unread bytes inside would make a reset of it, which may overtake our last words.
        """
        if self.phase is Phase.TALKING and self.ends.peer_over:
            self._linger_due_s = now_s + self._limits.linger_s
            self.phase = Phase.FLUSHING
            self._outward.say_end()
        if self.phase is Phase.FLUSHING and not self._outward.waits:
            self._shut_peer()
        if self.phase is Phase.LINGERING:
            self._discard()

    def _shut_peer(self) -> None:
        if self.ends.outward.deaf:
            self._drop_peer()
            return
        self.phase = Phase.LINGERING
        with contextlib.suppress(OSError):
            self.peer.shutdown(socket.SHUT_WR)

    def _discard(self) -> None:
        try:
            for _ in range(BATCHES):
                if receive(self.peer, self._blocks.scratch) == 0:
                    return
        except (StreamEnded, StreamFailed):
            self._end_peer()

    def _drop_peer(self) -> None:
        reset_on_close(self.peer)
        self._end_peer()

    def _end_peer(self) -> None:
        self.phase = Phase.CLOSED
        self.ends.outward.deaf = True
        self._linger_due_s = None

    # Time

    def _expire(self, now_s: float) -> None:
        if self.ends.due_s is not None and now_s >= self.ends.due_s:
            self.ends.expire()
        if self._linger_due_s is not None and now_s >= self._linger_due_s:
            self._drop_peer()
        if now_s >= self._sweep_due_s:
            self._sweep_due_s = now_s + self._sweep_s
            if self.phase is Phase.TALKING and is_peer_dead(self.peer, self._limits.dead_peer_s):
                self.ends.carrier_failed("peer is gone: it acknowledges nothing")

    def _watch(self, now_s: float) -> None:
        inward, outward = self._inward, self._outward
        talks = self.phase is Phase.TALKING
        if self._inward_watch.look(waits=inward.waits, taken=inward.taken_bytes, now_s=now_s):
            self._stall("UNIX side takes no bytes", now_s)
        if self._outward_watch.look(waits=talks and outward.waits, taken=outward.taken_bytes, now_s=now_s):
            self._stall("peer takes no bytes", now_s)

    def _stall(self, reason: str, now_s: float) -> None:
        self.give_up(reason)
        self._settle(now_s)
