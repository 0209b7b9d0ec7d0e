"""Hostile disk streams: cut, late, endless, on a full storage; each beside a tunnel that has to stay usable."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import tempfile
from pathlib import Path
from typing import Any
from unittest import SkipTest

from tests.patience import wait_for
from tests.processes import run_program
from tests.whole.hostile import (
    import_child,
    import_end,
    start_import,
    stopped,
)
from tests.whole.node import Node
from tests.whole.sharing import Case

VMID = 100
MIB = 1 << 20
STORAGE_SOCKET = f"/run/qemu-server/{VMID}.storage"
FAILED = "import process failed"


class ImportTests(Case):
    def setUp(self) -> None:
        super().setUp()
        self.tunnel = self.open()
        self.addCleanup(self.check_tunnel)

    def check_tunnel(self) -> None:
        """The tunnel lives on, and can undo everything."""
        self.leave(self.tunnel)
        self.assert_nothing_of(VMID)

    def feed(self, data: bytes, *, close: bool = True, **more: Any) -> dict[str, Any]:
        """One import with these bytes. Returns: how it ended."""
        reply = start_import(self.tunnel, **more)
        self.assertEqual(reply["success"], True, reply)
        stream = self.tunnel.stream(STORAGE_SOCKET)
        with contextlib.suppress(OSError):
            stream.send(data)
            if close:
                stream.send_close()
        if not close:
            stream.drop()
        end = import_end(self.tunnel)
        stream.drop()
        return end

    def assert_failed(self, data: bytes, said: str = "", **more: Any) -> None:
        end = self.feed(data, **more)
        self.assertEqual((end.get("status"), str(end.get("msg"))[: len(FAILED)]), ("error", FAILED), end)
        self.assertIn(said, end["said"])
        self.assertIn(said.strip(), end["msg"])
        self.assertEqual(self.node.images(VMID), [])
        self.assertFalse((self.node.runtime / f"{VMID}.storage").exists())

    def test_as_it_should_be(self) -> None:
        self.assertEqual(self.feed(struct.pack("<Q", MIB) + bytes(MIB))["status"], "complete")

    def test_one_byte_short(self) -> None:
        self.assert_failed(struct.pack("<Q", MIB) + bytes(MIB - 1))

    def test_one_byte_long(self) -> None:
        self.assert_failed(struct.pack("<Q", MIB) + bytes(MIB + 1))

    def test_cut_in_the_header(self) -> None:
        for count in (0, 1, 7):
            self.assert_failed(bytes(count))

    def test_nothing_but_the_header(self) -> None:
        self.assert_failed(struct.pack("<Q", MIB))

    def test_sizes_that_are_none(self) -> None:
        for size in (1 << 63, (1 << 64) - 1):
            self.assert_failed(struct.pack("<Q", size) + bytes(512))

    def test_without_a_close_frame(self) -> None:
        """All bytes are there, but nobody said that they are all."""
        self.assert_failed(struct.pack("<Q", MIB) + bytes(MIB), close=False)

    def test_killed_child(self) -> None:
        start_import(self.tunnel)
        stream = self.tunnel.stream(STORAGE_SOCKET)
        stream.send(struct.pack("<Q", MIB) + bytes(1000))
        os.kill(import_child(self.node), signal.SIGKILL)
        end = import_end(self.tunnel)
        self.assertEqual((end["status"], end["msg"]), ("error", f"{FAILED}\n"))
        stream.drop()

    def test_killed_child_that_stood_still(self) -> None:
        start_import(self.tunnel)
        stream = self.tunnel.stream(STORAGE_SOCKET)
        child = import_child(self.node)
        with stopped(child):
            stream.send(struct.pack("<Q", MIB) + bytes(1000))
            os.kill(child, signal.SIGKILL)
        self.assertEqual(import_end(self.tunnel)["status"], "error")
        stream.drop()

    def test_two_at_once(self) -> None:
        start_import(self.tunnel)
        reply = start_import(self.tunnel, "b.raw")
        self.assertRegex(
            reply["msg"], r"^failed to handle 'disk-import' command - disk import already running as PID '\d+'\n$"
        )

    def test_a_source_that_dies_midway(self) -> None:
        other = self.open(101)
        start_import(other)
        stream = other.stream("/run/qemu-server/101.storage")
        stream.send(struct.pack("<Q", MIB) + bytes(1000))
        other.commands.drop()
        wait_for("the end of its tunnel", lambda: 101 not in self.tunnels())
        self.assertEqual((self.node.guest(101), self.node.images(101)), (None, []))
        self.assertIsNone(stream.read_to_end())
        stream.drop()

    def qcow2(self, *options: str) -> bytes:
        """An image of 1 MiB made by qemu-img."""
        folder = Path(tempfile.mkdtemp(prefix="mtunnel-image-"))
        self.addCleanup(shutil.rmtree, folder)
        path = folder / "disk.qcow2"
        run_program(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "1M"])
        return path.read_bytes()

    def test_an_image_that_stands_on_another_file(self) -> None:
        image = self.qcow2("-u", "-b", "/etc/shadow", "-F", "raw")
        self.assertIn(b"/etc/shadow", image)
        stream = struct.pack("<Q", MIB) + image
        end = self.feed(stream, volname="b.qcow2", format="qcow2", export_formats="qcow2+size", with_snapshots=1)
        self.assertNotEqual(end.get("status"), "complete", end)
        self.assertEqual(self.node.images(VMID), [])

    def test_an_image_whose_data_lie_elsewhere(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="mtunnel-image-"))
        self.addCleanup(shutil.rmtree, folder)
        stream = struct.pack("<Q", MIB) + self.qcow2("-o", f"data_file={folder}/data,data_file_raw=on")
        end = self.feed(stream, volname="b.qcow2", format="qcow2", export_formats="qcow2+size", with_snapshots=1)
        self.assertNotEqual(end.get("status"), "complete", end)
        self.assertEqual(self.node.images(VMID), [])

    def test_an_image_cut_short(self) -> None:
        stream = struct.pack("<Q", MIB) + self.qcow2()[:-65536]
        more = {"volname": "b.qcow2", "format": "qcow2", "export_formats": "qcow2+size", "with_snapshots": 1}
        self.assert_failed(stream, close=False, **more)


class NeverConnectedTests(Case):
    def test_an_import_that_nobody_feeds(self) -> None:
        """The child gives up by itself, says so, and is gone."""
        tunnel = self.open()
        start_import(tunnel)
        end = import_end(tunnel)
        self.assertEqual(end["status"], "error")
        self.assertIn("timed out waiting for client", end["said"])
        self.assertIn(f"{FAILED} - timed out waiting for client", end["msg"])
        self.leave(tunnel)
        self.assert_nothing_of(VMID)


class FullStorageTests(Case):
    def take_node(self) -> Node:
        node = Node(storages="dir: local\n\tpath {root}/local\n\tcontent images\n").start()
        self.addCleanup(node.close)
        return node

    def setUp(self) -> None:
        if os.geteuid() != 0:
            raise SkipTest("needs root: it mounts a small file system")
        super().setUp()
        self.mount = self.node.root / "local"
        self.mount.mkdir(exist_ok=True)
        run_program(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", self.mount])
        # Before the node goes: cleanups run last in, first out.
        self.addCleanup(run_program, ["umount", "-l", self.mount], check=False)

    def test_it_fills_midway(self) -> None:
        tunnel = self.open()
        start_import(tunnel)
        stream = tunnel.stream(STORAGE_SOCKET)
        with contextlib.suppress(OSError):
            stream.send(struct.pack("<Q", 64 * MIB))
            for _ in range(1024):
                stream.send(os.urandom(65536))
            stream.send_close()
        end = import_end(tunnel)
        self.assertEqual(end["status"], "error")
        self.assertIn("No space left on device", end["msg"])
        stream.drop()
        self.leave(tunnel)
        self.assert_nothing_of(VMID)
