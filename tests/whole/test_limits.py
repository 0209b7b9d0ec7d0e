"""Every bound on what a peer may use, each seen at a real daemon whose limits were made small."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time

from tests.patience import patience_s, wait_for
from tests.whole.hostile import (
    RawWebsocket,
    exchange,
    head,
    import_child,
    import_end,
    read_all,
    secure,
    start_import,
    status_line,
    stopped,
)
from tests.whole.limited import Case
from tests.whole.node import Node
from tests.whole.peer import call

STORAGE_SOCKET = "/run/qemu-server/100.storage"
NOISY = """\
#!/bin/sh
[ "$1" = import ] || exec {python} -P -m mtunnel_tx.pvesm "$@"
echo ready
head -c 400000000 /dev/zero | tr '\\0' x | fold -w 1000
exit 7
"""


class ConnectionCase(Case):
    def strangers(self, count: int) -> list[socket.socket]:
        return [self.node.connect() for _ in range(count)]

    def regular(self) -> ssl.SSLSocket:
        """A connection that has shown a token, and stays."""
        sock = secure(self.node)
        sock.sendall(head(self.node, "GET", "/version"))
        answer = b""
        while not answer.endswith(b"}}"):
            answer += sock.recv(65536)
        self.assertIn(b"200 OK", answer)
        return sock

    def busy(self) -> ssl.SSLSocket:
        """The same, and another request has begun."""
        sock = self.regular()
        sock.sendall(b"GET ")
        return sock

    def close(self, socks: list[socket.socket]) -> None:
        for sock in socks:
            sock.close()


class ConnectionTests(ConnectionCase):
    limits = {"connections": 5, "connections_unauthenticated_per_address": 3, "handshake_s": 600, "request_s": 600}

    def test_strangers_of_one_address(self) -> None:
        strangers = self.strangers(3)
        with self.node.connect() as one_more:
            self.assertEqual(read_all(one_more), b"")
        self.assertFalse(self.is_served())
        self.close(strangers[:1])
        wait_for("a place", self.is_served)
        self.assertIn(
            "connection from 127.0.0.1 refused, 1 in all: too many connections of one", self.node.log.read_text()
        )
        self.close(strangers)

    def test_a_token_makes_room_for_strangers(self) -> None:
        regulars = [self.regular(), self.regular()]
        strangers = self.strangers(2)
        self.assertTrue(self.is_served())
        self.close([*regulars, *strangers])

    def test_all_places_taken(self) -> None:
        busy = [self.busy() for _ in range(5)]
        self.assertFalse(self.is_served())
        busy.pop().close()
        wait_for("a place", self.is_served)
        self.close([*busy])

    def test_who_is_idle_makes_room(self) -> None:
        """The one that has waited longest for its next request, and no other."""
        busy, idle = self.busy(), [self.regular() for _ in range(4)]
        self.assertTrue(self.is_served())
        self.assertEqual(read_all(idle[0]), b"")
        for sock in (busy, *idle[1:]):
            sock.sendall(b"GET /" if sock is not busy else b"/")
            sock.settimeout(0.2)
            with self.assertRaises(TimeoutError):
                sock.recv(1)
        self.close([busy, *idle])

    def test_idle_connections_keep_no_stream_out(self) -> None:
        tunnel = self.open()
        idle = [self.regular() for _ in range(9)]
        websocket = tunnel.stream(start_import(tunnel)["socket"])
        self.assertEqual(tunnel.ask(cmd="version")["success"], True)
        websocket.drop()
        self.leave(tunnel)
        self.close([*idle])

    def test_a_wrong_token_makes_no_room(self) -> None:
        socks = []
        for _ in range(3):
            sock = secure(self.node)
            sock.sendall(head(self.node, "GET", "/version", "Authorization: PVEAPIToken=a@b!c=d", token=False))
            socks.append(sock)
        self.assertFalse(self.is_served())
        self.close([*socks])
        wait_for("a place", self.is_served)

    def test_a_stream_keeps_its_place_until_its_end(self) -> None:
        """A websocket is a connection as long as it lives, though nothing of HTTP is left of it."""
        tunnel = self.open()
        busy = [self.busy() for _ in range(4)]
        self.assertFalse(self.is_served())
        self.leave(tunnel)
        wait_for("a place", self.is_served)
        self.close([*busy])


class TokenTests(ConnectionCase):
    """One token among others."""

    limits = {"connections": 20, "connections_per_token": 3, "request_s": 600}

    def test_it_gives_up_its_own_idle_ones(self) -> None:
        first, *others = [self.regular() for _ in range(4)]
        self.assertEqual(read_all(first), b"")
        self.close([first, *others])

    def test_all_of_them_are_busy(self) -> None:
        busy = [self.busy() for _ in range(3)]
        with secure(self.node) as sock:
            sock.sendall(head(self.node, "GET", "/version"))
            self.assertEqual(status_line(read_all(sock)), "HTTP/1.1 503 no more than 3 connections of one token")
        busy.pop().close()
        wait_for("a place", self.is_served)
        self.close([*busy])

    def test_streams_do_not_count(self) -> None:
        tunnel = self.open()
        busy = [self.busy() for _ in range(3)]
        self.assertEqual(tunnel.ask(cmd="version")["success"], True)
        self.leave(tunnel)
        self.close([*busy])


class TimeTests(Case):
    limits = {"handshake_s": 1, "request_s": 1.5}

    def ends_within(self, sock: socket.socket, least_s: float, most_s: float) -> bytes:
        began = time.monotonic()
        data = read_all(sock)
        took = time.monotonic() - began
        self.assertTrue(least_s <= took <= most_s, took)
        sock.close()
        return data

    def test_a_client_that_says_nothing(self) -> None:
        self.ends_within(self.node.connect(), 0.8, 4)

    def test_a_client_that_stops_in_the_handshake(self) -> None:
        sock = self.node.connect()
        # The head of a record, of a ClientHello, and no more.
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        self.ends_within(sock, 0.8, 4)

    def test_a_handshake_that_trickles_in(self) -> None:
        sock = self.node.connect()
        began = time.monotonic()
        with self.assertRaises(OSError):
            while time.monotonic() < began + 10:
                sock.sendall(b"\x16")
                time.sleep(0.05)
        sock.close()

    def test_a_slow_request(self) -> None:
        sock = secure(self.node)
        sock.settimeout(0.1)
        began = time.monotonic()
        request = iter(head(self.node, "GET", "/version") * 100)
        ended = False
        while not ended and time.monotonic() < began + 10:
            try:
                sock.sendall(bytes([next(request)]))
                ended = sock.recv(100) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
        self.assertTrue(1 < time.monotonic() - began < 8)
        sock.close()

    def test_a_tls_client_that_asks_for_nothing(self) -> None:
        self.ends_within(secure(self.node), 1, 5)

    def test_half_open_connections(self) -> None:
        """They end by themselves, and nothing is left of a hundred."""
        self.node.stop()
        self.node.start()
        socks = [self.node.connect() for _ in range(30)]
        for sock in socks:
            self.ends_within(sock, 0, 4)
        self.node.assert_idle()


class HttpTests(Case):
    limits = {"body_bytes": 4096, "header_bytes": 2048}

    def test_headers(self) -> None:
        answer = exchange(self.node, head(self.node, "GET", "/version", "X: " + "x" * 3000))
        self.assertEqual(status_line(answer), "HTTP/1.1 431 Request Header Fields Too Large")

    def test_body(self) -> None:
        request = head(self.node, "POST", "/nodes/localhost/qemu/100/mtunnel", "Content-Length: 5000") + b"x" * 5000
        self.assertEqual(status_line(exchange(self.node, request)), "HTTP/1.1 413 Request Entity Too Large")


class TunnelTests(Case):
    limits = {"tunnels": 2, "tunnels_per_token": 1, "streams_per_tunnel": 1, "connect_s": 600}

    def setUp(self) -> None:
        super().setUp()
        with (self.node.pve / "user.cfg").open("a") as file:
            file.write("token:mig@pve!t2:0:0::\ntoken:mig@pve!t3:0:0::\n")
        with (self.node.pve / "priv" / "token.cfg").open("a") as file:
            file.write("mig@pve!t2 s2\nmig@pve!t3 s3\n")

    def post(self, vmid: int, token: str) -> tuple[int, str]:
        authorization = f"PVEAPIToken=mig@pve!{token}=s{token[1:]}"
        path = f"/nodes/localhost/qemu/{vmid}/mtunnel"
        answer = call(self.node, "POST", path, {}, Authorization=authorization)
        return answer.status, answer.reason

    def test_tunnels(self) -> None:
        self.assertEqual(self.post(100, "t2")[0], 200)
        self.assertEqual(self.post(101, "t2"), (409, "no more than 1 tunnels at once for one token"))
        self.assertEqual(self.post(101, "t3")[0], 200)
        path = "/nodes/localhost/qemu/102/mtunnel"
        self.assertEqual(call(self.node, "POST", path, {}).reason, "no more than 2 tunnels at once")
        self.assertIsNone(self.node.guest(102))

    def test_streams(self) -> None:
        tunnel = self.open()
        start_import(tunnel)
        ticket = tunnel.ask(cmd="ticket", path=STORAGE_SOCKET)["ticket"]
        refused = RawWebsocket(self.node, 100, STORAGE_SOCKET, ticket)
        self.assertEqual(refused.status, 409)
        refused.drop()
        self.leave(tunnel)
        self.node.assert_idle()


class WaitingTests(Case):
    limits = {"connect_s": 0.5}

    def test_a_source_that_never_connects(self) -> None:
        answer = call(self.node, "POST", "/nodes/localhost/qemu/100/mtunnel", {})
        upid = answer.json["data"]["upid"]
        wait_for("the end", lambda: "TASK ERROR: Exiting mtunnel" in self.node.task_log(upid))
        self.node.assert_idle()
        self.assertIsNone(self.node.guest(100))


class LineTests(Case):
    limits = {"line_bytes": 4096, "queued_lines": 4, "queued_bytes": 8192, "frame_bytes": 131072}

    def test_a_long_line(self) -> None:
        tunnel = self.open()
        tunnel.send('{"cmd":"' + "x" * 5000 + '"}')
        text = "failed to parse command - line longer than 4096 bytes"
        self.assertEqual(tunnel.read(), {"success": False, "msg": text})
        self.assertTrue(tunnel.ask(cmd="version")["success"])
        self.leave(tunnel)

    def test_more_lines_than_may_wait(self) -> None:
        tunnel = self.open()
        line = json.dumps({"cmd": "version", "x": "y" * 1000}).encode() + b"\n"
        tunnel.commands.send(line * 100)
        self.assertEqual({tunnel.read()["success"] for _ in range(100)}, {True})
        self.leave(tunnel)

    def test_a_frame_that_says_it_is_larger(self) -> None:
        opened = call(self.node, "POST", "/nodes/localhost/qemu/100/mtunnel", {}).json["data"]
        raw = RawWebsocket(self.node, 100, opened["socket"], opened["ticket"])
        raw.send(b"\x82\xff" + (131073).to_bytes(8, "big") + bytes(4))
        self.assertEqual(raw.read_close(), 1009)
        raw.drop()
        self.node.assert_idle()


class StreamTests(Case):
    limits = {"stall_s": 2, "half_close_s": 1.5}

    def test_a_disk_that_takes_nothing(self) -> None:
        tunnel = self.open()
        start_import(tunnel)
        stream = tunnel.stream(STORAGE_SOCKET)
        with stopped(import_child(self.node)):
            stream.sock.settimeout(patience_s())
            with self.assertRaises(OSError):
                for _ in range(4096):
                    stream.send(bytes(65536))
        self.assertEqual(import_end(tunnel)["status"], "error")
        self.leave(tunnel)
        self.node.assert_idle()

    def test_a_peer_that_reads_nothing(self) -> None:
        tunnel = self.open()
        upid = tunnel.opened["upid"]
        line = json.dumps({"cmd": "y" * 60000}).encode() + b"\n"
        tunnel.commands.sock.settimeout(patience_s())
        with self.assertRaises(OSError):
            for _ in range(2000):
                tunnel.commands.send(line)
        wait_for("the end", lambda: "TASK ERROR" in self.node.task_log(upid))
        tunnel.commands.drop()
        self.node.assert_idle()
        self.assertIsNone(self.node.guest(100))

    def test_one_way_does_not_outlive_the_other_for_long(self) -> None:
        """The child stands still with all it has to know: a Close frame was an end in order, so it may go on later."""
        tunnel = self.open()
        start_import(tunnel)
        stream = tunnel.stream(STORAGE_SOCKET)
        with stopped(import_child(self.node)):
            stream.send((1 << 20).to_bytes(8, "little") + bytes(65536))
            for _ in range(15):
                stream.send(bytes(65536))
            stream.send_close()
            began = time.monotonic()
            stream.read_to_end()
            took = time.monotonic() - began
            self.assertTrue(1 < took < 6, took)
        self.assertEqual(import_end(tunnel)["status"], "complete")
        self.leave(tunnel)
        self.node.assert_idle()


class ChildTests(Case):
    def setUp(self) -> None:
        self.node = Node(extra='[commands]\npvesm = "{root}/pvesm"\n[limits]\nchild_output_bytes = 65536')
        self.addCleanup(self.node.close)
        program = self.node.root / "pvesm"
        program.write_text(NOISY.format(python=sys.executable))
        program.chmod(0o755)
        self.node.start()

    def test_a_child_that_never_stops_talking(self) -> None:
        """It waits until somebody asks: no more than the limit of its output is held."""
        tunnel = self.open()
        start_import(tunnel)
        for _ in range(50):
            self.assertEqual(
                tunnel.ask(cmd="query-disk-import"), {"success": True, "status": "pending", "msg": "x" * 1000 + "\n"}
            )
        self.leave(tunnel)
        self.node.assert_idle()
