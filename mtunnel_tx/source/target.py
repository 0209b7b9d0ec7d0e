"""The target's HTTP API, as a source uses it (protocol.md section 1)."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Mapping
from urllib.parse import quote, urlencode

import treq
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.logger import Logger
from twisted.web.client import RequestTransmissionFailed, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import (
    BackendFailed,
    BadRequest,
    Forbidden,
    NotFound,
    TunnelError,
    Unauthenticated,
    Unreachable,
    WrongState,
)
from mtunnel_tx.pve.maps import Endpoint
from mtunnel_tx.source.links import Json, Reactor
from mtunnel_tx.tls.pinning import SOMEWHERE, explain_tls, host_header
from mtunnel_tx.waiting import within

log = Logger()

BASE = "/api2/json"
PATIENCE_S = 30.0
BODY_LIMIT_BYTES = 16 << 20
_FORM = "application/x-www-form-urlencoded"
_JSON = "application/json"


_LOST = (ConnectError, ConnectionLost, RequestTransmissionFailed, ResponseFailed, OSError)


class TargetUnreachable(Unreachable):
    """Nobody there speaks to us: no route, no TLS, another certificate."""


class NotImplementedThere(TunnelError):
    """The target does not know this call."""

    status = 501


class TooLongForTarget(TunnelError):
    """The target takes no requests that long."""

    status = 413


class TargetBusy(TunnelError):
    """It cannot answer yet."""

    status = 503


_KINDS: Mapping[int, type[TunnelError]] = {
    400: BadRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: WrongState,
    413: TooLongForTarget,
    501: NotImplementedThere,
    503: TargetBusy,
}


class TargetApi:
    """Calls to the target, with its token.

    Args: client: makes connections to nobody but the endpoint's owner. endpoint: where, and with which token.
    """

    def __init__(self, client: HTTPClient, endpoint: Endpoint, clock: Reactor) -> None:
        self.host = endpoint.host
        self._place = host_header(endpoint)
        self.token = token_id(endpoint)
        self._client = client
        self._clock = clock
        own = {"Host": host_header(endpoint), "Authorization": endpoint.apitoken, "Accept": "application/json"}
        self._headers = {name: [value] for name, value in own.items()}

    async def get(self, *path: str, wait_s: float = PATIENCE_S, **params: str) -> Json:
        """`data` of a GET. Raises: TunnelError: with the status text; TargetUnreachable; TimedOut."""
        query = f"?{urlencode(params)}" if params else ""
        return await self._call("GET", make_path(*path) + query, None, wait_s)

    async def post(self, *path: str, wait_s: float = PATIENCE_S, **fields: str) -> Json:
        """`data` of a POST with a form; raises what `get` does."""
        return await self._call("POST", make_path(*path), urlencode(fields).encode("ascii"), wait_s)

    async def post_json(self, *path: str, body: Json, wait_s: float = PATIENCE_S) -> Json:
        """`data` of a POST with a JSON object; raises what `get` does."""
        return await self._call("POST", make_path(*path), json.dumps(body).encode("ascii"), wait_s, _JSON)

    async def _call(self, method: str, uri: str, body: bytes | None, wait_s: float, media_type: str = _FORM) -> Json:
        answer = Deferred.fromCoroutine(self._exchange(method, uri, body, media_type))
        late = f"no answer within {wait_s:g} s to {method} {uri.partition('?')[0]}"
        return await within(self._clock, wait_s, answer, late)

    async def _exchange(self, method: str, uri: str, body: bytes | None, media_type: str) -> Json:
        headers, began_s = Headers(self._headers), self._clock.seconds()
        if body is not None:
            headers.addRawHeader("Content-Type", media_type)
        try:
            response = await self._client.request(
                method, f"{SOMEWHERE}{BASE}{uri}", headers=headers, data=body, allow_redirects=False, unbuffered=True
            )
            content = await _read_body(response)
        except _LOST as error:
            raise _translate(error, self._place) from error
        took_s = self._clock.seconds() - began_s
        path = uri.partition("?")[0]
        log.debug(
            "{method} {path} at {host}: {status}, {took_s:.3f} s",
            method=method,
            path=path,
            host=self.host,
            status=response.code,
            took_s=took_s,
        )
        return _read_answer(response.code, _phrase(response), content)


def token_id(endpoint: Endpoint) -> str:
    """`USER@REALM!TOKENID`, without what is secret."""
    return clean(endpoint.apitoken.removeprefix("PVEAPIToken").lstrip("=: ").partition("=")[0])


def is_ours(repoid: str) -> bool:
    """Whether a target that says this of itself (`repoid` of its version) is an mtunnel-tx."""
    return repoid.startswith("mtunnel-tx")


def objects(data: Json) -> list[Mapping[str, Json]]:
    """The objects in a list; what is none of both is left out."""
    return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []


def make_path(*path: str) -> str:
    """Path components, escaped, each after a slash."""
    return "".join(f"/{quote(part, safe='')}" for part in path)


def _phrase(response: IResponse) -> str:
    return clean(response.phrase.decode("latin-1"))


async def _read_body(response: IResponse) -> bytes:
    """Raises: BackendFailed: no answer of this API is that long."""
    parts: list[bytes] = []
    kept_bytes = 0

    def collect(part: bytes) -> None:
        nonlocal kept_bytes
        kept_bytes += len(part)
        if kept_bytes <= BODY_LIMIT_BYTES:
            parts.append(part)

    collected: Awaitable[None] = treq.collect(response, collect)
    await collected
    if kept_bytes > BODY_LIMIT_BYTES:
        raise BackendFailed("the target's answer is too long")
    return b"".join(parts)


def _translate(error: Exception, place: str) -> TunnelError:
    """What Twisted says, in one line; the reasons of a failed TLS handshake are lists of tuples."""
    reasons = [failure.value for failure in getattr(error, "reasons", [])] or [error]
    if any(isinstance(reason, CancelledError) for reason in reasons):
        return TargetUnreachable("the call to the target was cancelled")
    return TargetUnreachable(f"cannot talk to the target at {place}: {clean('; '.join(map(_describe, reasons)))}")


def _describe(reason: BaseException) -> str:
    details = reason.args[0] if reason.args else None
    if isinstance(details, list) and (reasons := explain_tls(details)):
        return f"TLS: {reasons}"
    number = getattr(reason, "osError", None)
    return os.strerror(number) if isinstance(number, int) else str(reason) or type(reason).__name__


def _read_answer(status: int, phrase: str, content: bytes) -> Json:
    try:
        body = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        body = None
    if status != 200:
        raise _refusal(status, phrase, body)
    if not isinstance(body, dict) or "data" not in body:
        raise BackendFailed("the target's answer is no JSON object with 'data'")
    return body["data"]


def _refusal(status: int, phrase: str, body: Json) -> TunnelError:
    errors = body.get("errors") if isinstance(body, dict) else None
    reasons = [f"{name}: {str(reason).strip()}" for name, reason in errors.items()] if isinstance(errors, dict) else []
    text = clean(" ".join([f"{status} {phrase}", "; ".join(reasons)]).strip())
    return _KINDS.get(status, BackendFailed)(text)


async def learn_fingerprint(target: TargetApi) -> str | None:
    """What a source asks for where it was given no fingerprint: the certificate that the API shows.

    Returns: `AA:BB:…`; None: the target does not say.
    """
    found: dict[str, str] = {}
    data = await target.get("nodes", "localhost", "certificates", "info")
    for entry in data if isinstance(data, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("fingerprint"), str):
            found[str(entry.get("filename"))] = entry["fingerprint"].upper()
    return found.get("pveproxy-ssl.pem", found.get("pve-ssl.pem"))
