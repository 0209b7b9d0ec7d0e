"""The frame decoder against wsproto's, which knows nothing of ours."""

import itertools
import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from wsproto import frame_protocol as theirs

from mtunnel_tx.wire.frames import (
    CLOSE_NO_STATUS,
    HEADER_ROOM_BYTES,
    SENT_PAYLOAD_BYTES,
    Decoder,
    Event,
    FrameError,
    Opcode,
    Role,
    close_frame,
    frame_header,
    pong_frame,
    unmask_bytes,
)

LIMIT = 1 << 20
MASK = b"\x11\x22\x33\x44"


def raw(first, payload=b"", mask=MASK, length=None):
    """A frame by hand, so that it may be wrong."""
    bit = 0x80 if mask else 0
    size = len(payload) if length is None else length
    if size < 126:
        head = bytes([first, bit | size])
    elif size < 65536:
        head = bytes([first, bit | 126]) + struct.pack(">H", size)
    else:
        head = bytes([first, bit | 127]) + struct.pack(">Q", size)
    return head + (mask or b"") + unmask_bytes(payload, mask)


def decode(pieces, role=Role.SERVER, limit=LIMIT):
    """Everything the decoder finds: payload joined, control frames in order."""
    decoder, payload, controls = Decoder(role, limit), b"", []
    for piece in pieces:
        buffer, position = bytearray(b"?" + piece + b"?"), 1
        while position < len(buffer) - 1:
            position = decoder.step(buffer, position, len(buffer) - 1)
            if decoder.event is Event.PAYLOAD:
                payload += unmask_bytes(bytes(buffer[decoder.begin : position]), decoder.mask)
            elif decoder.event is not Event.NOTHING:
                controls.append((decoder.event, decoder.control, len(payload)))
    return payload, controls


def split(data, cuts):
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


sizes = st.one_of(
    st.integers(0, 300), st.sampled_from([125, 126, 127, 65535, 65536, 131072]), st.integers(65530, 65545)
)
messages = st.lists(
    st.one_of(
        st.tuples(st.just("data"), sizes, st.booleans()),
        st.tuples(st.sampled_from(["ping", "pong"]), st.integers(0, 125), st.just(True)),
    ),
    max_size=6,
)


