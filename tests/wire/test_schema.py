"""Each kind of parameter: what passes, what it reads as, and the reasons."""

import re

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.checks import FormatError
from mtunnel_tx.errors import InvalidParameters
from mtunnel_tx.wire.formats import BRIDGE_ID, CIDR, CPU_MODEL, NODE_NAME, STORAGE_ID, VMID, list_of
from mtunnel_tx.wire.schema import (
    MAX_UNDEFINED,
    MISSING,
    UNDEFINED,
    Array,
    Boolean,
    Enum,
    Integer,
    Mismatch,
    Object,
    OpenObject,
    Property,
    Rows,
    String,
    read_parameters,
)


class KindCase(SynchronousTestCase):
    def assert_reason(self, kind, value, reason):
        error = self.assertRaises(Mismatch, kind.read, value)
        self.assertEqual(error.errors, {"": reason})


class RowsTests(KindCase):
    kind = Rows(row=Object({"n": Property(Integer(), "a number", True)}), most=2)

    def test_each_row_is_read(self):
        self.assertEqual(self.kind.read([{"n": "1"}, {"n": 2}]), [{"n": 1}, {"n": 2}])

    def test_what_is_none(self):
        self.assert_reason(self.kind, {}, "type check ('array') failed")
        self.assert_reason(self.kind, [{"n": 1}] * 3, "list may only have 2 items")
        error = self.assertRaises(Mismatch, self.kind.read, [{"n": 1}, {}])
        self.assertEqual(error.errors, {"1.n": MISSING})
        self.assertEqual(
            self.assertRaises(Mismatch, self.kind.read, ["x"]).errors, {"0": "type check ('object') failed"}
        )


class ScalarTests(KindCase):
    def test_string(self):
        for sent, text in ((5, "5"), (1.5, "1.5"), (1.0, "1"), ("x", "x"), ("", "")):
            self.assertEqual(String().read(sent), text)

    def test_no_string(self):
        for sent, name in (([], "ARRAY"), ({}, "HASH"), (True, "JSON::PP::Boolean"), (False, "JSON::PP::Boolean")):
            self.assert_reason(String(), sent, f"type check ('string') failed - got {name}")

    def test_pattern_is_anchored(self):
        kind = String(pattern=re.compile("a|b+"), max_length=3)
        self.assertEqual(kind.read("bbb"), "bbb")
        for text in ("a\n", "ab", "xa", "\na", ""):
            self.assert_reason(kind, text, "value does not match the regex pattern")
        self.assert_reason(kind, "bbbb", "value may only be 3 characters long")

    def test_format(self):
        self.assert_reason(
            String(format=STORAGE_ID),
            "storage!",
            "invalid format - storage ID 'storage!' contains illegal characters\n",
        )
        self.assert_reason(Integer(format=VMID), 99, "invalid format - value does not look like a valid VM ID\n")

    def test_enum(self):
        kind = Enum(("raw", "qcow2"))
        self.assertEqual(kind.read("raw"), "raw")
        self.assert_reason(kind, "RAW", "value 'RAW' does not have a value in the enumeration 'raw, qcow2'")
        self.assert_reason(kind, 5, "value '5' does not have a value in the enumeration 'raw, qcow2'")
        self.assert_reason(kind, True, "type check ('string') failed - got JSON::PP::Boolean")

    def test_integer(self):
        for sent, number in ((5, 5), ("5", 5), (5.0, 5), ("+5", 5), ("007", 7), (0, 0), (1e3, 1000)):
            self.assertEqual(Integer(minimum=0).read(sent), number)

    def test_no_integer(self):
        for sent, shown in (
            ("abc", "abc"),
            (1.5, "1.5"),
            ("", ""),
            ("5\n", "5\n"),
            ("1e3", "1e3"),
            ("\u0663", "\u0663"),
        ):
            self.assert_reason(Integer(), sent, f"type check ('integer') failed - got '{shown}'")
        self.assert_reason(Integer(), True, "type check ('integer') failed - got JSON::PP::Boolean")
        self.assert_reason(Integer(), [5], "type check ('integer') failed - got ARRAY")
        self.assertRaises(Mismatch, Integer().read, "9" * 10_000)

    def test_minimum(self):
        self.assert_reason(Integer(minimum=0), -1, "value must have a minimum value of 0")
        self.assert_reason(Integer(minimum=1), "0", "value must have a minimum value of 1")

    def test_boolean(self):
        for sent in (1, "1", True, 1.0):
            self.assertIs(Boolean().read(sent), True)
        for sent in (0, "0", False, 0.0):
            self.assertIs(Boolean().read(sent), False)

    def test_no_boolean(self):
        for sent in ("maybe", "", 2, "1.0", "true", "01"):
            self.assert_reason(Boolean(), sent, f"type check ('boolean') failed - got '{sent}'")
        self.assert_reason(Boolean(), [], "type check ('boolean') failed - got ARRAY")
        self.assertIs(Boolean(empty_is_false=True).read(""), False)
        self.assert_reason(Boolean(empty_is_false=True), " ", "type check ('boolean') failed - got ' '")

    def test_containers(self):
        self.assertEqual(Array().read([1, None]), [1, None])
        self.assertEqual(OpenObject().read({"a": None}), {"a": None})
        for sent in ("x", {}, 0, True):
            self.assert_reason(Array(), sent, "type check ('array') failed")
        for kind in (OpenObject(), Object({})):
            for sent in ("x", [], 0, True):
                self.assert_reason(kind, sent, "type check ('object') failed")


