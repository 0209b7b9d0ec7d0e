"""Hostile tunnels, websockets and requests, each beside a tunnel that has to stay usable."""

from __future__ import annotations

import threading

from tests.patience import patience_s
from tests.whole.hostile import (
    KEY,
    RawWebsocket,
    exchange,
    frame,
    head,
    read_all,
    secure,
    start_import,
    status_line,
)
from tests.whole.peer import Answer, call
from tests.whole.sharing import Case

VMID = 100
STORAGE_SOCKET = f"/run/qemu-server/{VMID}.storage"


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
        reason = f"tunnel of VM {VMID} has its connection for commands already".encode()
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
        sender.join(patience_s())
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
            self.assertEqual(raw.status, 400)
            raw.drop()
        self.assertEqual(tunnel.ask(cmd="version")["success"], True)
        self.leave(tunnel)


class HttpTests(Case):
    """Over real HTTP what tests/http/test_api.py proves row by row."""

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
