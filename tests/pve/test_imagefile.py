"""Headers of image files, from bytes alone."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.pve.imagefile import ImageRefused, inspect_image


def qcow2(*, extensions=b"", incompatible=0, backing=b"", crypt=0, size=1 << 20, version=3, header=104) -> bytes:
    place = 300 if backing else 0
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, place, len(backing), 16, size, crypt, 1, 0, 0, 1, 0, 0)
    head += struct.pack(">QQQII", incompatible, 0, 0, 4, header) if version == 3 else b""
    return (head + extensions).ljust(300, b"\0") + backing + bytes(100)


def extension(kind, data=b"") -> bytes:
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


def look(data, format="qcow2"):
    return inspect_image(format, lambda offset, count: data[offset : offset + count], len(data))


class Qcow2Tests(SynchronousTestCase):
    def test_plain(self):
        facts = look(qcow2())
        self.assertEqual((facts.size_bytes, facts.elsewhere, facts.encrypted), (1 << 20, None, False))
        self.assertEqual(facts.options["cluster_size"], "65536")

    def test_version_two(self):
        self.assertEqual(look(qcow2(version=2)).size_bytes, 1 << 20)
        self.assertEqual(look(qcow2(version=2, backing=b"/x")).backing, "/x")

    def test_elsewhere(self):
        self.assertEqual(look(qcow2(backing=b"/etc/\nx")).elsewhere, "image has a backing file '/etc/?x'")
        wanted = "image has an external data file"
        self.assertEqual(look(qcow2(incompatible=4)).elsewhere, wanted)
        tables = extension(0x6803F857, b"name" * 12) + extension(0x44415441, b"/data")
        self.assertEqual(look(qcow2(extensions=tables)).elsewhere, wanted)

    def test_what_stands_behind_the_last_extension_is_none(self):
        self.assertIsNone(look(qcow2(extensions=extension(0) + extension(0x44415441, b"/data"))).elsewhere)

    def test_encrypted(self):
        self.assertTrue(look(qcow2(crypt=1)).encrypted)
        self.assertTrue(look(qcow2(extensions=extension(0x0537BE77, bytes(16)))).encrypted)

    def test_refused(self):
        good = qcow2()
        for data in (b"", good[:71], good[:103], b"x" + good[1:], qcow2(version=2)[:7] + b"\4" + good[8:]):
            self.assertRaises(ImageRefused, look, data)
        self.assertRaises(ImageRefused, look, qcow2(header=8))
        self.assertRaises(ImageRefused, look, qcow2(header=1 << 20))

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 399), st.binary(min_size=1, max_size=16), st.sampled_from(["qcow2", "vmdk"]))
    def test_any_bytes_give_facts_or_a_refusal(self, offset, noise, format):
        data = bytearray(qcow2(extensions=extension(1, b"abc")) if format == "qcow2" else vmdk())
        data[offset : offset + len(noise)] = noise
        try:
            look(bytes(data), format)
        except ImageRefused:
            """That is an answer, too."""


def vmdk(
    *, capacity=20480, place=1, text=b'createType="monolithicSparse"\nRW 20480 SPARSE "a.vmdk"\n', gd=b""
) -> bytes:
    head = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, capacity, 128, place, 20)
    head = head.ljust(56, b"\0") + (gd or bytes(8))
    return head.ljust(512, b"\0") + text.ljust(20 * 512, b"\0")


class VmdkTests(SynchronousTestCase):
    def test_plain(self):
        facts = look(vmdk(), "vmdk")
        self.assertEqual((facts.size_bytes, facts.elsewhere), (20480 * 512, None))

    def footer(self, capacity):
        return vmdk(gd=b"\xff" * 8) + bytes(512) + vmdk(capacity=capacity)[:512] + bytes(512)

    def test_footer_agrees(self):
        self.assertEqual(look(self.footer(20480), "vmdk").size_bytes, 20480 * 512)

    def test_footer_contradicts(self):
        for data in (self.footer(5), self.footer(5) + b"x"):
            with self.subTest(length=len(data)):
                self.assertRaises(ImageRefused, look, self.footer(5), "vmdk")

    def test_descriptor_beyond_the_end(self):
        self.assertRaises(ImageRefused, look, vmdk(place=1 << 60), "vmdk")
        self.assertRaises(ImageRefused, look, vmdk(place=0), "vmdk")

    def test_descriptor_alone(self):
        self.assertRaises(ImageRefused, look, b"# Disk DescriptorFile\n".ljust(1024), "vmdk")

    def test_hints_in_any_case(self):
        self.assertIsNotNone(look(vmdk(text=b'PARENTfileNAMEhint="x"'), "vmdk").elsewhere)


class OtherTests(SynchronousTestCase):
    def test_raw_is_as_long_as_it_is(self):
        self.assertEqual(look(qcow2(), "raw").size_bytes, 400)

    def test_other_formats(self):
        self.assertRaises(ImageRefused, look, b"", "vdi")
