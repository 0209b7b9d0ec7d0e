"""A source that opens a tunnel and asks for tickets: blocking, small, without code of ours."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from typing import Any
from urllib.parse import quote, urlencode

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Request

from bench.processes import PATIENCE_S, Trouble


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Tunnel:
    """A tunnel and its command connection.

    Args: authorization: the header's value. vmid: a free one.
    """

    def __init__(self, port: int, authorization: str, node: str, vmid: int, *, tls: bool) -> None:
        self._port, self._authorization, self._tls = port, authorization, tls
        self._base = f"/api2/json/nodes/{node}/qemu/{vmid}"
        self.vmid = vmid
        opened = self._post()
        self._wire = WSConnection(ConnectionType.CLIENT)
        self._received = b""
        self._accepted = False
        self._sock = self._connect(self.target(opened["socket"], opened["ticket"]))

    def _post(self) -> dict[str, Any]:
        make = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        options: dict[str, Any] = {"context": _context()} if self._tls else {}
        connection = make("127.0.0.1", self._port, timeout=PATIENCE_S, **options)
        headers = {"Authorization": self._authorization, "Content-Type": "application/x-www-form-urlencoded"}
        try:
            connection.request("POST", f"{self._base}/mtunnel", urlencode({"storages": "local"}), headers)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise Trouble(f"no tunnel: {response.status} {response.reason}")
        return dict(json.loads(body)["data"])

    def target(self, path: str, ticket: str) -> str:
        """The URL of a websocket to a socket of this tunnel."""
        return f"{self._base}/mtunnelwebsocket?ticket={quote(ticket, safe='')}&socket={quote(path, safe='')}"

    def _connect(self, target: str) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._port), PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls:
            sock = _context().wrap_socket(sock)
        headers = [(b"Authorization", self._authorization.encode())]
        sock.sendall(self._wire.send(Request(host="127.0.0.1", target=target, extra_headers=headers)))
        while not self._accepted:
            self._receive(sock)
        return sock

    def _receive(self, sock: socket.socket) -> None:
        data = sock.recv(65536)
        if not data:
            raise Trouble("the daemon ended the command connection")
        self._wire.receive_data(data)
        for event in self._wire.events():
            if isinstance(event, BytesMessage):
                self._received += bytes(event.data)
            elif isinstance(event, AcceptConnection):
                self._accepted = True

    def ask(self, **request: Any) -> dict[str, Any]:
        """One command. Raises: Trouble: it failed."""
        self._sock.sendall(self._wire.send(BytesMessage(json.dumps(request).encode() + b"\n")))
        while b"\n" not in self._received:
            self._receive(self._sock)
        line, _, self._received = self._received.partition(b"\n")
        reply = dict(json.loads(line))
        if not reply["success"]:
            raise Trouble(f"{request['cmd']}: {reply['msg']}")
        return reply

    def time_version(self) -> float:
        """How long `version` takes, in seconds."""
        start_s = time.perf_counter()
        self.ask(cmd="version")
        return time.perf_counter() - start_s

    def begin_import(self) -> str:
        """Let an import wait for its streams. Returns: their URL, good for 40 s and any number of websockets."""
        path = self.ask(
            cmd="disk-import",
            volname=f"vm-{self.vmid}-disk-0.raw",
            format="raw",
            export_formats="raw+size",
            storage="local",
            migration_snapshot=0,
            with_snapshots=0,
            allow_rename=1,
        )["socket"]
        return self.target(path, self.ask(cmd="ticket", path=path)["ticket"])

    def close(self) -> None:
        """Be gone, as a source that has died: the daemon rolls the tunnel back."""
        self._sock.sendall(self._wire.send(CloseConnection(1000)))
        self._sock.close()
