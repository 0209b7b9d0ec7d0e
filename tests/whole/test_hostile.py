"""What a broken or hostile source may send: a clear answer to each, nothing left behind, others undisturbed."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.whole.hostile import (
    KEY,
    RawWebsocket,
    exchange,
    frame,
    head,
    import_child,
    import_end,
    read_all,
    secure,
    start_import,
    status_line,
    stopped,
)
from tests.whole.node import Node, wait_for
from tests.whole.peer import Answer, Tunnel, call

VMID = 100
MIB = 1 << 20
STORAGE_SOCKET = f"/run/qemu-server/{VMID}.storage"
FAILED = "import process failed\n"
EVIL = "a\r\nX-Evil: 1\r\n\r\n\x00\x1b[31m\u2028"


class SharedNode:
    """One daemon takes it all, test after test, as long as nothing is left behind; then the next test has another."""

    node: Node | None = None
    is_clean = False

    def take(self) -> Node:
        if not self.is_clean:
            self.close()
            self.node = Node().start()
        self.is_clean = False
        assert self.node is not None
        return self.node

    def close(self) -> None:
        node, self.node = self.node, None
        if node is not None:
            node.close()


SHARED = SharedNode()
atexit.register(SHARED.close)


class Case(SynchronousTestCase):
    """A daemon with a witness: another tunnel that has to stay as it is, whatever the first one does."""

    def setUp(self) -> None:
        self.node = self.take_node()
        self.witness = self.open(999)
        self.addCleanup(self.check_witness)

    def take_node(self) -> Node:
        return SHARED.take()

    def open(self, vmid: int = VMID) -> Tunnel:
        return Tunnel(self.node, vmid, storages="local", bridges="")

    def check_witness(self) -> None:
        """The witness can still do everything; then nothing is left."""
        self.assertEqual(self.witness.ask(cmd="version"), {"success": True, "api": 2, "age": 0})
        reply = self.witness.ask(cmd="disk", storage="local", drive={"size": MIB})
        self.assertEqual(reply["success"], True, reply)
        self.leave(self.witness)
        self.node.assert_idle()
        self.assertNotIn("Traceback", self.node.log.read_text())
        SHARED.is_clean = SHARED.is_clean or self.node is SHARED.node

    def leave(self, tunnel: Tunnel) -> None:
        self.assertEqual(tunnel.ask(cmd="quit", cleanup=1), {"success": True})
        tunnel.leave()

    def assert_nothing_of(self, vmid: int) -> None:
        wait_for("the end of the tunnel", lambda: self.tunnels() == [999])
        found = (self.node.guest(vmid), self.node.firewall(vmid), self.node.images(vmid))
        self.assertEqual(found, (None, None, []))

    def tunnels(self) -> list[int]:
        return [tunnel["vmid"] for tunnel in self.node.ask(cmd="status")["tunnels"]]


class LineTests(Case):
    def setUp(self) -> None:
        super().setUp()
        self.tunnel = self.open()
        self.addCleanup(self.check_tunnel)

    def check_tunnel(self) -> None:
        """The tunnel lives on."""
        self.assertEqual(self.tunnel.ask(cmd="version")["success"], True)
        self.leave(self.tunnel)

    def msg(self, line: bytes) -> str:
        self.tunnel.commands.send(line + b"\n")
        reply = self.tunnel.read()
        self.assertEqual((reply.keys(), reply["success"]), ({"success", "msg"}, False))
        return str(reply["msg"])

    def test_five_mebibytes(self) -> None:
        self.assertEqual(self.msg(b"x" * (5 * MIB)), f"failed to parse command - line longer than {4 * MIB} bytes")

    def test_ten_thousand_at_once(self) -> None:
        # All of it fits into the buffers on the way: nobody has to read meanwhile.
        self.tunnel.commands.send(b'{"cmd":"nosuch"}\n' * 10_000)
        for _ in range(10_000):
            self.assertEqual(self.tunnel.read()["msg"], "unknown command 'nosuch' given")

    def test_garbage(self) -> None:
        for line in (
            bytes(range(128, 256)),
            b"\0",
            b"\xff\xfe{}",
            b"\xef\xbb\xbf{}",
            b"{",
            b"}",
            b"{'cmd':1}",
            b"",
            b" ",
        ):
            self.assertTrue(self.msg(line).startswith("failed to parse command - "), line)

    def test_no_object(self) -> None:
        for line in (b"[]", b'"x"', b"5", b"true", b"1e999", b"-", b"[{}]"):
            self.assertTrue(self.msg(line).startswith("failed to parse command - "), line)
        self.assertEqual(self.msg(b"null"), "'cmd' missing")

    def test_nested(self) -> None:
        for line in (
            b"[" * 10_000,
            b'{"cmd":' * 10_000,
            b'{"cmd":"version","x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        ):
            self.assertTrue(self.msg(line).startswith("failed to parse command - "), line[:20])

    def test_the_last_of_two_keys_counts(self) -> None:
        self.assertEqual(self.msg(b'{"cmd":"version","cmd":"nosuch"}'), "unknown command 'nosuch' given")

    def test_numbers_that_are_none(self) -> None:
        for number in (b"NaN", b"Infinity", b"-Infinity"):
            line = b'{"cmd":"disk","storage":"local","drive":{"size":' + number + b"}}"
            self.assertIn("failed to", self.msg(line))

    def test_lone_surrogates(self) -> None:
        for line in (
            rb'{"cmd":"\ud800"}',
            rb'{"cmd":"disk","storage":"\udfff","drive":{}}',
            rb'{"cmd":"config","conf":"name: \ud800\n"}',
            rb'{"cmd":"version","\udc00":1}',
        ):
            self.assertTrue(self.msg(line).startswith("failed to parse command - "), line)

    def test_keys_that_are_not_text(self) -> None:
        self.assertIn("'cmd' missing", self.msg(b'{"CMD":"version"}'))
        self.assertEqual(self.msg(b'{"cmd":[]}'), "unknown command 'ARRAY' given")
        self.assertEqual(self.msg(b'{"cmd":{}}'), "unknown command 'HASH' given")

    def test_line_ends_in_every_string(self) -> None:
        """They come back in the reply, as JSON; no log has them."""
        disk = {"volname": "a.raw", "format": "raw", "export_formats": "raw+size", "storage": "local"}
        requests: list[dict[str, Any]] = [
            {"cmd": EVIL},
            {"cmd": "disk", "storage": EVIL, "drive": {"size": MIB}},
            {"cmd": "disk", "storage": "local", "drive": {"size": EVIL}},
            {"cmd": "disk", "storage": "local", "drive": {"size": MIB, "serial": EVIL}, "format": EVIL},
            *({"cmd": "disk-import", **disk, name: EVIL} for name in disk),
            {"cmd": "disk-import", **disk, "snapshot": EVIL},
            {"cmd": "ticket", "path": EVIL},
            {"cmd": "bwlimit", "storages": [EVIL]},
            {"cmd": "config", "conf": EVIL},
            {"cmd": "config", "conf": f"name: {EVIL}"},
            {"cmd": "config", "conf": f"scsi0: local:{EVIL}"},
            {"cmd": "start", "start_params": {"statefile": EVIL}, "migrate_opts": {}},
            {"cmd": "version", EVIL: EVIL},
        ]
        for request in requests:
            self.tunnel.send(json.dumps(request))
            reply = self.tunnel.read()
            self.assertIn("success", reply, request)
        for text in (self.node.log.read_text(), self.node.task_log(self.tunnel.opened["upid"])):
            self.assertNotIn("\nX-Evil", text)
            self.assertNotIn("\x1b", text)
            self.assertNotIn("\r", text)


class VolumeTests(Case):
    def setUp(self) -> None:
        super().setUp()
        self.tunnel = self.open()
        self.addCleanup(self.check_tunnel)

    def check_tunnel(self) -> None:
        """The tunnel lives on, and can undo everything."""
        self.leave(self.tunnel)
        self.assert_nothing_of(VMID)

    def test_names(self) -> None:
        names = ("../x.raw", "a/../b.raw", "/etc/passwd", "a/b.raw", "a\nb.raw", "a\0b.raw", "a b.raw", "", ".raw")
        taken = {name: reply for name in names if (reply := start_import(self.tunnel, name))["success"]}
        self.assertEqual(taken, {})
        self.assertEqual(self.node.images(VMID), [])

    def test_a_name_of_dots_stays_in_the_folder(self) -> None:
        self.assertEqual(start_import(self.tunnel, "..")["success"], True)
        stream = self.tunnel.stream(STORAGE_SOCKET)
        stream.send(struct.pack("<Q", MIB) + bytes(MIB))
        stream.send_close()
        self.assertEqual(import_end(self.tunnel)["volid"], f"local:{VMID}/...raw")
        stream.drop()

    def test_another_vm(self) -> None:
        reply = start_import(self.tunnel, "vm-999-disk-0.raw")
        self.assertEqual(
            reply["msg"],
            "failed to handle 'disk-import' command - volume 'local:100/vm-999-disk-0.raw' does not belong to VM 100\n",
        )
        taken = self.witness.ask(cmd="disk", storage="local", drive={"size": MIB})["volid"]
        reply = self.tunnel.ask(cmd="config", conf=f"scsi0: {taken}\n")
        self.assertEqual(reply["success"], False, reply)
        self.assertEqual(self.tunnel.ask(cmd="config", conf="name: x\n")["success"], True)

    def test_sizes(self) -> None:
        for size in (0, -1, 1 << 63, 1 << 64, 10**30, "0x10", "1G", "", None, [], True, 1.5, 1e300):
            reply = self.tunnel.ask(cmd="disk", storage="local", drive={"size": size})
            self.assertFalse(reply["success"], size)
        self.assertFalse(self.tunnel.ask(cmd="disk", storage="local", drive={})["success"])
        self.assertEqual(self.node.images(VMID), [])

    def test_a_disk_larger_than_anything(self) -> None:
        """As large as a file may be: an error of the storage, or a sparse file; nothing in between."""
        reply = self.tunnel.ask(cmd="disk", storage="local", drive={"size": (1 << 62) - 1}, format="raw")
        self.assertEqual(len(self.node.images(VMID)), int(reply["success"]))


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
        self.assertEqual((end.get("status"), end.get("msg")), ("error", FAILED), end)
        self.assertIn(said, end["said"])
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
        self.assertEqual((end["status"], end["msg"]), ("error", FAILED))
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
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "1M"], check=True, timeout=60)
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
        self.assertEqual((end["status"], end["msg"]), ("error", FAILED))
        self.assertIn("timed out waiting for client", end["said"])
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
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", self.mount], check=True, timeout=30)
        # Before the node goes: cleanups run last in, first out.
        self.addCleanup(subprocess.run, ["umount", "-l", self.mount], timeout=30)

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
        self.assertEqual((end["status"], end["msg"]), ("error", FAILED))
        self.assertIn("No space left on device", end["said"])
        stream.drop()
        self.leave(tunnel)
        self.assert_nothing_of(VMID)


class TunnelTests(Case):
    def test_two_for_one_vmid_in_the_same_instant(self) -> None:
        answers: list[Answer] = []

        def post() -> None:
            answers.append(call(self.node, "POST", f"/nodes/localhost/qemu/{VMID}/mtunnel", {"storages": "local"}))

        threads = [threading.Thread(target=post) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(sorted(answer.status for answer in answers), [200] + [400] * 7)
        reasons = {answer.json["errors"]["vmid"] for answer in answers if answer.status == 400}
        text = f"unable to create empty VM config - VM {VMID} already exists on node 'pvetest'\n"
        self.assertEqual(reasons, {text})
        opened = next(answer.json["data"] for answer in answers if answer.status == 200)
        raw = RawWebsocket(self.node, VMID, opened["socket"], opened["ticket"])
        raw.send(frame(1, b'{"cmd":"quit","cleanup":1}\n') + frame(8, b"\x03\xe8"))
        self.assertEqual(raw.read_frame(), (0x82, b'{"success":true}\n'))
        raw.drop()
        self.assert_nothing_of(VMID)

    def test_a_token_that_is_revoked_meanwhile(self) -> None:
        """The tunnel goes on until it ends; whatever needs the token again is refused."""
        tunnel = self.open()
        tokens = self.node.pve / "priv" / "token.cfg"
        kept = tokens.read_text()
        ticket = start_import(tunnel) and tunnel.ask(cmd="ticket", path=STORAGE_SOCKET)["ticket"]
        tokens.write_text("")
        try:
            raw = RawWebsocket(self.node, VMID, STORAGE_SOCKET, ticket)
            self.assertEqual(raw.answer.partition(b"\r\n")[0], b"HTTP/1.1 401 Authentication failed!")
            raw.drop()
            self.assertEqual(tunnel.ask(cmd="version")["success"], True)
            self.assertEqual(tunnel.ask(cmd="quit", cleanup=1), {"success": True})
        finally:
            tokens.write_text(kept)
        tunnel.leave()
        self.assert_nothing_of(VMID)

    def test_a_second_command_connection(self) -> None:
        tunnel = self.open()
        raw = RawWebsocket(self.node, VMID, tunnel.opened["socket"], tunnel.opened["ticket"])
        reason = f"tunnel of VM {VMID} has its command connection already".encode()
        self.assertEqual(raw.answer.partition(b"\r\n")[0], b"HTTP/1.1 409 " + reason)
        raw.drop()
        self.leave(tunnel)

    def refusal(self, vmid: int, path: str, ticket: str) -> str:
        raw = RawWebsocket(self.node, vmid, path, ticket)
        raw.drop()
        return status_line(raw.answer)

    def test_tickets_of_another(self) -> None:
        tunnel = self.open()
        invalid = "HTTP/1.1 401 permission denied - invalid PVETUNNEL ticket"
        socket, ticket = tunnel.opened["socket"], tunnel.opened["ticket"]
        other = self.witness.opened["socket"]
        # Three of them wait three seconds each: at once.
        tries = [(999, socket, ticket), (999, other, ticket), (VMID, other, ticket), (VMID, socket, ticket[:-1] + "x")]
        found: list[str] = []
        threads = [threading.Thread(target=lambda t=one: found.append(self.refusal(*t))) for one in tries]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(found, [invalid] * 4)
        self.leave(tunnel)

    def test_a_socket_file_that_is_missing(self) -> None:
        tunnel = self.open()
        start_import(tunnel)
        ticket = tunnel.ask(cmd="ticket", path=STORAGE_SOCKET)["ticket"]
        (self.node.runtime / f"{VMID}.storage").unlink()
        self.assertTrue(self.refusal(VMID, STORAGE_SOCKET, ticket).startswith("HTTP/1.1 502 "))
        self.leave(tunnel)
        self.assert_nothing_of(VMID)


class WebsocketTests(Case):
    """Frames that no honest peer sends end the connection with their code, and the tunnel by its rule."""

    def command(self, *lines: str) -> RawWebsocket:
        opened = call(self.node, "POST", f"/nodes/localhost/qemu/{VMID}/mtunnel", {}).json["data"]
        return RawWebsocket(self.node, VMID, opened["socket"], opened["ticket"], *lines)

    def assert_closes(self, data: bytes, code: int | None) -> None:
        raw = self.command()
        self.assertEqual(raw.status, 101)
        raw.send(data)
        self.assertEqual(raw.read_close(), code, data[:20])
        raw.drop()
        self.assert_nothing_of(VMID)

    def test_unmasked(self) -> None:
        self.assert_closes(frame(2, b"x", masked=False), 1002)

    def test_reserved_bits(self) -> None:
        for rsv in (1, 2, 4, 7):
            self.assert_closes(frame(2, b"x", rsv=rsv), 1002)

    def test_reserved_opcodes(self) -> None:
        for opcode in (3, 7, 11, 15):
            self.assert_closes(frame(opcode, b"x"), 1002)

    def test_oversized(self) -> None:
        self.assert_closes(b"\x82\xff" + (65 << 20).to_bytes(8, "big") + bytes(4), 1009)
        self.assert_closes(b"\x82\xff" + (1 << 63).to_bytes(8, "big") + bytes(4), 1002)

    def test_control_frames(self) -> None:
        self.assert_closes(frame(9, b"x", fin=False), 1002)
        self.assert_closes(frame(9, b"x" * 126), 1002)

    def test_continuation_of_nothing(self) -> None:
        self.assert_closes(frame(0, b"x"), 1002)

    def test_a_frame_inside_a_fragmented_one(self) -> None:
        self.assert_closes(frame(2, b"x", fin=False) + frame(2, b"y"), 1002)

    def test_close_codes(self) -> None:
        for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000):
            self.assert_closes(frame(8, code.to_bytes(2, "big")), 1002)
        self.assert_closes(frame(8, b"x"), 1002)
        self.assert_closes(frame(8, b"\x03\xe8\xff"), 1007)

    def test_regular_close_codes(self) -> None:
        for payload in (b"", b"\x03\xe8", b"\x03\xe8bye", b"\x0b\xb8"):
            raw = self.command()
            raw.send(frame(8, payload))
            self.assertIsNotNone(raw.read_close())
            raw.drop()
            self.assert_nothing_of(VMID)

    def test_fragments_and_pings_are_regular(self) -> None:
        raw = self.command()
        raw.send(
            frame(2, b'{"cmd"', fin=False) + frame(9, b"hello") + frame(0, b':"version"', fin=False) + frame(0, b"}\n")
        )
        self.assertEqual(
            {raw.read_frame(), raw.read_frame()}, {(0x8A, b"hello"), (0x82, b'{"age":0,"api":2,"success":true}\n')}
        )
        raw.send(frame(8, b"\x03\xe8"))
        self.assertEqual(raw.read_close(), 1000)
        raw.drop()
        self.assert_nothing_of(VMID)

    def test_a_flood_of_pings(self) -> None:
        raw = self.command()
        sender = threading.Thread(target=raw.send, args=(frame(9, b"x" * 125) * 20_000,))
        sender.start()
        sender.join(30)
        raw.send(frame(8, b"\x03\xe8"))
        self.assertEqual(raw.read_close(), 1000)
        raw.drop()
        self.assert_nothing_of(VMID)

    def test_handshakes_that_are_none(self) -> None:
        upgrade, connection = "Upgrade: websocket", "Connection: Upgrade"
        key, version = f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13"
        tunnel = self.open()
        for lines, answer in (
            ((upgrade, connection, key, "Sec-WebSocket-Version: 8"), "500 unsupported websocket-version '8'"),
            ((upgrade, connection, key, "Sec-WebSocket-Version: 0013"), "500 unsupported websocket-version '0013'"),
            ((upgrade, connection, key), "500 unsupported websocket-version ''"),
            ((upgrade, connection, version), "500 missing websocket-key"),
            (("Upgrade: h2c", connection, key, version), "500 unable to upgrade to protocol 'h2c'"),
        ):
            raw = RawWebsocket(self.node, VMID, tunnel.opened["socket"], tunnel.opened["ticket"], *lines)
            self.assertEqual(status_line(raw.answer), f"HTTP/1.1 {answer}")
            raw.drop()
        for key in ("Sec-WebSocket-Key: x", "Sec-WebSocket-Key: " + "A" * 1000):
            raw = RawWebsocket(
                self.node, VMID, tunnel.opened["socket"], tunnel.opened["ticket"], upgrade, connection, key, version
            )
            self.assertIn(raw.status, (400, 409))
            raw.drop()
        self.leave(tunnel)


class HttpTests(Case):
    """Over real HTTP what tests/net/test_api.py proves row by row."""

    def line(self, method: str, path: str, *lines: str, body: bytes = b"", token: bool = True) -> str:
        length = [f"Content-Length: {len(body)}"] if body or method == "POST" else []
        request = head(self.node, method, path, "Connection: close", *length, *lines, token=token) + body
        return status_line(exchange(self.node, request)).removeprefix("HTTP/1.1 ")

    def post(self, vmid: object, body: bytes, *lines: str, node: str = "localhost") -> str:
        return self.line("POST", f"/nodes/{node}/qemu/{vmid}/mtunnel", *lines, body=body)

    def test_credentials(self) -> None:
        wrong = "Authorization: PVEAPIToken=mig@pve!t1=wrong"
        found: dict[str, str] = {}

        def ask(name: str, *lines: str) -> None:
            found[name] = self.line("GET", "/version", *lines, token=False)

        threads = [
            threading.Thread(target=ask, args=arguments)
            for arguments in (
                ("none",),
                ("foreign", "Authorization: Basic eDp5"),
                ("wrong", wrong),
                ("evil", f"{wrong}\x01\x02"),
            )
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = {"none": "401 No ticket", "foreign": "401 No ticket"}
        self.assertEqual(
            found, {**expected, "wrong": "401 Authentication failed!", "evil": "401 Authentication failed!"}
        )

    def test_rows_of_the_call(self) -> None:
        refused = "400 Parameter verification failed."
        for vmid in ("99", "1000000000", "abc", "0100"):
            self.assertEqual(self.post(vmid, b""), refused, vmid)
        for body in (b"foo=1", b"vmid=101", b"vmid=100&vmid=100", b"storages=storage!", b"bridges=bridge!"):
            self.assertEqual(self.post(VMID, body), refused, body)
        self.assertEqual(self.post(VMID, b"", node="elsewhere"), refused)
        self.assertEqual(self.post(999, b""), refused)
        self.assertEqual(self.post(VMID, b"storages=nosuch"), "500 storage 'nosuch' does not exist")
        self.assertEqual(self.post(VMID, b"bridges=vmbr77"), "500 bridge 'vmbr77' does not exist")
        self.assertTrue(self.post(VMID, b"x", "Content-Type: text/plain").startswith("506 "))
        self.assertTrue(self.post(VMID, b"{", "Content-Type: application/json").startswith("500 "))
        self.assert_nothing_of(VMID)

    def test_paths(self) -> None:
        self.assertEqual(self.line("GET", "/nosuch"), "501 Method 'GET /nosuch' not implemented")
        self.assertEqual(self.line("DELETE", "/version"), "501 Method 'DELETE /version' not implemented")
        self.assertTrue(self.line("GET", "/../../../etc/passwd").startswith("501 "))

    def test_line_ends_in_what_is_shown_again(self) -> None:
        for answer in (
            exchange(self.node, head(self.node, "GET", "/a%0d%0aX-Evil:%201%0d%0a%0d%0a", "Connection: close")),
            exchange(
                self.node,
                head(
                    self.node,
                    "POST",
                    f"/nodes/localhost/qemu/{VMID}/mtunnel",
                    "Connection: close",
                    "Content-Length: 41",
                )
                + b"storages=a%0d%0aX-Evil%3a1%0d%0a%0d%0axxxxxxx",
            ),
        ):
            top = answer.partition(b"\r\n\r\n")[0]
            self.assertNotIn(b"\r\nX-Evil", top)
            self.assertEqual(top.count(b"HTTP/1.1"), 1)

    def test_nonsense(self) -> None:
        for data in (
            b"\0" * 100 + b"\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ):
            with secure(self.node) as sock:
                sock.sendall(data)
                self.assertIn(
                    read_all(sock)[:12], (b"", b"HTTP/1.1 400", b"HTTP/1.1 401", b"HTTP/1.1 505", b"HTTP/1.1 501")
                )

    def test_no_tls_at_all(self) -> None:
        with self.node.connect() as sock:
            sock.sendall(b"GET /api2/json/version HTTP/1.1\r\nHost: x\r\n\r\n")
            self.assertNotIn(b"HTTP/1.1 200", read_all(sock))
