"""The websocket handshake of a client: a request, and the check of the head of its answer.

Both are some lines each. A library for them (autobahn does it for the daemon) takes longer to import than a command of
this program may take to start.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Mapping

SUBPROTOCOL = "binary"
WEBSOCKET_VERSION = "13"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_ANSWER = re.compile(rb"HTTP/1\.1 101(?: [^\r\n]*)?")
# Blanks around a value are no part of the pattern: tried in each way, 60 KiB of them would take days.
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\r\n]*)")
_KEY_BYTES = 16


class ClientHandshake:
    """One handshake. Args: host: with its port, as in the header. path_query: as it goes into the request line."""

    def __init__(self, host: str, path_query: str, headers: Mapping[str, str]) -> None:
        self._key = base64.b64encode(os.urandom(_KEY_BYTES))
        self._path_query = path_query
        own = {
            "Host": host,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": self._key.decode("ascii"),
            "Sec-WebSocket-Protocol": SUBPROTOCOL,
            "Sec-WebSocket-Version": WEBSOCKET_VERSION,
        }
        self._headers = {**own, **headers}

    def request(self) -> bytes:
        """What is to be sent. Raises: ValueError: a header or the path has a line end, or is no Latin-1."""
        lines = [f"GET {self._path_query} HTTP/1.1", *(f"{name}: {value}" for name, value in self._headers.items())]
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError("a line end in the request")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def check(self, head: bytes) -> None:
        """Check the head of an answer, with the empty line at its end. Raises: ValueError: it is no handshake."""
        first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        if not _ANSWER.fullmatch(first):
            raise ValueError("no 101")
        headers = _read_headers(lines)
        if headers.get(b"upgrade", b"").lower() != b"websocket" or b"upgrade" not in _words(headers, b"connection"):
            raise ValueError("no upgrade to a websocket")
        if headers.get(b"sec-websocket-accept") != accept_value(self._key):
            raise ValueError("an answer to another key")
        if headers.get(b"sec-websocket-extensions"):
            raise ValueError("an extension that nobody asked for")
        if headers.get(b"sec-websocket-protocol", SUBPROTOCOL.encode()) != SUBPROTOCOL.encode():
            raise ValueError("a subprotocol that nobody asked for")


def accept_value(key: bytes) -> bytes:
    """What a server makes of a client's key (RFC 6455, section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def _read_headers(lines: list[bytes]) -> dict[bytes, bytes]:
    """Raises: ValueError: no header, or one of the handshake twice."""
    headers: dict[bytes, list[bytes]] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise ValueError("a line that is no header")
        headers.setdefault(found[1].lower(), []).append(found[2].strip(b" \t"))
    if any(len(values) > 1 for name, values in headers.items() if name.startswith(b"sec-websocket-")):
        raise ValueError("a header of the handshake twice")
    return {name: b",".join(values) for name, values in headers.items()}


def _words(headers: Mapping[bytes, bytes], name: bytes) -> list[bytes]:
    return [word.strip() for word in headers.get(name, b"").lower().split(b",")]
