"""Records and the text frames that carry them."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.wire.frames import CONTROL_BYTES, Decoder, Event, FrameError, Opcode, Role, frame_header
from mtunnel_tx.wire.records import MOST_POSITION, FlowRecord, RecordKind, parse_record, record_frame

NO_RECORDS = (
    *(b"", b"a", b"a ", b"a -1", b"a 01", b"a 1 ", b"a  1", b"a 1\n", b"a 0x1", b"a 9223372036854775808000"),
    *(b"A 1", b"q 1", b"ab 1", b"d ", b"d 1", b"\xff 1", b"a \xd9\xa1", b"p", b"e x"),
)
POSITIONS = st.integers(0, MOST_POSITION)


def decode(data, role=Role.CLIENT):
    """The records in a piece of a websocket's bytes."""
    decoder, position, found = Decoder(role, 1 << 20, records=True), 0, []
    while position < len(data):
        position = decoder.step(data, position, len(data))
        if decoder.event is Event.RECORD:
            found.append(parse_record(decoder.control))
    return found


class RecordTests(SynchronousTestCase):
    @given(kind=st.sampled_from([RecordKind.ACKNOWLEDGED, RecordKind.POSITION, RecordKind.ENDED]), position=POSITIONS)
    def test_positions_come_as_they_went(self, kind, position):
        record = FlowRecord(kind, position)
        self.assertEqual(decode(record_frame(Role.SERVER, record)), [record])

    def test_what_they_look_like(self):
        self.assertEqual(record_frame(Role.SERVER, FlowRecord(RecordKind.POSITION, 131072)), b"\x81\x08p 131072")
        self.assertEqual(record_frame(Role.SERVER, FlowRecord(RecordKind.DELIVERED)), b"\x81\x01d")
        self.assertEqual(record_frame(Role.CLIENT, FlowRecord(RecordKind.DELIVERED)), b"\x81\x81\0\0\0\0d")

    def test_a_reason_is_cut_and_printable(self):
        (record,) = decode(record_frame(Role.SERVER, FlowRecord(RecordKind.ABORTED, reason="ü\x07" + "r" * 300)))
        self.assertIs(record.kind, RecordKind.ABORTED)
        self.assertEqual(record.reason, "??" + "r" * (CONTROL_BYTES - 4))

    def test_everything_else_is_refused(self):
        for payload in NO_RECORDS:
            with self.subTest(payload=payload):
                error = self.assertRaises(FrameError, parse_record, payload)
                self.assertEqual((error.code, error.text), (1002, "text frame that is no record"))

    def test_text_frames_must_be_short_and_whole(self):
        long = frame_header(Role.SERVER, Opcode.TEXT, 126) + b"a" * 126
        fragment = b"\x01\x03a 1"
        for data in (long, fragment):
            self.assertEqual(self.assertRaises(FrameError, decode, data).code, 1002)

    def test_long_text_in_the_usual_header_is_refused_too(self):
        long = frame_header(Role.CLIENT, Opcode.TEXT, 200) + b"a" * 200
        self.assertEqual(self.assertRaises(FrameError, decode, long, Role.SERVER).code, 1002)

    def test_without_records_text_is_payload(self):
        decoder = Decoder(Role.CLIENT, 1 << 20)
        decoder.step(b"\x81\x03a 1", 0, 5)
        self.assertIs(decoder.event, Event.PAYLOAD)