class ObjectTests(KindCase):
    SCHEMA = Object(
        {
            "name": Property(String(), "a", True),
            "size": Property(Integer(minimum=0), "b", default=7),
            "with_dash": Property(Boolean(), "c", default=False, older=("with-dash", Boolean())),
            "inner": Property(Object({"type": Property(Enum(("x",)), "e", True)}), "d"),
        }
    )

    def errors(self, parameters):
        return self.assertRaises(InvalidParameters, read_parameters, self.SCHEMA, parameters).errors

    def test_defaults(self):
        expected = {"name": "n", "size": 7, "with_dash": False, "inner": None}
        self.assertEqual(read_parameters(self.SCHEMA, {"name": "n"}), expected)
        nulls = {"name": "n", "size": None, "inner": None, "with-dash": None}
        self.assertEqual(read_parameters(self.SCHEMA, nulls), expected)

    def test_as_a_json_schema(self):
        shown = self.SCHEMA.json_schema()
        self.assertEqual((shown["required"], shown["additionalProperties"]), (["name"], False))
        self.assertEqual(shown["properties"]["size"], {
            "type": "integer", "minimum": 0, "maximum": (1 << 53) - 1, "description": "b", "default": 7
        })  # fmt: skip
        self.assertEqual(shown["properties"]["with-dash"]["description"], "older spelling of `with_dash`")
        self.assertEqual(shown["properties"]["inner"]["properties"]["type"]["enum"], ["x"])
        fits = {"type": "string", "format": "pve-node", "pattern": f"^({NODE_NAME.pattern})$", "maxLength": 4096}
        self.assertEqual(String(format=NODE_NAME).json_schema(), fits)

    def test_every_error_is_told(self):
        sent = {"size": -1, "inner": {"type": "y", "more": 1}, "zzz": None, "with-dash": "no"}
        self.assertEqual(
            self.errors(sent),
            {
                "name": MISSING,
                "size": "value must have a minimum value of 0",
                "inner.type": "value 'y' does not have a value in the enumeration 'x'",
                "inner.more": UNDEFINED,
                "zzz": UNDEFINED,
                "with-dash": "type check ('boolean') failed - got 'no'",
            },
        )

    def test_nested_missing(self):
        self.assertEqual(self.errors({"name": "n", "inner": {}}), {"inner.type": MISSING})
        self.assertEqual(self.errors({"name": "n", "inner": []}), {"inner": "type check ('object') failed"})

    def test_both_spellings(self):
        self.assertTrue(read_parameters(self.SCHEMA, {"name": "n", "with-dash": 1})["with_dash"])
        errors = self.errors({"name": "n", "with-dash": 1, "with_dash": 1})
        self.assertEqual(errors, {"with-dash": "cannot be given together with 'with_dash'"})

    def test_unknown_keys_are_bounded(self):
        sent = {"name": "n", **{str(number): 1 for number in range(MAX_UNDEFINED + 5)}}
        self.assertEqual(len(self.errors(sent)), MAX_UNDEFINED)

    @given(
        st.dictionaries(
            st.sampled_from(["name", "size", "with_dash", "with-dash", "inner", "x"]),
            st.none()
            | st.text()
            | st.integers()
            | st.floats()
            | st.booleans()
            | st.lists(st.text())
            | st.dictionaries(st.text(), st.text()),
        )
    )
    @settings(deadline=None, max_examples=100)
    def test_any_values(self, parameters):
        try:
            found = read_parameters(self.SCHEMA, parameters)
        except InvalidParameters as error:
            self.assertTrue(error.errors)
        else:
            self.assertEqual(found.keys(), self.SCHEMA.properties.keys())


class FormatTests(SynchronousTestCase):
    def is_one(self, form, text):
        try:
            form.check(text)
        except FormatError:
            return False
        return True

    @example("100\x85")
    @example(".;")
    @given(st.text(alphabet="ab1Z-_.,; !/:é") | st.from_regex(CIDR.pattern) | st.from_regex(VMID.pattern))
    def test_a_pattern_describes_its_format(self, text):
        for form in (STORAGE_ID, BRIDGE_ID, VMID, NODE_NAME, CPU_MODEL, list_of(STORAGE_ID), list_of(BRIDGE_ID)):
            self.assertEqual(self.is_one(form, text), bool(re.fullmatch(form.pattern, text)), (form.name, text))
        if self.is_one(CIDR, text):
            self.assertRegex(text, f"^({CIDR.pattern})$")
