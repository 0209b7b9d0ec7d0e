"""Lines in, replies out: the framing half of the recordings, and every line that is no command."""

import json
import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import InvalidParameters, PermissionDenied, TunnelError
from mtunnel_tx.tunnel.qemu.table import QEMU_COMMANDS as COMMANDS
from mtunnel_tx.wire.lines import (
    MAX_NESTING,
    RequestUnreadable,
    command_name,
    encode_failure,
    encode_ok,
    handler_failure,
    parse_request,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "worker-replies.jsonl"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def refusal(line):
    """The reply to a line that parsing, the command's name or its schema refuses; None for one that passes."""
    try:
        request = parse_request(line)
        name = command_name(request)
        if name not in COMMANDS:
            return encode_failure(f"unknown command '{name}' given")
        COMMANDS[name].read(request)
    except RequestUnreadable as error:
        return encode_failure(error.text)
    except TunnelError as error:
        return encode_failure(handler_failure(name, error))
    return None


def reason(line):
    """The text for a line that cannot be read."""
    try:
        parse_request(line)
    except RequestUnreadable as error:
        return error.text
    return None


def golden_rows():
    with GOLDEN.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row for row in rows if row["kind"] == "cmd" and "exit-mode" not in row["reply"].get("msg", "")]


def is_refusal(msg):
    return msg.startswith(("failed to parse", "'cmd' missing", "unknown command")) or "Parameter verification" in msg


class GoldenTests(SynchronousTestCase):
    """What Proxmox's own worker said."""

    def test_replies(self):
        checked = 0
        for row in golden_rows():
            line = row["request"].split("\n")[row.get("reply_index", 1) - 1]
            expected = row["reply"]
            got = refusal(line.encode())
            if not is_refusal(expected.get("msg", "")):
                self.assertIsNone(got, row)
                continue
            self.assert_same(json.loads(got), expected, exact=row["replay"] == "exact")
            checked += 1
        self.assertGreater(checked, 30)

    def assert_same(self, got, expected, *, exact):
        self.assertEqual(got.keys(), expected.keys())
        self.assertIs(got["success"], False)
        if exact:
            self.assertEqual(sorted(got["msg"].split("\n")), sorted(expected["msg"].split("\n")))
        else:
            variable = re.compile(r"\(0x| - |' given")
            self.assertEqual(variable.split(got["msg"])[0], variable.split(expected["msg"])[0])


class ReadableTests(SynchronousTestCase):
    """Lines that are commands."""

    def test_white_space_and_carriage_return(self):
        self.assertEqual(parse_request(b' \t{"cmd" : "version"} \r'), {"cmd": "version"})

    def test_last_duplicate_counts(self):
        self.assertEqual(parse_request(b'{"cmd":"a","x":1,"cmd":"b","x":2}'), {"cmd": "b", "x": 2})

    def test_deepest_nesting(self):
        inner = MAX_NESTING - 1
        parse_request(b'{"cmd":"x","a":' + b"[" * inner + b"]" * inner + b"}")

    def test_brackets_in_texts_do_not_nest(self):
        parse_request(b'{"cmd":"x","a":"' + b"[{" * 10_000 + b'"}')

    def test_long_lines(self):
        text = "line\\n" * 1_000_000
        self.assertEqual(len(parse_request(f'{{"cmd":"config","conf":"{text}"}}'.encode())["conf"]), 5_000_000)

    def test_surrogate_pair(self):
        self.assertEqual(parse_request(rb'{"cmd":"\ud83d\ude00"}'), {"cmd": "\U0001f600"})

    def test_names_as_perl_shows_them(self):
        shown = {
            "5": "5",
            "-7": "-7",
            "1.5": "1.5",
            "1.0": "1",
            "1e3": "1000",
            "1e20": "1e+20",
            "0.1": "0.1",
            "123456789012345678901234567890": "123456789012345678901234567890",
            "true": "1",
            "false": "0",
            '""': "",
            '"version"': "version",
            "[1]": "ARRAY",
            "{}": "HASH",
        }
        for sent, name in shown.items():
            self.assertEqual(command_name(parse_request(f'{{"cmd":{sent}}}'.encode())), name, sent)


