"""Property strings."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.checks import FormatError, boolean, enum, integer
from mtunnel_tx.pve.property import PropertyFormat, format_property, parse_property

KEYS = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
VALUES = st.text(
    st.characters(exclude_characters=",", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12
).filter(lambda value: value.strip() == value and value != "")
FORMAT = PropertyFormat(
    checks={"current": integer(16), "flag": boolean, "mode": enum("a", "b")},
    default_key="current",
    aliases={"now": "current"},
    required=frozenset({"current"}),
    needs={"flag": "mode"},
)


class Strings(SynchronousTestCase):
    def test_default_key_and_others(self) -> None:
        self.assertEqual(parse_property("512,flag=1", "current"), {"current": "512", "flag": "1"})
        self.assertEqual(parse_property("a=b=c"), {"a": "b=c"})

    def test_empty_parts_are_skipped(self) -> None:
        self.assertEqual(parse_property(",a=1, ,b=2,"), {"a": "1", "b": "2"})
        self.assertEqual(parse_property(" "), {})

    def test_what_cannot_be_taken_apart(self) -> None:
        for sent, reason in (
            ("a=1,a=2", "duplicate key in comma-separated list property: a"),
            ("x,y", "duplicate key in comma-separated list property: d"),
            ("a=", "missing key in comma-separated list property"),
            ("=b", "missing key in comma-separated list property"),
        ):
            error = self.assertRaises(FormatError, parse_property, sent, "d")
            self.assertEqual(str(error), reason)
        error = self.assertRaises(FormatError, parse_property, "x")
        self.assertEqual(str(error), "value without key, but schema does not define a default key")

    def test_written_default_first_then_sorted(self) -> None:
        self.assertEqual(
            format_property({"b": "1", "file": "v", "a": "2", "index": "0"}, "file", ["index"]), "v,a=2,b=1"
        )

    def test_commas_cannot_be_written(self) -> None:
        for values in ({"k": "1,2"}, {"file": "1,2"}):
            error = self.assertRaises(FormatError, format_property, values, "file")
            self.assertEqual(str(error), f"illegal value with commas for {next(iter(values))}")

    @settings(deadline=None, max_examples=100)
    @given(st.dictionaries(KEYS, VALUES), st.one_of(st.none(), VALUES.filter(lambda value: "=" not in value)))
    def test_round_trip(self, values: dict[str, str], default: str | None) -> None:
        whole_set = values | ({} if default is None else {"DEFAULT": default})
        self.assertEqual(parse_property(format_property(whole_set, "DEFAULT"), "DEFAULT"), whole_set)


class Formats(SynchronousTestCase):
    def test_values_as_proxmox_keeps_them(self) -> None:
        self.assertEqual(FORMAT.parse("512,flag=yes,mode=a"), {"current": "512", "flag": "1", "mode": "a"})
        self.assertEqual(FORMAT.parse("now=512"), {"current": "512"})
        self.assertEqual(FORMAT("now=512,mode=a"), "now=512,mode=a")

    def test_reasons(self) -> None:
        for sent, reason in (
            ("lots", "format error\ncurrent: type check ('integer') failed - got 'lots'\n"),
            ("15", "format error\ncurrent: value must have a minimum value of 16\n"),
            ("mode=a", "format error\ncurrent: property is missing and it is not optional\n"),
            ("16,flag=1", "format error\nmode: missing property - 'flag' requires this property\n"),
            ("16,mode=c", "format error\nmode: value 'c' does not have a value in the enumeration 'a, b'\n"),
            ("16,x=1", "invalid key in comma-separated list property: x"),
            ("16,now=17", "duplicate key in comma-separated list property: current"),
        ):
            error = self.assertRaises(FormatError, FORMAT.parse, sent)
            self.assertEqual(str(error), reason)
