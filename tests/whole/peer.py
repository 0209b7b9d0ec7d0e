"""A source for tests that shares no code with ours: blocking sockets, the standard library's TLS, wsproto's frames."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from typing import Any
from urllib.parse import quote, urlencode

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    RejectConnection,
    Request,
    TextMessage,
)

from tests.patience import wait_for
from tests.whole.node import Node


def tls_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def forget_failures() -> None:
    """Python 3.13 leaves what a broken connection failed with in OpenSSL's queue for this thread, and the next read of
    another connection that would have to wait finds it there. A failure that Python makes itself empties the queue.
    """
    with contextlib.suppress(ssl.SSLError):
        _ANY.set_ciphers("no such cipher")


_ANY = tls_context()


class Answer:
    """An HTTP answer: status, reason phrase, headers, body; `json` reads it."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.reason = response.reason
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(node: Node, method: str, path: str, form: dict[str, str] | None = None, **headers: str) -> Answer:
    """One request over a connection of its own."""
    connection = http.client.HTTPSConnection("127.0.0.1", node.port)
    connection.sock = tls_context().wrap_socket(node.connect())
    given = {"Authorization": node.authorization, **headers}
    body = None
    if form is not None:
        body = urlencode(form)
        given.setdefault("Content-Type", "application/x-www-form-urlencoded")
    try:
        connection.request(method, f"/api2/json{path}", body, given)
        return Answer(connection.getresponse())
    finally:
        connection.close()


class Websocket:
    """One websocket, blocking."""

    def __init__(self, node: Node, vmid: int, path: str, ticket: str) -> None:
        raw = node.connect()
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = tls_context().wrap_socket(raw)
        self.wire = WSConnection(ConnectionType.CLIENT)
        target = f"/api2/json/nodes/{node.name}/qemu/{vmid}/mtunnelwebsocket"
        query = f"ticket={quote(ticket, safe='')}&socket={quote(path, safe='')}"
        headers = [(b"Authorization", node.authorization.encode())]
        request = Request(host="127.0.0.1", target=f"{target}?{query}", extra_headers=headers, subprotocols=["binary"])
        self.sock.sendall(self.wire.send(request))
        self.received = b""
        self.close_code: int | None = None
        self.ended = False
        self.answer = self._wait_for_answer()

    def _wait_for_answer(self) -> int:
        while True:
            for event in self._read():
                if isinstance(event, AcceptConnection):
                    return 101
                if isinstance(event, RejectConnection):
                    return event.status_code
            if self.ended:
                raise AssertionError("connection lost in the handshake")

    def _read(self) -> list[Any]:
        forget_failures()
        try:
            data = self.sock.recv(65536)
        except ConnectionError:  # reset, or at OpenSSL's next word a broken pipe
            data = b""
        if not data:
            self.ended = True
            return []
        self.wire.receive_data(data)
        events = list(self.wire.events())
        for event in events:
            if isinstance(event, BytesMessage | TextMessage):
                payload = event.data
                self.received += payload.encode() if isinstance(payload, str) else bytes(payload)
            elif isinstance(event, CloseConnection):
                self.close_code = event.code
        return events

    def send(self, data: bytes) -> None:
        self.sock.sendall(self.wire.send(BytesMessage(data)))

    def read_line(self) -> bytes:
        """The next line, without its LF."""
        while b"\n" not in self.received:
            self._read()
            if self.ended:
                raise AssertionError(f"connection lost before a line: {self.received!r}")
        line, _, self.received = self.received.partition(b"\n")
        return line

    def send_close(self, code: int = 1000) -> None:
        self.sock.sendall(self.wire.send(CloseConnection(code)))

    def drop(self) -> None:
        """Be gone, as a source that has said Close, or one that has died."""
        self.sock.close()

    def read_to_end(self) -> int | None:
        """Returns: the close code, None where the connection ended without one."""
        while not self.ended and self.close_code is None:
            self._read()
        return self.close_code


class Tunnel:
    """A tunnel as a source has it: the answer of the call, and the command connection."""

    def __init__(self, node: Node, vmid: int, **form: str) -> None:
        self.node = node
        self.vmid = vmid
        answer = call(node, "POST", f"/nodes/{node.name}/qemu/{vmid}/mtunnel", form)
        if answer.status != 200:
            raise AssertionError(f"no tunnel: {answer.status} {answer.reason} {answer.body!r}")
        self.opened = answer.json["data"]
        self.commands = Websocket(node, vmid, self.opened["socket"], self.opened["ticket"])
        if self.commands.answer != 101:
            raise AssertionError(f"no command connection: {self.commands.answer}")

    def send(self, line: str) -> None:
        self.commands.send(line.encode() + b"\n")

    def read(self) -> dict[str, Any]:
        return dict(json.loads(self.commands.read_line()))

    def ask(self, **request: Any) -> dict[str, Any]:
        self.send(json.dumps(request))
        return self.read()

    def stream(self, path: str) -> Websocket:
        """A websocket to another socket of this tunnel, with a ticket of its own."""
        ticket = self.ask(cmd="ticket", path=path)["ticket"]
        return Websocket(self.node, self.vmid, path, ticket)

    def leave(self) -> None:
        """Close the command connection as a source's helper does."""
        self.commands.send_close()
        self.commands.drop()


def hold(node: Node, vmid: int) -> None:
    """A tunnel with a disk, whose config somebody else takes over, so that it waits for a decision."""
    tunnel = Tunnel(node, vmid, storages="local", bridges="")
    tunnel.ask(cmd="disk", storage="local", drive={"size": 1 << 20})
    node.guest_file(vmid).write_text("lock: backup\n")
    tunnel.leave()
    wait_for("what is held", lambda: str(vmid) in node.ask(cmd="status")["held"])