class DecoderProperties(SynchronousTestCase):
    @given(messages=messages, cuts=st.lists(st.integers(0, 1 << 18), max_size=12), client=st.booleans())
    @settings(deadline=None, max_examples=80)
    def test_what_wsproto_sends_in_any_split(self, messages, cuts, client):
        sender = theirs.FrameProtocol(client=client, extensions=[])
        data, payload, controls = b"", b"", []
        for kind, size, final in messages:
            content = (b"0123456789abcdefX" * (size // 17 + 1))[:size]
            if kind == "data":
                data += sender.send_data(content, fin=final)
                payload += content
            else:
                data += getattr(sender, kind)(content)
                controls.append((Event[kind.upper()], content, len(payload)))
        role = Role.SERVER if client else Role.CLIENT
        self.assertEqual(decode(split(data, cuts), role), (payload, controls))

    @given(size=sizes, client=st.booleans())
    @settings(deadline=None, max_examples=60)
    def test_wsproto_reads_our_headers(self, size, client):
        payload = bytes(size)
        role = Role.CLIENT if client else Role.SERVER
        receiver = theirs.FrameProtocol(client=not client, extensions=[])
        header = frame_header(role, Opcode.BINARY, size)
        self.assertLessEqual(len(header), HEADER_ROOM_BYTES)
        receiver.receive_bytes(header + payload + pong_frame(role, b"x" * (size % 126)) + close_frame(role, 1009))
        frames = list(receiver.received_frames())
        joined = b"".join(bytes(f.payload) for f in frames if f.opcode is theirs.Opcode.BINARY)
        self.assertEqual(joined, payload)
        self.assertEqual(bytes(frames[-2].payload), b"x" * (size % 126))
        self.assertEqual(frames[-1].payload, (1009, ""))

    @given(data=st.binary(max_size=200), cut=st.integers(0, 200))
    @settings(deadline=None, max_examples=100)
    def test_rubbish_gives_the_same_in_one_piece_and_in_single_bytes(self, data, cut):
        def outcome(pieces):
            try:
                return decode(pieces)
            except FrameError as error:
                return error.code

        whole = outcome([data])
        self.assertEqual(outcome([bytes([byte]) for byte in data]), whole)
        self.assertEqual(outcome([data[:cut], data[cut:]]), whole)

    @given(data=st.binary(max_size=300), mask=st.binary(min_size=4, max_size=4))
    @settings(deadline=None, max_examples=50)
    def test_unmask_is_the_plain_definition(self, data, mask):
        self.assertEqual(unmask_bytes(data, mask), bytes(b ^ mask[i & 3] for i, b in enumerate(data)))
        self.assertEqual(unmask_bytes(data, None), data)


class Violations(SynchronousTestCase):
    def assert_code(self, code, data, role=Role.SERVER, limit=LIMIT):
        for pieces in ([data], [bytes([byte]) for byte in data]):
            error = self.assertRaises(FrameError, decode, pieces, role, limit)
            self.assertEqual(error.code, code, data[:20])

    def test_protocol_errors(self):
        for data in (
            raw(0x82, b"x", mask=None),
            raw(0xC2, b"x"),
            raw(0xA2, b"x"),
            raw(0x92, b"x"),
            *(raw(0x80 | opcode) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
            raw(0x09, b"x"),
            raw(0x08),
            raw(0x89, b"x" * 126),
            raw(0x80, b"x"),
            raw(0x02, b"x") + raw(0x82, b"y"),
            raw(0x88, b"x"),
            *(raw(0x88, struct.pack(">H", code)) for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000)),
            bytes([0x82, 0xFE, 0, 125]) + MASK,
            bytes([0x82, 0xFF]) + struct.pack(">Q", 65535) + MASK,
            bytes([0x82, 0xFF]) + struct.pack(">Q", 1 << 63) + MASK,
        ):
            self.assert_code(1002, data)
        self.assert_code(1002, raw(0x82, b"x"), Role.CLIENT)

    def test_two_bytes_are_enough_to_see_it(self):
        for start in (b"\xc2\x80", b"\x82\x01", b"\x83\x80", b"\x09\x80", b"\x89\xfe", b"\x80\x80"):
            self.assert_code(1002, start)

    def test_declared_length(self):
        self.assert_code(1009, raw(0x82, length=LIMIT + 1))
        payload = bytes(LIMIT)
        self.assertEqual(decode([raw(0x82, payload)])[0], payload)

    def test_a_fragmented_message_may_be_larger_than_a_frame(self):
        data = raw(0x02, bytes(700)) + raw(0x00, bytes(700)) + raw(0x89, b"?") + raw(0x80, bytes(700))
        self.assertEqual(decode([raw(0x81, b"text")]), (b"text", []))
        self.assertEqual(decode([data], limit=1000), (bytes(2100), [(Event.PING, b"?", 1400)]))

    def test_close(self):
        self.assert_code(1007, raw(0x88, b"\x03\xe8\xff\xfe"))
        for code in (1000, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 4999):
            payload = struct.pack(">H", code) + "größer".encode()
            self.assertEqual(decode([raw(0x88, payload)])[1], [(Event.CLOSE, payload, 0)])

    def test_close_status(self):
        decoder = Decoder(Role.SERVER, LIMIT)
        for payload, code in ((b"", CLOSE_NO_STATUS), (b"\x03\xe8", 1000), (b"\x0f\xa0bye", 4000)):
            data = raw(0x88, payload)
            self.assertEqual(decoder.step(data, 0, len(data)), len(data))
            self.assertEqual(decoder.close_code, code)
        self.assertEqual(close_frame(Role.SERVER, CLOSE_NO_STATUS), b"\x88\x00")
        self.assertEqual(close_frame(Role.CLIENT, 1000), b"\x88\x82\0\0\0\0\x03\xe8")

    def test_payload_before_a_violation_is_given_first(self):
        data = raw(0x82, b"good") + raw(0x83, b"bad")
        decoder = Decoder(Role.SERVER, LIMIT)
        position = decoder.step(data, 0, len(data))
        self.assertEqual(unmask_bytes(data[decoder.begin : position], decoder.mask), b"good")
        self.assertRaises(FrameError, decoder.step, data, position, len(data))

    def test_largest_frame_we_send(self):
        self.assertEqual(len(frame_header(Role.CLIENT, Opcode.BINARY, SENT_PAYLOAD_BYTES)), HEADER_ROOM_BYTES)
        self.assertEqual(frame_header(Role.SERVER, Opcode.BINARY, 126), b"\x82\x7e\x00\x7e")
