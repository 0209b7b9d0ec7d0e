"""Hostile command lines and volume names, each beside a tunnel that has to stay usable."""

from __future__ import annotations

import json
import struct
from typing import Any

from tests.whole.hostile import (
    import_end,
    start_import,
)
from tests.whole.sharing import Case

VMID = 100
MIB = 1 << 20
STORAGE_SOCKET = f"/run/qemu-server/{VMID}.storage"
EVIL = "a\r\nX-Evil: 1\r\n\r\n\x00\x1b[31m\u2028"


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
