"""Flows over connections that are cut anywhere: every byte arrives once, and so do both ends."""

import os
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.wire.flow import ACK_S, LEAST_CHARGE_BYTES, Receiving, Sending
from mtunnel_tx.wire.frames import HEADER_ROOM_BYTES, SENT_PAYLOAD_BYTES, Decoder, Event, FrameError, Role, unmask_bytes
from mtunnel_tx.wire.kept import CHUNK_BYTES, Chunks
from mtunnel_tx.wire.records import RecordKind, parse_record
from tests.leaks import memory_bytes

WINDOW = 1 << 20
OTHER = {Role.CLIENT: Role.SERVER, Role.SERVER: Role.CLIENT}


class End:
    """One end of a flow as a relay would run it, with a UNIX side that is a string of bytes."""

    def __init__(self, role, content, chunks):
        self.role = role
        self.content = content
        self.read = 0
        self.sending = Sending(role, chunks, WINDOW)
        self.receiving = Receiving(role, WINDOW)
        self.decoder = Decoder(role, 1 << 27, records=True)
        self.arrived = bytearray()
        self.sink = bytearray()
        self.is_shut = False
        self.wire = bytearray()

    @property
    def is_over(self):
        return self.sending.is_delivered and self.receiving.is_delivered

    def pull(self, size):
        """Read from the UNIX side and send."""
        while (again := self.sending.next_again()) is not None:
            self.wire += again
        if not self.sending.takes:
            return
        piece = self.content[self.read : self.read + min(size, SENT_PAYLOAD_BYTES)]
        if piece:
            self.sending.room()[HEADER_ROOM_BYTES : HEADER_ROOM_BYTES + len(piece)] = piece
            self.read += len(piece)
            self.wire += self.sending.add(len(piece))
        else:
            self.wire += self.sending.end()

    def hear(self, data):
        position = 0
        while position < len(data):
            position = self.decoder.step(data, position, len(data))
            if self.decoder.event is Event.PAYLOAD:
                self.receiving.arrive(position - self.decoder.begin)
                self.arrived += unmask_bytes(bytes(data[self.decoder.begin : position]), self.decoder.mask)
            elif self.decoder.event is Event.RECORD:
                self.obey(parse_record(self.decoder.control))

    def obey(self, record):
        {
            RecordKind.ACKNOWLEDGED: lambda: self.sending.acknowledge(record.position),
            RecordKind.POSITION: lambda: self.receiving.check_position(record.position),
            RecordKind.ENDED: lambda: self.receiving.end(record.position),
            RecordKind.DELIVERED: self.sending.deliver,
        }[record.kind]()

    def push(self, size, now_s):
        """Let the UNIX side take some bytes, then its end."""
        piece, self.arrived = self.arrived[:size], self.arrived[size:]
        self.sink += piece
        self.receiving.take(len(piece), now_s)
        if self.receiving.is_due(now_s) and self.sending.is_synced:
            self.wire += self.receiving.say_taken()
        if self.receiving.ended_at == self.receiving.taken and self.sending.is_synced and not self.sending.has_again:
            self.is_shut = True
            self.wire += self.receiving.deliver()
            self.receiving.ended_at = None

    def cut(self):
        self.wire.clear()
        self.arrived.clear()
        self.sending.park()
        self.receiving.park()
        self.decoder = Decoder(self.role, 1 << 27, records=True)

    def attach(self):
        self.wire += self.receiving.say_taken()


def join(seed, sizes, cuts):
    """Two ends, moved by chance, cut so many times. Returns: both, when both ways are over."""
    chance = random.Random(seed)
    chunks = Chunks()
    ends = [End(role, chance.randbytes(size), chunks) for role, size in zip(Role, sizes, strict=True)]
    now_s = 0.0
    while not all(end.is_over for end in ends):
        now_s += chance.choice([0.0, 0.001, 0.03])
        end, other = chance.sample(ends, 2)
        act = chance.choice(["pull", "deliver", "deliver", "push", "cut"])
        if act == "pull":
            end.pull(chance.choice([1, 100, 5000, SENT_PAYLOAD_BYTES]))
        elif act == "deliver":
            size = chance.choice([1, 13, 4096, 1 << 20])
            data, end.wire = end.wire[:size], end.wire[size:]
            other.hear(data)
        elif act == "push":
            end.push(chance.choice([1, 999, 1 << 20]), now_s)
        elif cuts:
            cuts -= 1
            for one in ends:
                one.cut()
            for one in ends:
                one.attach()
        for one in ends:
            assert one.sending.kept_bytes <= WINDOW + SENT_PAYLOAD_BYTES
    return ends, chunks


