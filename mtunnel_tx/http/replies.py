"""HTTP answers in Proxmox's shapes (protocol.md section 1): errors to status lines and bodies, in one place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twisted.web.http import Request

from mtunnel_tx import __version__
from mtunnel_tx.checks import clean
from mtunnel_tx.errors import InvalidParameters, NotFound, TunnelError

LONGEST_REASON_BYTES = 200
_REFUSALS = {
    400: "bad_request",
    401: "unauthenticated",
    403: "forbidden",
    409: "wrong_state",
    501: "not_implemented",
    503: "busy",
}
JSON = "application/json;charset=UTF-8"
TEXT = "text/plain;charset=UTF-8"
PRODUCT = f"mtunnel-tx/{__version__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer; `reason` may be any text, it is cleaned on its way out."""

    status: int
    reason: str
    body: bytes = b""
    content_type: str = JSON


def data_reply(data: Any, **more: Any) -> Reply:
    """200 with `{"data":…}`."""
    return Reply(status=200, reason="OK", body=encode({"data": data, **more}))


def error_reply(error: TunnelError) -> Reply:
    """The answer to a request that cannot be done."""
    body: dict[str, Any] = {"data": None, "message": error.text + "\n"}
    if isinstance(error, InvalidParameters):
        body["errors"] = error.errors
    return Reply(status=status_of(error), reason=error.text, body=encode(body))


def status_of(error: TunnelError) -> int:
    """Proxmox knows no 404 here: what it cannot find is a plain text, and those travel as 500."""
    return 500 if isinstance(error, NotFound) else error.status


def unauthenticated_reply(error: TunnelError) -> Reply:
    """Bad credentials get a status line and nothing else."""
    return Reply(status=401, reason=error.text)


def not_implemented_reply(method: str, path: str) -> Reply:
    """No such path, or not with this method."""
    text = f"Method '{method} {path}' not implemented"
    return Reply(status=501, reason=text, body=encode({"data": None, "message": text}))


def plain_reply(status: int, text: str) -> Reply:
    """The text as reason and as the whole body."""
    return Reply(status=status, reason=text, body=text.encode("utf-8", "replace"), content_type=TEXT)


def encode(value: Mapping[str, Any]) -> bytes:
    """Compact JSON in ASCII, which any text survives, lone surrogates too."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def send(request: Request, reply: Reply) -> None:
    """Write a reply and finish the request."""
    request.setResponseCode(reply.status, reason_phrase(reply.reason))
    headers = {
        "Server": PRODUCT,
        "Cache-Control": "max-age=0",
        "Pragma": "no-cache",
        "Content-Type": reply.content_type,
        "Content-Length": str(len(reply.body)),
    }
    for name, value in headers.items():
        request.setHeader(name, value)
    request.write(reply.body)
    request.finish()


def reason_phrase(text: str) -> bytes:
    """A text as it may stand in a status line: one line, Latin-1, at most LONGEST_REASON_BYTES."""
    return clean(text.removesuffix("\n")).encode("latin-1", "replace")[:LONGEST_REASON_BYTES]


def refusal_word(status: int) -> str:
    """What an answer from 400 on is called in metrics: one of a few words."""
    return _REFUSALS.get(status, "failed")
