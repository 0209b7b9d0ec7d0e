"""The two ways of a resumable flow: bytes with positions, and records between the frames (wire.flow).

What the UNIX side sends is kept until the peer has acknowledged it, and sent again over the next carrier. What has come
and was not taken by the UNIX socket is forgotten with its carrier, as it comes again.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from mtunnel_tx.stream.carrier import Carrier, ThreadTools
from mtunnel_tx.stream.ends import Sender
from mtunnel_tx.stream.flow import FlowTerms
from mtunnel_tx.stream.parkedvalue import ParkedValue
from mtunnel_tx.stream.resumableends import ResumableEnds
from mtunnel_tx.stream.ways import Inward, Outward
from mtunnel_tx.wire.flow import Receiving, Sending
from mtunnel_tx.wire.frames import Decoder, Event
from mtunnel_tx.wire.records import FlowRecord, RecordKind, parse_record, record_frame


class ResumableOutward(Outward):
    """See the module. `sending`: its positions."""

    _keeps = True
    _batch_frames = 32  # the room of a chunk, where reads bring less than whole frames
    _ends: ResumableEnds

    def __init__(self, local: socket.socket, ends: ResumableEnds, *, terms: FlowTerms, tools: ThreadTools) -> None:
        super().__init__(local, ends, role=terms.role, limits=terms.limits, tools=tools)
        assert terms.window_bytes is not None, "only resumable flows have a window"
        self.sending = Sending(terms.role, tools.chunks, terms.window_bytes)

    def restore(self, value: ParkedValue) -> None:
        """Go on, parked, where another process has stopped."""
        self.position = value.sent
        self.sending.restore(value.acked, value.kept, value.ended_at)
        self.sending.is_delivered = value.is_end_delivered

    @property
    def owes(self) -> bool:
        undelivered = self.sending.ended_at is not None and not self.sending.is_delivered
        return undelivered or self.sending.kept_bytes > 0 or not self.sending.is_synced

    @property
    def progress(self) -> int:
        return self.sending.acked

    @property
    def kept_bytes(self) -> int:
        return self.sending.kept_bytes

    @property
    def reads(self) -> bool:
        return self.sending.takes and super().reads

    def say(self, frame: bytes) -> None:
        """Send a record, or what else has no position."""
        if frame:
            self._write(frame)

    def say_end_record(self) -> None:
        self.say(self.sending.end())

    def say_close(self) -> None:
        if self._ends.reason is not None:
            self.say(record_frame(self._role, FlowRecord(RecordKind.ABORTED, reason=self._ends.reason)))
        super().say_close()

    def acknowledge(self, position: int) -> None:
        """`a N` came: there may be room, or something to be sent again. Raises: FrameError: 1002: it does not fit."""
        self._side.own()
        self.sending.acknowledge(position)
        self.again = True

    def give_back(self) -> None:
        super().give_back()
        self.sending.give_back()

    def detach(self) -> None:
        super().detach()
        self.sending.park()

    def drop(self) -> None:
        """The flow is over; its last bytes may still wait for the peer."""
        self._side.own()
        self.sending.drop()

    def _may_pull(self) -> bool:
        return self.sending.has_again or (self.sending.takes and super()._may_pull())

    def _pull(self) -> bool:
        again = self.sending.next_again()
        if again is None:
            return super()._pull()
        self._write(again)
        return True

    def _most_frames(self) -> int:
        return min(super()._most_frames(), self.sending.free_frames)

    def _note_sent(self, sizes_bytes: Sequence[int]) -> None:
        self.sending.note_sent(sizes_bytes)

    def _room(self) -> memoryview:
        return self.sending.room()

    def _frame(self, size_bytes: int) -> memoryview:
        return self.sending.add(size_bytes)


class ResumableInward(Inward):
    """See the module. Args: outward: where acknowledgements go. `receiving`: its positions."""

    _ends: ResumableEnds

    def __init__(
        self, local: socket.socket, ends: ResumableEnds, outward: ResumableOutward, *, terms: FlowTerms,
        tools: ThreadTools,
    ) -> None:  # fmt: skip
        super().__init__(local, ends, limits=terms.limits, tools=tools)
        assert terms.window_bytes is not None, "only resumable flows have a window"
        self.receiving = Receiving(terms.role, terms.window_bytes)
        self._outward = outward
        self._owes_delivered = False
        self._now = tools.now

    def restore(self, taken: int, *, is_end_passed: bool) -> None:
        """Go on, parked, where another process has stopped."""
        self.position = taken
        self._forgotten_bytes = -taken
        receiving = self.receiving
        receiving.arrived = receiving.taken = receiving.told = taken
        receiving.is_delivered = is_end_passed

    def attach(self, carrier: Carrier) -> None:
        super().attach(carrier)
        if not self._outward.sending.is_synced:
            self._outward.say(self.receiving.say_taken())

    def rewind(self) -> None:
        super().rewind()
        self.receiving.park()
        self.ack_due_s = None
        self._owes_delivered = False

    def acknowledge(self, now_s: float) -> None:
        """Tell the peer what was taken and passed on, where that is due and the carrier has room for it."""
        if self._outward.sending.is_synced and not self._outward.waits:
            if self.receiving.is_due(now_s):
                self._outward.say(self.receiving.say_taken())
            if self._owes_delivered:
                self._owes_delivered = False
                self.deliver()
        self.ack_due_s = None if self._outward.waits else self.receiving.due_s

    def deliver(self) -> None:
        """The peer's end was passed on."""
        self._outward.say(self.receiving.deliver())

    def _note_arrived(self) -> None:
        if self._counts:
            self.receiving.arrive(self.arrived_bytes - self.receiving.arrived)

    def _hear(self, decoder: Decoder) -> bool:
        if decoder.event is Event.RECORD:
            self._obey(parse_record(decoder.control))
        return super()._hear(decoder)

    def _obey(self, record: FlowRecord) -> None:
        """Raises: FrameError: it does not fit."""
        match record.kind:
            case RecordKind.ACKNOWLEDGED:
                self._outward.acknowledge(record.position)
            case RecordKind.DELIVERED:
                self._outward.sending.deliver()
                self._ends.delivered()
            case RecordKind.ABORTED:
                self._ends.peer_gave_up(record.reason)
            case RecordKind.POSITION if self._counts:
                self.receiving.check_position(record.position)
            case RecordKind.ENDED if self._counts:
                self._end(record.position)

    @property
    def _counts(self) -> bool:
        """Whether positions matter: not where the UNIX side has ended both ways."""
        return self._ends.inward.sender is not Sender.CUT

    def _end(self, position: int) -> None:
        """`e N` came. Where that is an old tale, one answer is owed, however often it is told to us."""
        self.receiving.end(position)
        if self.receiving.is_delivered:
            self._owes_delivered = True
        else:
            self._ends.peer_ended()

    def _push(self) -> None:
        if self._ends.inward.done:
            self._payload.drop()
        else:
            super()._push()

    def _note_taken(self, size_bytes: int) -> None:
        super()._note_taken(size_bytes)
        self.receiving.take(size_bytes, self._now())
