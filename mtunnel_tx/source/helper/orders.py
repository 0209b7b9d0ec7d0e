"""What a Proxmox source writes to its websocket helper: control lines for us, everything else for the target.

Source: formats.md section 8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from mtunnel_tx.checks import FINGERPRINT
from mtunnel_tx.errors import BadRequest
from mtunnel_tx.pve.maps import Endpoint
from mtunnel_tx.source.links import Json

_FINGERPRINT = re.compile(FINGERPRINT)
_SCHEMES = ("https", "wss")
_DEFAULT_PORT = 443


@dataclass(frozen=True, slots=True, kw_only=True)
class Websocket:
    """A websocket to open: at whose daemon or proxy, and the path with its query."""

    endpoint: Endpoint
    path_query: str


@dataclass(frozen=True, slots=True)
class ConnectOrder:
    """Open the command connection."""

    websocket: Websocket


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardOrder:
    """Listen on a UNIX socket of this host; `ticket` is what to ask the target for, for each connection."""

    websocket: Websocket
    local: Path
    ticket: Mapping[str, Json]


def read_control(line: bytes) -> ConnectOrder | ForwardOrder | None:
    """Returns: the order in a control line; None: the line is for the target, whatever it is.

    Raises: BadRequest: an order that cannot be carried out.
    """
    if b'"control"' not in line:
        return None
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict) or not request.get("control"):
        return None
    command, data = request.get("cmd"), request.get("data")
    if command not in ("connect", "forward"):
        raise BadRequest("unknown control command")
    if not isinstance(data, dict):
        raise BadRequest(f"'{command}' without 'data'")
    return ConnectOrder(_read_websocket(data)) if command == "connect" else _read_forward(data)


def _read_forward(data: Mapping[str, Json]) -> ForwardOrder:
    local, ticket = data.get("unix"), data.get("ticket")
    if not isinstance(local, str) or not local.startswith("/") or "\0" in local:
        raise BadRequest("'unix' must be the absolute path of a socket")
    if not isinstance(ticket, dict):
        raise BadRequest("'ticket' must be an object")
    return ForwardOrder(websocket=_read_websocket(data), local=Path(local), ticket=ticket)


def _read_websocket(data: Mapping[str, Json]) -> Websocket:
    host, port, path_query = _read_url(data.get("url"))
    endpoint = Endpoint(
        apitoken=_read_authorization(data.get("headers")),
        host=host,
        port=port,
        fingerprint=_read_fingerprint(data.get("fingerprint")),
    )
    return Websocket(endpoint=endpoint, path_query=path_query)


def _read_url(value: Json) -> tuple[str, int, str]:
    """Returns: host, port, path and query. Nothing but TLS will do, as the headers hold a secret."""
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise BadRequest("'url' must be a URL")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise BadRequest("'url' must be a URL") from error
    if parts.scheme not in _SCHEMES or not parts.hostname or port == 0:
        raise BadRequest("'url' must start with https:// or wss:// and name a host")
    return parts.hostname, port or _DEFAULT_PORT, f"{parts.path or '/'}{'?' if '?' in value else ''}{parts.query}"


def _read_authorization(value: Json) -> str:
    """The one header that counts. Raises: BadRequest."""
    if not isinstance(value, list):
        raise BadRequest("'headers' must be a list of pairs")
    for item in value:
        if not isinstance(item, list) or len(item) != 2 or not all(isinstance(part, str) for part in item):
            raise BadRequest("'headers' must be a list of pairs")
        name, text = item
        if name.lower() == "authorization" and text and text.isascii() and text.isprintable():
            return str(text)
    raise BadRequest("'headers' has no usable Authorization")


def _read_fingerprint(value: Json) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not _FINGERPRINT.fullmatch(value):
        raise BadRequest("'fingerprint' must be 32 pairs of hex digits with colons")
    return value.upper()


def with_ticket(path_query: str, ticket: str) -> str:
    """The same with the ticket as its last parameter."""
    joint = "" if path_query.endswith(("?", "&")) else "&"
    return f"{path_query}{joint if '?' in path_query else '?'}ticket={quote(ticket, safe='')}"


def ticket_request(order: ForwardOrder) -> bytes:
    """The command line that asks for a ticket."""
    return json.dumps({**order.ticket, "cmd": "ticket"}, separators=(",", ":")).encode("ascii")
