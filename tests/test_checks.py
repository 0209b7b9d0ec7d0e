"""Ids, names, lists and values: what passes, how it is kept, and the reasons."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.checks import (
    MOST_ITEMS,
    TOKEN_ID,
    VOLUME_ID,
    FormatError,
    address,
    boolean,
    bridge_id,
    cidr,
    clean,
    clean_lines,
    config_id,
    dns_name,
    each,
    fingerprint,
    formatted,
    integer,
    ipv6_address,
    list_of,
    network,
    node_name,
    number,
    pattern,
    shorten,
    split_list,
    storage_id,
    text,
    vmid,
    volume_id,
    whole,
)


class CheckCase(SynchronousTestCase):
    def assert_refused(self, check, value, reason):
        error = self.assertRaises(FormatError, check, value)
        self.assertEqual(str(error), reason)

    def assert_refuses(self, check, *values):
        for value in values:
            self.assertRaises(FormatError, check, value)

    def assert_keeps(self, check, *values):
        for value in values:
            self.assertEqual(check(value), value)


class ValueTests(CheckCase):
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


class NameTests(CheckCase):
    def test_storage_id(self):
        self.assert_keeps(storage_id, "local", "L1", "a.b-c_d9")
        self.assert_refuses(storage_id, "", "a", "1a", "a-", "local\n", "a/b", "löcal", "a b")
        self.assert_refused(storage_id, "x\n!", "storage ID 'x?!' contains illegal characters")

    def test_bridge_id(self):
        self.assert_keeps(bridge_id, "vmbr0", "br.1", "a-b_c", "...")
        self.assert_refuses(bridge_id, "", "bridge!", "a/b", "br0\n", ".", "..")
        self.assert_refused(bridge_id, "bridge!", "invalid bridge ID 'bridge!'")

    def test_vmid(self):
        self.assert_keeps(vmid, "100", "999999999")
        self.assert_refuses(vmid, "99", "1000000000", "0100", "+100", "100\n", "", "\u0661\u0660\u0660")

    def test_node_name(self):
        self.assert_keeps(node_name, "a", "pve-1", "1")
        self.assert_refuses(node_name, "", "-a", "a-", "a.b", "a\n", "..")

    def test_config_id(self):
        self.assert_keeps(config_id, "before", "a-1_b")
        self.assert_refuses(config_id, "a", "1a", "a b", "a.b")

    def test_volume_id(self):
        self.assert_keeps(
            volume_id, "local:100/vm-100-disk-0.raw", "local:iso/a b.iso", "zfs:base-1-disk-0/vm-2-disk-0"
        )
        self.assert_refuses(
            volume_id, "", "local", ":x", "local:", "1:x", "local:a\nb", "local:\ud800", "local:a\u2028"
        )
        self.assert_refused(volume_id, "a\n", "unable to parse volume ID 'a?'")
        self.assertRegex("local:x", rf"\A{VOLUME_ID}\Z")

    def test_token_id(self):
        self.assertRegex("a@pve!t1", rf"\A{TOKEN_ID}\Z")
        for bad in ("a@pve", "a@pve!t", "a b@pve!t1", "a:b@pve!t1", "a@pve!t1!"):
            self.assertNotRegex(bad, rf"\A{TOKEN_ID}\Z")

    def test_fingerprint(self):
        self.assertEqual(fingerprint(":".join(["ab"] * 32)), ":".join(["AB"] * 32))
        for bad in ("", ":".join(["ab"] * 31), ":".join(["ag"] * 32)):
            self.assert_refused(
                fingerprint, bad, "value does not look like a SHA-256 fingerprint, 32 pairs of hex digits"
            )


class AddressTests(CheckCase):
    def test_names_and_addresses(self):
        self.assert_keeps(dns_name, "a-1.example.com")
        for bad in ("a b", "-a", "a.", "a_b", ""):
            self.assert_refused(dns_name, bad, "value does not look like a valid DNS name")
        self.assert_keeps(address, "192.0.2.1", "2001:db8::1", "ns")
        self.assert_refused(address, "a b", "value does not look like a valid address: a b")
        self.assert_refused(ipv6_address, "fe80::1%eth0", "value does not look like a valid IPv6 address")

    def test_networks(self):
        check = network(ipv6_address, 128, ("auto",), "ipv6")
        self.assert_keeps(check, "auto", "2001:db8::1/64")
        for bad in ("2001:db8::1", "2001:db8::1/129", "2001:db8::1/7", "x/64", "dhcp"):
            self.assert_refused(check, bad, "value does not look like a valid ipv6 network configuration")

    def test_cidr(self):
        self.assert_keeps(cidr, "10.0.0.0/8", "192.168.1.7/24", "1.2.3.4/32", "fe80::/64", "::/8", "::1/128")
        self.assert_refuses(
            cidr, "", "10.0.0.1", "10.0.0.0/7", "1.2.3.4/33", "::1/129", "1.2.3.4/255.0.0.0", "01.2.3.4/24",
            "fe80::1%eth0/64", "1.2.3.4/24\n", "1.2.3.4/24/24", "host/24", "/24", "1.2.3.4/", "1.2.3.4/\u0661\u0662",
        )  # fmt: skip


class ListTests(CheckCase):
    def test_separators(self):
        self.assertEqual(split_list("a,b;c d\0e\tf,,"), ("a", "b", "c", "d", "e", "f"))
        self.assertEqual(split_list(" ,; "), ())

    def test_every_item_is_checked(self):
        self.assert_keeps(list_of(storage_id), "", "local", "local,zfs;nfs  cifs", "local\0zfs")
        self.assert_refused(list_of(storage_id), "local,x!", "storage ID 'x!' contains illegal characters")

    def test_a_list_within_a_line(self):
        self.assert_keeps(each(address), "192.0.2.1 192.0.2.2;ns")
        self.assert_refuses(each(address), "ns\nns", "ns\0ns")
        self.assert_refused(each(address), "a " * (MOST_ITEMS + 1), f"there are {MOST_ITEMS} items at most")


class TextTests(CheckCase):
    def test_control_characters(self):
        self.assertEqual(clean("a\r\nb\x00\x7f\x85\u2028\ud800ü"), "a??b?????ü")
        self.assertEqual(clean_lines("a\nb\r\n\x1b"), "a\nb?\n?")

    @given(st.text())
    def test_cleaned_text_is_one_line(self, value):
        self.assertLessEqual(len(clean(value).splitlines()), 1)
        clean(value).encode()

    def test_a_named_format(self):
        self.assert_refused(formatted(vmid), "1", "invalid format - value does not look like a valid VM ID\n")

    def test_few_warnings(self):
        self.assertEqual(shorten(["a"]), ["a"])
        self.assertEqual(shorten(["a"] * 25)[-1], "5 more warnings")
