"""Peers that do what no honest one does: raw TLS, raw frames, connections that are held, programs that are stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.patience import wait_for
from tests.whole.node import Node
from tests.whole.peer import Tunnel, tls_context

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def secure(node: Node) -> ssl.SSLSocket:
    """TLS, and nothing in it."""
    return tls_context().wrap_socket(node.connect(), suppress_ragged_eofs=True)


def read_all(sock: socket.socket) -> bytes:
    """Everything until the end, however that comes."""
    data = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while more := sock.recv(65536):
            data += more
    return data


def head(node: Node, method: str, path: str, *lines: str, token: bool = True) -> bytes:
    """A request without a body."""
    every = [f"{method} /api2/json{path} HTTP/1.1", "Host: here", *lines]
    if token:
        every.append(f"Authorization: {node.authorization}")
    return "\r\n".join([*every, "", ""]).encode("utf-8", "surrogateescape")


def status_line(answer: bytes) -> str:
    return answer.partition(b"\r\n")[0].decode("latin-1")


def exchange(node: Node, request: bytes) -> bytes:
    """Send, say that nothing follows, and read to the end. The request asks for the connection's end itself."""
    with secure(node) as sock:
        sock.sendall(request)
        return read_all(sock)


class RawWebsocket:
    """A websocket whose frames are made by hand; `more` is sent behind the request at once."""

    def __init__(self, node: Node, vmid: int, path: str, ticket: str, *lines: str, more: bytes = b"") -> None:
        query = f"ticket={quote(ticket, safe='')}&socket={quote(path, safe='')}"
        headers = lines or (
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {KEY}",
        )
        self.sock = secure(node)
        target = f"/nodes/{node.name}/qemu/{vmid}/mtunnelwebsocket?{query}"
        self.sock.sendall(head(node, "GET", target, *headers) + more)
        answer = b""
        while b"\r\n\r\n" not in answer:
            data = self.sock.recv(65536)
            if not data:
                break
            answer += data
        self.answer, _, self._received = answer.partition(b"\r\n\r\n")
        self.status = int(self.answer.split()[1])

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read_frame(self) -> tuple[int, bytes] | None:
        """The next frame as its first byte and its payload; None: the connection has ended."""
        first = self._take(2)
        if len(first) < 2:
            return None
        size = first[1] & 0x7F
        if size == 126:
            size = int.from_bytes(self._take(2), "big")
        elif size == 127:
            size = int.from_bytes(self._take(8), "big")
        return first[0], self._take(size)

    def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            try:
                data = self.sock.recv(65536)
            except (ConnectionError, ssl.SSLError):
                data = b""
            if not data:
                break
            self._received += data
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def read_close(self) -> int | None:
        """The code of the Close frame that comes, whatever comes before; None: none came."""
        while (frame := self.read_frame()) is not None:
            if frame[0] & 0x0F == 8:
                return int.from_bytes(frame[1][:2], "big") if frame[1] else 1005
        return None

    def drop(self) -> None:
        self.sock.close()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """One frame, right or wrong; masked with zeros."""
    first = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    mask_bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        length = bytes([mask_bit | size])
    elif size < 1 << 16:
        length = bytes([mask_bit | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([mask_bit | 127]) + size.to_bytes(8, "big")
    return first + length + (bytes(4) if masked else b"") + payload


def import_child(node: Node) -> int:
    """The process id of the daemon's child that has `import` in its arguments."""
    return int(wait_for("the import child", lambda: next(_imports(node), 0)))


def _imports(node: Node) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.fsencode(node.runtime) in (entry / "cmdline").read_bytes():
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                if b"import" in arguments:
                    yield int(entry.name)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that stands still."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def start_import(tunnel: Tunnel, volname: str = "a.raw", **more: Any) -> dict[str, Any]:
    request = {"volname": volname, "format": "raw", "export_formats": "raw+size", "storage": "local", **more}
    return tunnel.ask(cmd="disk-import", **request)


def import_end(tunnel: Tunnel) -> dict[str, Any]:
    """Ask until it is over. Returns: the last reply; the lines before are in `said`."""
    said = ""
    while (reply := tunnel.ask(cmd="query-disk-import")).get("status") == "pending":
        said += reply["msg"]
    return {**reply, "said": said}
