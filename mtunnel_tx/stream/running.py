"""A flow in the hands of a relay: moves bytes between its carrier and its UNIX socket, without ever blocking.

`RunningFlow.service` is called when a socket is ready or a time has come, by one thread at a time. Then the caller asks
`interest` and `next_call_s` what to wait for. The bytes are moved in `ways.py`, the rules of ends are in `ends.py`, the
carrier closes in `carrier.py`; here they meet, with the clock.

A flow may be without a carrier: before its first one; parked, between two of them (`Ends.parked`), when its UNIX socket
is neither read nor written; and at its end, when the UNIX socket takes the last bytes.
"""

from __future__ import annotations

import contextlib
import socket
from typing import NamedTuple

from mtunnel_tx.stream.carrier import Carrier, CarrierPhase, ThreadTools
from mtunnel_tx.stream.ends import Deed, Ends, Sender
from mtunnel_tx.stream.flow import FlowTerms
from mtunnel_tx.stream.limits import Watch
from mtunnel_tx.stream.parkedvalue import ParkedValue, park_way, unpark_way
from mtunnel_tx.stream.peer import PeerConnection
from mtunnel_tx.stream.resumableends import ResumableEnds
from mtunnel_tx.stream.resumableways import ResumableInward, ResumableOutward
from mtunnel_tx.stream.sides import reset_on_close
from mtunnel_tx.stream.ways import Inward, Outward
from mtunnel_tx.wire.frames import Role


class Interest(NamedTuple):
    """What to wait for on the two sockets."""

    peer_reads: bool
    peer_writes: bool
    local_reads: bool
    local_writes: bool


NO_INTEREST = Interest(False, False, False, False)


