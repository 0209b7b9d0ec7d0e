"""A source whose flows outlive their connections, for tests: like peer.py it shares no code with ours."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, RejectConnection, Request, TextMessage

from tests.patience import wait_for
from tests.whole.node import Node
from tests.whole.peer import Websocket, call, forget_failures, tls_context

HEADER = b"Mtunnel-Resume"


class Attached(Websocket):
    """A connection of a flow. status, reason: of its answer; offer: what the server says of a new flow."""

    def __init__(self, node: Node, target: str, resume: str, authorization: str = "") -> None:
        raw = node.connect()
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = tls_context().wrap_socket(raw)
        self.wire = WSConnection(ConnectionType.CLIENT)
        headers = [(b"Authorization", (authorization or node.authorization).encode()), (HEADER, resume.encode())]
        request = Request(host="127.0.0.1", target=target, extra_headers=headers, subprotocols=["binary"])
        self.sock.sendall(self.wire.send(request))
        self.received = b""
        self.records: list[str] = []
        self.close_code: int | None = None
        self.ended = False
        self.offer: Mapping[str, str] = {}
        self.answer = self._wait_for_answer()

    def _read(self) -> list[Any]:
        forget_failures()
        try:
            data = self.sock.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self.ended = True
            return []
        self.wire.receive_data(data)
        events = list(self.wire.events())
        for event in events:
            if isinstance(event, AcceptConnection):
                fields = dict(event.extra_headers).get(b"mtunnel-resume", b"").decode().split("; ")
                self.offer = dict(field.split("=", 1) for field in fields if "=" in field)
            elif isinstance(event, BytesMessage):
                self.received += bytes(event.data)
            elif isinstance(event, TextMessage):
                self.records.append(event.data)
            elif isinstance(event, RejectConnection):
                self.ended = True
        return events

    def say(self, record: str) -> None:
        """Send a record."""
        self.sock.sendall(self.wire.send(TextMessage(record)))


class ResumableTunnel:
    """A tunnel whose command flow is resumable. generation: of the connection that it has."""

    def __init__(self, node: Node, vmid: int) -> None:
        self.node, self.vmid, self.generation = node, vmid, 0
        answer = call(node, "POST", f"/nodes/{node.name}/qemu/{vmid}/mtunnel", {"storages": "local", "bridges": ""})
        assert answer.status == 200, answer.reason
        self.opened = answer.json["data"]
        query = f"ticket={_escaped(self.opened['ticket'])}&socket={_escaped(self.opened['socket'])}"
        self.wire = Attached(node, f"/api2/json/nodes/{node.name}/qemu/{vmid}/mtunnelwebsocket?{query}", "1")
        assert self.wire.answer == 101, self.wire.answer
        self.offer = self.wire.offer
        self.sent_bytes = self.taken_bytes = 0
        self._sent = b""

    def attach(
        self, *, generation: int | None = None, flow_id: str = "", key: str = "", authorization: str = ""
    ) -> Attached:
        """Another connection, as asked for; the flow's own where nothing is said."""
        if generation is None:
            generation = self.generation = self.generation + 1
        target = f"/api2/json/nodes/{self.node.name}/qemu/{self.vmid}/mtunnelattach?id={flow_id or self.offer['id']}"
        return Attached(self.node, target, f"1; key={key or self.offer['key']}; gen={generation}", authorization)

    def resume(self) -> None:
        """Go on over another connection; what the server has not taken is sent again."""
        self.wire = self.attach()
        assert self.wire.answer == 101, self.wire.answer
        self.wire.say(f"a {self.taken_bytes}")
        while not self.wire.records:
            self.wire._read()
        taken = int(self.wire.records[0].removeprefix("a "))
        self.wire.say(f"p {taken}")
        if rest := self._sent[taken:]:
            self.wire.send(rest)

    def comes_back(self) -> bool:
        """The same; false: there were too many connections of late."""
        try:
            self.resume()
        except AssertionError:
            return False
        return True

    def send(self, **request: Any) -> None:
        """Send a command."""
        line = json.dumps(request).encode() + b"\n"
        self.sent_bytes += len(line)
        self._sent += line
        self.wire.send(line)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a command, and read its reply."""
        self.send(**request)
        return self.read()

    def read(self) -> dict[str, Any]:
        """Read a reply, and acknowledge it."""
        line = self.wire.read_line()
        self.taken_bytes += len(line) + 1
        self.wire.say(f"a {self.taken_bytes}")
        return dict(json.loads(line))

    def stream(self, path: str) -> Websocket:
        """A plain websocket to another socket of this tunnel."""
        return Websocket(self.node, self.vmid, path, self.ask(cmd="ticket", path=path)["ticket"])

    def bytes_out(self) -> int:
        """What the server has sent in all."""
        tunnels = self.node.ask(cmd="status")["tunnels"]
        return sum(tunnel["bytes_out"] for tunnel in tunnels if tunnel["vmid"] == self.vmid)

    def lose(self) -> None:
        """Lose the connection."""
        with contextlib.suppress(OSError):
            self.wire.sock.shutdown(socket.SHUT_RDWR)
        self.wire.sock.close()

    def parked(self) -> list[str]:
        """The kinds of its flows that wait."""
        tunnels = self.node.ask(cmd="status")["tunnels"]
        return [flow["socket"] for tunnel in tunnels if tunnel["vmid"] == self.vmid for flow in tunnel["parked"]]

    def leave(self) -> None:
        """The regular end, with everything removed."""
        self.ask(cmd="quit", cleanup=1)
        self.end()

    def end(self) -> None:
        """Say that nothing comes any more, hear the same, and be gone."""
        self.wire.say(f"e {self.sent_bytes}")
        wait_for("the end of the tunnel", lambda: not self.is_there())
        while not self.wire.ended and not any(record.startswith("e ") for record in self.wire.records):
            self.wire._read()
        self.wire.say("d")
        self.lose()

    def is_there(self) -> bool:
        return any(tunnel["vmid"] == self.vmid for tunnel in self.node.ask(cmd="status")["tunnels"])


def _escaped(text: str) -> str:
    return quote(text, safe="")
