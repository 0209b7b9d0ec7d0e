"""Streams that leave holes out (`raw+sparse`, `qcow2+sparse`): nothing of Proxmox's, spoken between two of ours."""

import os
import struct
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import BadRequest
from mtunnel_tx.extents import measure_extents
from mtunnel_tx.pvesm.pieces import sparse_pieces
from mtunnel_tx.pvesm.sparse import send_extents
from tests.patience import patience_s
from tests.pvesm.importing import ImportCase
from tests.pvesm.programs import MIB, header

RAW = ("local:100/vm-100-disk-0.raw", "raw+sparse")
QCOW2 = ("local:100/vm-100-disk-0.qcow2", "qcow2+sparse")
BLOCK = 64 << 10


def extent(offset, data, length=None):
    return struct.pack("<QQ", offset, len(data) if length is None else length) + data


def end(length):
    return struct.pack("<QQ", length, 0)


class StreamCase(ImportCase):
    def feed(self, target, payload, *options, **more):
        with_snapshots = () if target[1].startswith("raw") else ("-with-snapshots", "1")
        return self.pvesm("import", *target, "-", *with_snapshots, *options, given=payload, **more)

    def export(self, volid, stream, *options):
        process = self.start("export", volid, stream, "-", *options)
        out, err = process.communicate(timeout=patience_s())
        self.assertEqual((process.returncode, err), (0, b""))
        return out

    def image(self, name):
        path = self.images / "100" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class RawTests(StreamCase):
    def test_holes_are_not_sent(self):
        path = self.image("vm-100-disk-0.raw")
        with path.open("wb") as file:
            for place in (0, 5 * MIB, 9 * MIB):
                file.seek(place)
                file.write(b"x" * BLOCK)
            file.truncate(512 * MIB + 512)
        stream = self.export(RAW[0], "raw+sparse")
        self.assertLess(len(stream), 4 * BLOCK)
        self.assertEqual(stream[:8], header(512 * MIB + 512))
        done = self.feed(("local:101/vm-101-disk-0.raw", "raw+sparse"), stream)
        self.assertEqual((done.code, done.err), (0, ""))
        copy = self.images / "101/vm-101-disk-0.raw"
        self.assertEqual(copy.stat().st_size, 512 * MIB + 512)
        self.assertLess(copy.stat().st_blocks * 512, MIB)
        with path.open("rb") as one, copy.open("rb") as other:
            while piece := one.read(16 * MIB):
                self.assertEqual(piece, other.read(16 * MIB))

    def test_what_is_no_such_stream(self):
        size = header(1024)
        for payload, reason in (
            (b"", "no size found"),
            (size, "cut short"),
            (size + end(1024)[:-1], "cut short"),
            (size + extent(0, b"x" * 100, 200), "cut short"),
            (size + extent(0, b"x" * 512), "cut short"),
            (size + extent(0, b"x" * 512) + end(512), "stream ended after 512 of 1024 bytes"),
            (size + extent(0, b"x" * 512) + end(1024) + b"y", "goes on behind its end"),
            (size + extent(1000, b"x" * 100) + end(1024), "an impossible extent, 100 bytes at 1000"),
            (size + extent(512, b"x" * 8) + extent(0, b"y") + end(1024), "an impossible extent, 1 bytes at 0"),
            (size + extent(2**64 - 1, b"", 2**64 - 1), "an impossible extent"),
            (size + end(1025), "an impossible extent, 0 bytes at 1025"),
        ):
            with self.subTest(reason):
                self.refused(self.feed(RAW, payload), reason)

    def test_nothing_but_holes(self):
        self.assertEqual(self.feed(RAW, header(MIB) + end(MIB)).code, 0)
        self.assertEqual(self.stored("vm-100-disk-0.raw"), bytes(MIB))


class ImageTests(StreamCase):
    def test_snapshots_come_along(self):
        source = self.qcow2(size_bytes=256 * MIB)
        path = self.image("vm-100-disk-9.qcow2")
        path.write_bytes(b"")
        with source.open("rb") as one, path.open("r+b") as other:
            data = one.read()
            for place in range(0, len(data), 4096):
                if data[place : place + 4096].strip(b"\0"):
                    other.seek(place)
                    other.write(data[place : place + 4096])
            other.truncate(len(data))
        stream = self.export("local:100/vm-100-disk-9.qcow2", "qcow2+sparse", "-with-snapshots", "1")
        self.assertLess(len(stream), 4 * MIB)
        done = self.feed(("local:101/vm-101-disk-0.qcow2", "qcow2+sparse"), stream)
        self.assertEqual((done.code, done.err), (0, ""))
        self.assertEqual((self.images / "101/vm-101-disk-0.qcow2").read_bytes(), data)

    def test_cut_short(self):
        data = self.qcow2(snapshots=()).read_bytes()
        stream = header(10 * MIB) + extent(0, data[:BLOCK]) + end(BLOCK)
        self.refused(self.feed(QCOW2, stream), "errors in the image")

    def test_a_header_behind_a_hole(self):
        self.refused(self.feed(QCOW2, header(MIB) + extent(4096, b"x" * 512) + end(8192)), "not in qcow2 format")

    def test_a_length_beyond_all_bounds(self):
        self.refused(self.feed(QCOW2, header(MIB) + end(2**63)), "an impossible extent")

    def test_a_length_that_only_fills_memory(self):
        """qemu-img keeps a count for each cluster: here 8 bytes for each of 2^29."""
        path = self.root / "small.qcow2"
        options = "cluster_size=512,refcount_bits=64"
        self.qemu_img("create", "-q", "-f", "qcow2", "-o", options, str(path), str(MIB))
        data = path.read_bytes()
        stream = header(MIB) + extent(0, data) + end(1 << 38)
        self.refused(self.feed(QCOW2, stream), "too many clusters to be checked: 274877906944 bytes in pieces of 512")

    def test_snapshots_have_to_be_wanted(self):
        done = self.pvesm("import", *QCOW2, "-", given=b"")
        self.assertIn("format qcow2+sparse cannot be imported without snapshots", done.err)


class PieceTests(SynchronousTestCase):
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=12), st.integers(0, 4095))
    def test_what_is_sent_comes_out(self, runs, rest):
        with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as stream:
            for has_data, blocks in runs:
                if has_data:
                    source.write(os.urandom(blocks * 4096))
                else:
                    source.seek(blocks * 4096, os.SEEK_CUR)
            length = source.tell() + rest
            source.truncate(length)
            send_extents(source.fileno(), length, stream.fileno())
            self.assertEqual(stream.tell(), measure_extents(source.fileno(), length).stream_bytes)
            stream.seek(0)
            copy = bytearray(length)
            pieces = list(self.copied(sparse_pieces(stream.fileno(), length), copy))
            self.assertEqual(pieces[-1], (length, 0))
            source.seek(0)
            self.assertEqual(bytes(copy), source.read())

    def copied(self, pieces, copy):
        for piece in pieces:
            copy[piece.offset : piece.offset + piece.count] = piece.view
            yield piece.offset, piece.count

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=200))
    def test_any_bytes_end(self, data):
        with tempfile.TemporaryFile() as stream:
            stream.write(data)
            stream.seek(0)
            try:
                for piece in sparse_pieces(stream.fileno(), 1000):
                    self.assertLessEqual(piece.offset + piece.count, 1000)
            except BadRequest:
                """That is an answer, too."""