class RunningFlow:
    """See the module.

    Args: local: a connected, non-blocking UNIX socket; the owner closes it when `is_local_over`. value: where a parked
    flow goes on that was run elsewhere.
    `carrier`: None: it has none. The owner closes the socket of a carrier that it does not find there any more.
    """

    def __init__(
        self, local: socket.socket, terms: FlowTerms, tools: ThreadTools, value: ParkedValue | None = None
    ) -> None:
        limits = terms.limits
        self.local = local
        self.carrier: Carrier | None = None
        self._is_resumable = terms.window_bytes is not None
        self._terms = terms
        self._tools = tools
        self._now = tools.now
        self.ends, self._inward, self._outward = _make_ways(local, terms, tools)
        self._inward_watch = Watch(limits.stall_s)
        self._outward_watch = Watch(limits.stall_s)
        self.ends.carrier_detached("it has no carrier yet")
        if value is not None:
            self._restore(value)

    # What the owner asks

    @property
    def bytes_in(self) -> int:
        """Payload bytes from the peer."""
        return self._inward.arrived_bytes

    @property
    def bytes_taken(self) -> int:
        """Those of them that the UNIX socket has taken."""
        return self._inward.position

    @property
    def bytes_out(self) -> int:
        """Payload bytes to the peer."""
        return self._outward.position

    @property
    def kept_bytes(self) -> int:
        """Payload that is kept to be sent again over another carrier."""
        return self._outward.kept_bytes

    @property
    def is_local_over(self) -> bool:
        """The UNIX socket may be closed."""
        return self.ends.local_over

    @property
    def is_peer_over(self) -> bool:
        """The peer has been told everything, or cannot be told."""
        return self.ends.peer_over and (self.carrier is None or self.carrier.phase is CarrierPhase.LINGERING)

    @property
    def is_ending(self) -> bool:
        """One way at least has seen its end; before that there is nothing to tell anybody."""
        return self.ends.inward.sender is not Sender.OPEN or self.ends.outward.sender is not Sender.OPEN

    def interest(self) -> Interest:
        """What to wait for."""
        if self.ends.parked is not None:
            return NO_INTEREST
        inward, outward, carrier = self._inward, self._outward, self.carrier
        phase = carrier.phase if carrier is not None else CarrierPhase.CLOSED
        return Interest(
            peer_reads=phase is CarrierPhase.LINGERING or (phase is CarrierPhase.TALKING and inward.reads),
            peer_writes=outward.waits,
            local_reads=outward.reads,
            local_writes=inward.waits,
        )

    def next_call_s(self) -> float | None:
        """When `service` is to be called even if no socket is ready; 0: at once; None: not at all."""
        carrier, inward, outward = self.carrier, self._inward, self._outward
        if self.ends.parked is not None or (carrier is None and self.is_local_over):
            return None
        if inward.again or outward.again:
            return 0.0
        earliest_s = min(carrier.sweep_due_s, carrier.ping_due_s) if carrier is not None else None
        for due_s in (
            self.ends.due_s,
            inward.bucket.due_s,
            outward.bucket.due_s,
            inward.ack_due_s,
            self._inward_watch.due_s,
            self._outward_watch.due_s,
            carrier.linger_due_s if carrier is not None else None,
        ):
            if due_s is not None and (earliest_s is None or due_s < earliest_s):
                earliest_s = due_s
        return earliest_s

    # What the owner does

    def attach(self, peer: PeerConnection) -> bool:
        """Let a connection carry the flow; it takes the place of the carrier that there may be.

        Returns: False: the flow ends, and needs no carrier any more.
        """
        if self.ends.peer_over or (self.carrier is not None and not self.ends.can_change_carrier):
            reset_on_close(peer.sock)
            return False
        if self.carrier is not None:
            self._park(self.carrier)
        terms = self._terms
        carrier = self.carrier = Carrier(peer, terms.role, terms.limits, self._tools, records=self._is_resumable)
        self.ends.carrier_attached()
        self._outward.attach(carrier)
        self._inward.attach(carrier)
        return True

    def detach(self, reason: str) -> None:
        """Take the carrier away, unless the flow ends already; to be followed by `service`."""
        if self.carrier is not None and self.ends.can_change_carrier:
            self.ends.carrier_detached(reason)

    def service(self, *, peer_event: bool = True, local_event: bool = True) -> None:
        """Move what can be moved.

        Args: peer_event, local_event: the socket may have become ready; False saves a useless look at it.
        """
        ends, inward, outward, now_s = self.ends, self._inward, self._outward, self._now()
        if ends.parked is None:
            self._expire(now_s)
        if ends.parked is None:
            local_event, outward.again = local_event or outward.again, False
            peer_event, inward.again = peer_event or inward.again, False
            if local_event or outward.waits:
                outward.carry(now_s)
            if peer_event or inward.waits or ends.hears_out:
                inward.carry(now_s)
                inward.acknowledge(now_s)
                outward.flush()
            if inward.pings:
                outward.answer(inward.pings)
            if self.is_ending:
                self._settle(now_s)
            if self._may_ping and self.carrier is not None and self.carrier.is_silent(now_s):
                outward.ping()
            self._watch(now_s)
        if ends.parked is not None and self.carrier is not None:
            self._park(self.carrier)
        if ends.peer_over:
            outward.drop()
        inward.give_back()
        outward.give_back()

    @property
    def _may_ping(self) -> bool:
        """A plain flow that ends is short; a resumable one has to notice that its carrier is lost."""
        return self._is_resumable or not self.is_ending

    def give_up(self, reason: str) -> None:
        """End both ways as they are; to be followed by `service`."""
        self.ends.give_up(reason)
        if not self.ends.peer_over:
            self.ends.due_s = self._now() + self._terms.limits.linger_s
        if self.carrier is not None and self.carrier.phase is CarrierPhase.LINGERING:
            self._drop_carrier(self.carrier)

    def cancel(self, reason: str | None) -> None:
        """End both ways. Args: reason: None: the peer says that it has ended in order, and waits for nothing more."""
        if reason is None and self.ends.end_by_peer():
            return
        self.give_up(reason or "the peer has ended the flow")

    def take_away(self) -> ParkedValue | None:
        """Let another process go on with a parked flow. Returns: None: it is not parked, or is over."""
        inward, outward, ends = self._inward, self._outward, self.ends
        if ends.parked is None or self.carrier is not None or ends.peer_over:
            return None
        assert isinstance(inward, ResumableInward), "only resumable flows go on elsewhere"
        assert isinstance(outward, ResumableOutward), "only resumable flows go on elsewhere"
        value = ParkedValue(
            inward=park_way(ends.inward),
            outward=park_way(ends.outward),
            taken=inward.position,
            is_end_passed=inward.receiving.is_delivered,
            sent=outward.position,
            acked=outward.sending.acked,
            ended_at=outward.sending.ended_at,
            is_end_delivered=outward.sending.is_delivered,
            kept=outward.sending.kept(),
        )
        outward.drop()
        return value

    def _restore(self, value: ParkedValue) -> None:
        inward, outward, ends = self._inward, self._outward, self.ends
        assert isinstance(inward, ResumableInward), "only resumable flows go on elsewhere"
        assert isinstance(outward, ResumableOutward), "only resumable flows go on elsewhere"
        assert isinstance(ends, ResumableEnds), "only resumable flows go on elsewhere"
        ends.restore(unpark_way(value.inward), unpark_way(value.outward), value)
        inward.restore(value.taken, is_end_passed=value.is_end_passed)
        outward.restore(value)

    def destroy(self, reason: str) -> None:
        """End everything without a look at the sockets, after a failure that nobody expected."""
        self.ends.outward.deaf = True
        self.ends.give_up(reason)
        self._inward.drop()
        self._outward.drop()
        self._inward.again = self._outward.again = False
        if self.carrier is not None:
            self._drop_carrier(self.carrier)

    # Ends

    def _settle(self, now_s: float) -> None:
        if self.ends.inward.deaf:
            self._inward.drop()
        while deeds := self._conclude(now_s):
            for deed in deeds:
                self._do(deed)
        if self.carrier is not None:
            self._end_carrier(self.carrier, now_s)

    def _conclude(self, now_s: float) -> list[Deed]:
        waits = {"inward_waits": self._inward.waits, "outward_waits": self._outward.waits}
        return self.ends.settle(**waits, now_s=now_s)

    def _do(self, deed: Deed) -> None:
        match deed:
            case Deed.SAY_CLOSE:
                self._outward.say_close()
            case Deed.SAY_END:
                self._outward.say_end_record()
            case Deed.SHUT_LOCAL:
                with contextlib.suppress(OSError):
                    self.local.shutdown(socket.SHUT_WR)
                self._inward.deliver()

    def _end_carrier(self, carrier: Carrier, now_s: float) -> None:
        """Take the carrier through its phases."""
        if carrier.phase is CarrierPhase.TALKING and self.ends.peer_over:
            carrier.flush(now_s)
            self._outward.say_end()
        if carrier.phase is CarrierPhase.FLUSHING and not self._outward.waits:
            if self.ends.outward.deaf:
                carrier.drop()
            else:
                carrier.linger()
        if carrier.phase is CarrierPhase.LINGERING:
            carrier.discard()
        if carrier.phase is CarrierPhase.CLOSED:
            self._let_go()

    def _drop_carrier(self, carrier: Carrier) -> None:
        carrier.drop()
        self._let_go()

    def _let_go(self) -> None:
        """The carrier is closed."""
        self._inward.detach()
        self._outward.detach()
        self.carrier = None

    def _park(self, carrier: Carrier) -> None:
        """Go on without a carrier: what the UNIX socket has not taken will come again."""
        self._inward.rewind()
        self._inward_watch.reset()
        self._outward_watch.reset()
        self._drop_carrier(carrier)

    # Time

    def _expire(self, now_s: float) -> None:
        if self.ends.due_s is not None and now_s >= self.ends.due_s:
            self.ends.expire()
        carrier = self.carrier
        if carrier is None:
            return
        if carrier.linger_due_s is not None and now_s >= carrier.linger_due_s:
            self._drop_carrier(carrier)
        elif now_s >= carrier.sweep_due_s:
            reason = carrier.sweep(now_s, is_read=not self._inward.waits)
            if reason is not None:
                self.ends.carrier_failed(reason)

    def _watch(self, now_s: float) -> None:
        inward, outward, carrier = self._inward, self._outward, self.carrier
        talks = carrier is not None and carrier.phase is CarrierPhase.TALKING
        if self._inward_watch.look(waits=inward.waits, taken=inward.position, now_s=now_s):
            self._stall("UNIX side takes no bytes", now_s)
        if self._outward_watch.look(waits=talks and outward.owes, taken=outward.progress, now_s=now_s):
            self._stall("peer takes no bytes", now_s)

    def _stall(self, reason: str, now_s: float) -> None:
        self.give_up(reason)
        self._settle(now_s)


def _make_ways(local: socket.socket, terms: FlowTerms, tools: ThreadTools) -> tuple[Ends, Inward, Outward]:
    """The rules of a flow's ends, and its two ways."""
    limits = terms.limits
    if terms.window_bytes is not None:
        ends = ResumableEnds(
            half_close_s=limits.half_close_s,
            ends_with_local=terms.ends_with_local,
            ends_with_peer=terms.ends_with_peer,
            is_client=terms.role is Role.CLIENT,
        )
        outward = ResumableOutward(local, ends, terms=terms, tools=tools)
        return ends, ResumableInward(local, ends, outward, terms=terms, tools=tools), outward
    plain = Ends(
        half_close_s=limits.half_close_s,
        ends_with_local=terms.ends_with_local,
        ends_with_peer=terms.ends_with_peer,
    )
    inward = Inward(local, plain, limits=limits, tools=tools)
    return plain, inward, Outward(local, plain, role=terms.role, limits=limits, tools=tools)