class FlowProperties(SynchronousTestCase):
    @given(
        seed=st.integers(0, 1 << 32),
        sizes=st.tuples(*[st.sampled_from([0, 1, 77, 5000, 200_000, 3_000_000])] * 2),
        cuts=st.integers(0, 40),
    )
    @settings(deadline=None, max_examples=60)
    def test_every_byte_arrives_once_whatever_is_cut(self, seed, sizes, cuts):
        (one, other), chunks = join(seed, sizes, cuts)
        self.assertEqual(bytes(one.sink), other.content)
        self.assertEqual(bytes(other.sink), one.content)
        self.assertTrue(one.is_shut and other.is_shut)
        for end in (one, other):
            self.assertEqual(end.sending.kept_bytes, 0)
            end.sending.drop()
        self.assertEqual(chunks.lent, 0)


class SendingTests(SynchronousTestCase):
    def setUp(self):
        self.chunks = Chunks()
        self.sending = Sending(Role.SERVER, self.chunks, WINDOW)

    def send(self, data):
        self.sending.room()[HEADER_ROOM_BYTES : HEADER_ROOM_BYTES + len(data)] = data
        return bytes(self.sending.add(len(data)))

    def again(self):
        frames = []
        while (frame := self.sending.next_again()) is not None:
            frames.append(bytes(frame))
        return frames

    def test_reading_stops_when_the_window_is_full(self):
        for _ in range(WINDOW // SENT_PAYLOAD_BYTES):
            self.assertTrue(self.sending.takes)
            self.send(bytes(SENT_PAYLOAD_BYTES))
        self.assertFalse(self.sending.takes)
        self.sending.acknowledge(1)
        self.assertTrue(self.sending.takes)

    def test_small_frames_count_for_what_they_cost(self):
        before_bytes = memory_bytes(os.getpid())
        while self.sending.takes:
            self.assertGreater(self.sending.free_frames, 0)
            self.send(b"sixteen bytes...")
        self.assertEqual(self.sending.kept_bytes, WINDOW // LEAST_CHARGE_BYTES * 16)
        self.assertLess(memory_bytes(os.getpid()) - before_bytes, 4 * WINDOW)
        self.sending.acknowledge(15)
        self.assertFalse(self.sending.takes)
        self.sending.acknowledge(16)
        self.assertTrue(self.sending.takes)
        self.assertEqual(self.sending.free_frames, 1)

    def test_going_on_in_the_middle_of_a_frame(self):
        self.send(b"abcdef")
        second = self.send(b"ghi")
        self.sending.park()
        self.assertFalse(self.sending.takes)
        self.sending.acknowledge(4)
        self.assertEqual(self.again(), [b"\x81\x03p 4", b"\x82\x02ef", second])
        self.assertTrue(self.sending.takes)

    def test_frames_that_somebody_else_has_made_go_out_again_as_they_are(self):
        frames, room, at = [b"\x82\x03abc", b"\x82\x7e\x00\x80" + bytes(128)], self.sending.room(), 0
        for size, frame in zip((3, 128), frames, strict=True):
            end = at + HEADER_ROOM_BYTES + size
            room[end - len(frame) : end] = frame
            at = end
        self.sending.note_sent((3, 128))
        third = self.send(b"def")
        self.assertEqual((self.sending.sent, self.sending.kept_bytes), (134, 134))
        self.sending.park()
        self.sending.acknowledge(3)
        self.assertEqual(self.again(), [b"\x81\x03p 3", frames[1], third])

    def test_an_end_is_said_again_until_it_was_delivered(self):
        self.send(b"abc")
        self.assertEqual(self.sending.end(), b"\x81\x03e 3")
        self.sending.park()
        self.sending.acknowledge(3)
        self.assertEqual(self.again(), [b"\x81\x03p 3", b"\x81\x03e 3"])
        self.sending.deliver()
        self.sending.park()
        self.sending.acknowledge(3)
        self.assertEqual(self.again(), [b"\x81\x03p 3"])

    def test_an_end_while_parked_is_said_with_the_rest(self):
        self.sending.park()
        self.assertEqual(self.sending.end(), b"")
        self.sending.acknowledge(0)
        self.assertEqual(self.again(), [b"\x81\x03p 0", b"\x81\x03e 0"])

    def test_positions_that_cannot_be(self):
        self.send(b"abc")
        self.sending.acknowledge(2)
        for position in (1, 4):
            self.assertEqual(self.assertRaises(FrameError, self.sending.acknowledge, position).code, 1002)
        self.assertRaises(FrameError, self.sending.deliver)
        self.sending.end()
        self.assertRaises(FrameError, self.sending.deliver)

    def test_what_is_yet_to_be_sent_again_cannot_be_acknowledged(self):
        """Its memory would go to another flow before it was sent."""
        for data in (b"abc", b"def", b"ghi"):
            self.send(data)
        self.sending.park()
        self.sending.acknowledge(1)
        self.assertEqual([bytes(self.sending.next_again()) for _ in range(2)], [b"\x81\x03p 1", b"\x82\x02bc"])
        self.sending.acknowledge(2)
        self.sending.acknowledge(3)
        for position in (4, 9):
            self.assertEqual(self.assertRaises(FrameError, self.sending.acknowledge, position).code, 1002)
        self.assertEqual(self.again(), [b"\x82\x03def", b"\x82\x03ghi"])
        self.sending.acknowledge(9)
        self.assertEqual(self.chunks.lent, 0)

    def test_an_idle_way_takes_no_memory(self):
        chunks = Chunks()
        sending = Sending(Role.SERVER, chunks, WINDOW)
        sending.room()
        self.assertEqual(chunks.lent, 1)
        sending.give_back()
        self.assertEqual(chunks.lent, 0)
        sending.room()
        sending.park()
        self.assertEqual(chunks.lent, 0)

    def test_memory_is_given_back(self):
        for _ in range(20):
            self.send(bytes(SENT_PAYLOAD_BYTES))
        self.assertGreaterEqual(self.chunks.lent * CHUNK_BYTES, 20 * SENT_PAYLOAD_BYTES)
        self.sending.acknowledge(self.sending.sent)
        self.assertEqual(self.chunks.lent, 0)
        self.send(b"x")
        self.sending.drop()
        self.assertEqual(self.chunks.lent, 0)


class ReceivingTests(SynchronousTestCase):
    def setUp(self):
        self.receiving = Receiving(Role.SERVER, WINDOW)

    def test_acknowledgements_come_by_bytes_or_by_time(self):
        self.receiving.arrive(WINDOW)
        self.receiving.take(WINDOW // 4 - 1, 10.0)
        self.assertFalse(self.receiving.is_due(10.0 + ACK_S / 2))
        self.assertTrue(self.receiving.is_due(10.0 + ACK_S))
        self.receiving.take(1, 10.0)
        self.assertTrue(self.receiving.is_due(10.0))
        self.assertEqual(self.receiving.say_taken(), b"\x81\x08a 262144")
        self.assertFalse(self.receiving.is_due(99.0))

    def test_what_was_not_taken_comes_again(self):
        self.receiving.arrive(10)
        self.receiving.take(4, 0.0)
        self.receiving.park()
        self.receiving.check_position(4)
        self.assertRaises(FrameError, self.receiving.check_position, 10)

    def test_an_end_that_does_not_fit(self):
        self.receiving.arrive(10)
        self.assertEqual(self.assertRaises(FrameError, self.receiving.end, 9).code, 1002)
        self.receiving.end(10)
        self.assertRaises(FrameError, self.receiving.arrive, 1)
