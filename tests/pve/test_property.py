"""Property strings and the types of their values."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.pve.property import PropertyFormat, format_property, parse_property
from mtunnel_tx.pve.values import (
    FormatError,
    address,
    boolean,
    clean,
    dns_name,
    each,
    enum,
    integer,
    ipv6_address,
    network,
    number,
    pattern,
    split_list,
    text,
    whole,
)

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


class Values(SynchronousTestCase):
    def assert_refused(self, check: object, value: str, reason: str) -> None:
        error = self.assertRaises(FormatError, check, value)
        self.assertEqual(str(error), reason)

    def test_numbers(self) -> None:
        self.assertEqual(whole()("007"), "7")
        self.assertEqual(integer()("-7"), "-7")
        self.assertEqual(number(0, 128)("1.50"), "1.50")
        self.assert_refused(whole(), "-1", "type check ('integer') failed - got '-1'")
        self.assert_refused(whole(1), "0", "value must have a minimum value of 1")
        self.assert_refused(number(0, 128), "128.1", "value must have a maximum value of 128")
        self.assert_refused(number(), "1e9", "type check ('number') failed - got '1e9'")
        self.assert_refused(integer(), "٣", "type check ('integer') failed - got '٣'")
        self.assert_refused(integer(), "9" * 5000, f"type check ('integer') failed - got '{'9' * 5000}'")

    def test_booleans(self) -> None:
        self.assertEqual([boolean(value) for value in ("1", "On", "YES", "true")], ["1"] * 4)
        self.assertEqual([boolean(value) for value in ("0", "off", "No", "FALSE")], ["0"] * 4)
        self.assert_refused(boolean, "2", "type check ('boolean') failed - got '2'")

    def test_texts(self) -> None:
        self.assertEqual(text()('"quoted"'), "quoted")
        self.assert_refused(text(3), "four", "value may only be 3 characters long")
        for control in ("\0", "\n", "\x7f", "\x85", "\u2028", "\ud800"):
            self.assert_refused(text(), f"a{control}b", "value does not match the regex pattern")
            self.assert_refused(pattern(r"(?s).*"), f"a{control}b", "value does not match the regex pattern")
        self.assertEqual(clean("a\nb\0c\ud800"), "a?b?c?")

    def test_names_and_addresses(self) -> None:
        self.assertEqual(dns_name("a-1.example.com"), "a-1.example.com")
        for bad in ("a b", "-a", "a.", "a_b", ""):
            self.assert_refused(dns_name, bad, "value does not look like a valid DNS name")
        self.assertEqual(
            [address(value) for value in ("192.0.2.1", "2001:db8::1", "ns")], ["192.0.2.1", "2001:db8::1", "ns"]
        )
        self.assert_refused(address, "a b", "value does not look like a valid address: a b")
        self.assert_refused(ipv6_address, "fe80::1%eth0", "value does not look like a valid IPv6 address")
        self.assertEqual(each(address)("192.0.2.1 192.0.2.2;ns"), "192.0.2.1 192.0.2.2;ns")
        self.assertEqual(split_list("a, b;c  d"), ["a", "b", "c", "d"])

    def test_networks(self) -> None:
        check = network(ipv6_address, 128, ("auto",), "ipv6")
        self.assertEqual([check("auto"), check("2001:db8::1/64")], ["auto", "2001:db8::1/64"])
        for bad in ("2001:db8::1", "2001:db8::1/129", "2001:db8::1/7", "x/64", "dhcp"):
            self.assert_refused(check, bad, "value does not look like a valid ipv6 network configuration")