class UnreadableTests(SynchronousTestCase):
    """Lines that are none."""

    def test_no_command(self):
        for line in (b"{}", b"null", b" null\r", b'{"cmd":null}', b'{"cmd":"x","cmd":null}'):
            self.assertEqual(reason(line), "'cmd' missing", line)

    def test_refused(self):
        lines = [
            b"",
            b"   ",
            b"\r",
            b"garbage",
            b"{",
            b'{"cmd":',
            b'{"cmd":"version"} trailing',
            b'{"cmd":"version"}{}',
            b'{"cmd":"version",}',
            b"{'cmd':'version'}",
            b'{"cmd":"a\tb"}',
            b'{"cmd":"\\x"}',
            b'{"cmd":01}',
            b'\xef\xbb\xbf{"cmd":"version"}',
            b'{"cmd":"\xff"}',
            b'{"cmd":"\xed\xa0\x80"}',
            '{"cmd":"x"}'.encode("utf-16"),
            b'["cmd"]',
            b'"cmd"',
            b"5",
            b"true",
            b'{"cmd":"x","a":NaN}',
            b'{"cmd":"x","a":Infinity}',
            b'{"cmd":"x","a":-Infinity}',
            b'{"cmd":"x","a":1e999}',
            b'{"cmd":"x","a":' + b"9" * 10_000 + b"}",
            rb'{"cmd":"\ud800"}',
            rb'{"cmd":"x","a":[{"\udc00":1}]}',
        ]
        for line in lines:
            self.assertTrue((reason(line) or "").startswith("failed to parse command - "), line[:40])

    def test_too_deep(self):
        deep = "failed to parse command - nesting is deeper than 512 levels"
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            for inner in (MAX_NESTING, 10_000):
                line = b'{"cmd":"x","a":' + opening * inner + b"1" + closing * inner + b"}"
                self.assertEqual(reason(line), deep, (opening, inner))

    def test_too_deep_and_never_closed(self):
        self.assertIn("nesting", reason(b"[" * 5_000_000))

    def test_reasons_show_nothing_of_the_line(self):
        for line in (b'{"cmd":1}\x1b[31m', b"\x07bell", b'{"\x00":1}', b'{"cmd":"x","a":\x1b}'):
            self.assertNotIn("\x1b", reason(line))
            self.assertTrue(reason(line).isprintable(), line)

    @given(st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
    @settings(deadline=None, max_examples=100)
    def test_any_bytes(self, line):
        try:
            request = parse_request(line)
        except RequestUnreadable as error:
            self.assertTrue(error.text.isprintable())
        else:
            self.assertIsNotNone(request["cmd"])

    @given(st.binary(max_size=20), st.integers(0, 60))
    @settings(deadline=None, max_examples=100)
    def test_damaged_lines(self, junk, position):
        line = b'{"cmd":"ticket","path":"/run/qemu-server/100.storage"}'
        refusal(line[:position] + junk + line[position:])


class ReplyTests(SynchronousTestCase):
    """What is sent back."""

    def test_compact_and_sorted(self):
        self.assertEqual(encode_ok({"api": 2, "age": 0}), b'{"age":0,"api":2,"success":true}')
        self.assertEqual(encode_ok(None), b'{"success":true}')
        self.assertEqual(encode_failure("no\n"), b'{"msg":"no\\n","success":false}')

    def test_characters_stay(self):
        self.assertEqual(encode_failure("ünï"), '{"msg":"ünï","success":false}'.encode())

    def test_lone_surrogates_are_escaped(self):
        reply = encode_ok({"msg": "a\ud800\udc80b\udcff", "\ud800": [1]})
        self.assertEqual(json.loads(reply.decode("utf-8"))["success"], True)
        self.assertIn(rb"b\udcff", reply)

    def test_schema_failure(self):
        error = InvalidParameters({"path": "gone", "a": "ends in LF\n"})
        self.assertEqual(
            handler_failure("ticket", error),
            "failed to handle 'ticket' command - 400 Parameter verification failed.\npath: gone\na: ends in LF\n\n",
        )

    def test_missing_privilege(self):
        self.assertEqual(
            handler_failure("disk", PermissionDenied("/storage/x", "Datastore.AllocateSpace")),
            "failed to handle 'disk' command - 403 Permission check failed (/storage/x, Datastore.AllocateSpace)\n",
        )

    @given(st.dictionaries(st.text(), JSON_VALUES))
    @settings(deadline=None, max_examples=100)
    def test_always_a_single_line(self, fields):
        reply = encode_ok(fields)
        self.assertNotIn(b"\n", reply)
        self.assertNotIn(b"\r", reply)
        self.assertEqual(json.loads(reply), {**fields, "success": True})

    @given(st.text(alphabet=st.characters()))
    @settings(deadline=None, max_examples=100)
    def test_any_text_in_a_failure(self, msg):
        reply = encode_failure(msg)
        self.assertNotIn(b"\n", reply)
        self.assertIs(json.loads(reply.decode("utf-8"))["success"], False)
