"""Storage and bridge maps, and endpoints."""

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import BadRequest
from mtunnel_tx.pve.maps import Endpoint, format_endpoint, parse_endpoint, parse_map

FINGERPRINT = ":".join(["AB"] * 32)
TOKEN = "PVEAPIToken=mig@pve!t1=6ba7b810-9dad-11d1-80b4-00c04fd430c8"
NAMES = st.from_regex(r"[a-z][a-z0-9_.-]{0,8}[a-z0-9]", fullmatch=True)


class MapTests(SynchronousTestCase):
    def assert_refused(self, text, reason):
        self.assertEqual(self.assertRaises(BadRequest, parse_map, text).text, reason)

    def test_pairs(self):
        found = parse_map("local:a1, zfs:b1;nfs:a1")
        self.assertEqual([found.target(name) for name in ("local", "zfs", "nfs")], ["a1", "b1", "a1"])
        self.assertEqual(found.targets, ("a1", "b1"))
        self.assertEqual(str(found), "local:a1,zfs:b1,nfs:a1")
        error = self.assertRaises(BadRequest, found.target, "other\n")
        self.assertEqual(error.text, "no target for 'other?' in the map 'local:a1,zfs:b1,nfs:a1'")

    def test_one_for_all(self):
        found = parse_map("vmbr0")
        self.assertEqual((found.target("any"), found.targets, str(found)), ("vmbr0", ("vmbr0",), "vmbr0"))

    def test_identity(self):
        for text in ("1", "a:b,1"):
            self.assert_refused(text, "identity map '1' is not possible for another cluster: name a target")

    def test_refused(self):
        self.assert_refused("", "empty map")
        self.assert_refused(" , ", "empty map")
        self.assert_refused("a:b,a:c", "duplicate mapping for source 'a'")
        self.assert_refused("a:b,a:b", "duplicate mapping for source 'a'")
        self.assert_refused("a:b,c", "target for all 'c' cannot be combined with pairs")
        self.assert_refused("a,b", "target for all can be given only once: 'a' and 'b'")
        self.assert_refused("a:", "entry 'a:' contains invalid ID ''")
        self.assert_refused(":a", "entry ':a' contains invalid ID ''")
        self.assert_refused("a:b:c", "entry 'a:b:c' contains invalid ID 'b:c'")
        self.assert_refused("a:b!", "entry 'a:b!' contains invalid ID 'b!'")
        self.assert_refused("x\x1b", "entry 'x?' contains invalid ID 'x?'")

    @given(st.dictionaries(NAMES, NAMES, min_size=1))
    @settings(deadline=None, max_examples=50)
    def test_round_trip(self, entries):
        found = parse_map(",".join(f"{source}:{target}" for source, target in entries.items()))
        self.assertEqual(dict(found.entries), entries)
        self.assertEqual(parse_map(str(found)), found)


class EndpointTests(SynchronousTestCase):
    def assert_refused(self, text, part):
        error = self.assertRaises(BadRequest, parse_endpoint, text)
        self.assertIn(part, error.text)
        self.assertNotIn("6ba7b810", error.text)
        self.assertIsNone(error.__cause__)

    def test_least(self):
        found = parse_endpoint(f"apitoken={TOKEN},host=pve.example.com")
        self.assertEqual(found, Endpoint(apitoken=TOKEN, host="pve.example.com", port=8006, fingerprint=None))

    def test_most_in_any_order(self):
        found = parse_endpoint(f"fingerprint={FINGERPRINT.lower()},port=443,host=::1,apitoken={TOKEN}")
        self.assertEqual(found, Endpoint(apitoken=TOKEN, host="::1", port=443, fingerprint=FINGERPRINT))

    def test_other_spellings(self):
        found = parse_endpoint(f"apitoken={TOKEN},host=[::1],fingerprint={FINGERPRINT.replace(':', '').lower()}")
        self.assertEqual(found, Endpoint(apitoken=TOKEN, host="::1", fingerprint=FINGERPRINT))
        for host in ("[pve.example]", "[10.0.0.1]", "[::1", "::1]", "[]", "[::1%eth0]"):
            self.assert_refused(f"apitoken={TOKEN},host={host}", "host: value does not look like a valid")

    def test_the_secret_is_not_shown(self):
        found = parse_endpoint(f"apitoken={TOKEN},host=h")
        self.assertNotIn("6ba7b810", repr(found))
        self.assertNotIn("6ba7b810", str(found))

    def test_refused(self):
        self.assert_refused("host=h", "apitoken: property is missing and it is not optional")
        self.assert_refused(f"apitoken={TOKEN}", "host: property is missing and it is not optional")
        self.assert_refused(f"apitoken={TOKEN},host=a_b", "host: value does not look like a valid address")
        self.assert_refused(f"apitoken={TOKEN},host=a/b", "host: ")
        self.assert_refused(f"apitoken={TOKEN}\n,host=h", "apitoken: ")
        self.assert_refused(f"apitoken={TOKEN},host=h,colour=red", "colour")
        self.assert_refused(f"apitoken={TOKEN},host=h,host=i", "host")
        for port in ("0", "65536", "x", "80\n"):
            self.assert_refused(f"apitoken={TOKEN},host=h,port={port}", "port: ")
        for fingerprint in (
            FINGERPRINT[:-3],
            FINGERPRINT + ":AB",
            FINGERPRINT.replace(":", "")[:-1],
            FINGERPRINT.replace(":", "", 1),
            "GG" + FINGERPRINT[2:],
        ):
            self.assert_refused(f"apitoken={TOKEN},host=h,fingerprint={fingerprint}", "fingerprint: ")

    @given(
        st.builds(
            Endpoint,
            apitoken=st.from_regex(r"PVEAPIToken=[a-z]+@pve![a-z]+=[0-9a-f=!-]{1,36}", fullmatch=True),
            host=st.sampled_from(["h", "a.b.example", "10.0.0.1", "fe80::1"]),
            port=st.integers(1, 65535),
            fingerprint=st.none() | st.just(FINGERPRINT),
        )
    )
    @settings(deadline=None, max_examples=50)
    def test_round_trip(self, endpoint):
        self.assertEqual(parse_endpoint(format_endpoint(endpoint)), endpoint)

    def test_what_cannot_be_written(self):
        for endpoint in (
            Endpoint(apitoken="a,b", host="h"),
            Endpoint(apitoken="a", host="h,port=1"),
            Endpoint(apitoken="", host="h"),
        ):
            self.assertRaises(BadRequest, format_endpoint, endpoint)
