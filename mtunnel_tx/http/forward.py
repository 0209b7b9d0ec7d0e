"""Requests that somebody else answers: another node's daemon, or the node's own API.

A request below `/nodes/NAME` goes to NAME's daemon where `forward.nodes` has it; a request that is not one of ours goes
to `forward.api`. Whoever answers judges the credentials; ours is to see that they are an API token at all, and that
they leave over TLS to the owner of the one certificate that is expected there.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

import treq
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from mtunnel_tx.checks import clean
from mtunnel_tx.config import Forward
from mtunnel_tx.errors import BadRequest, TimedOut, TunnelError, Unauthenticated, Unreachable
from mtunnel_tx.http.parameters import read_header
from mtunnel_tx.http.replies import JSON, Reply, encode
from mtunnel_tx.net.kinds import Reactor, Request
from mtunnel_tx.pve.maps import Endpoint
from mtunnel_tx.pve.users import split_token_id
from mtunnel_tx.tls.pinning import SOMEWHERE, host_header, pinned_agent

log = Logger()

HOPS_HEADER = "X-Mtunnel-Hops"
MOST_HOPS = 2
"""A daemon, the daemon of the right node, and that node's API."""
PATIENCE_S = 120.0
MOST_WAITING = 64
ANSWER_BYTES = 16 << 20
LOCALHOST = "localhost"

_AUTHORIZATION = re.compile(r"(?:^|\s)PVEAPIToken[= ]([^;]*)")
_PASSED_ON = ("Content-Type", "Accept", "User-Agent")
_STATUS_TEXT = re.compile(r"([1-5]\d\d) (.*)", re.DOTALL)

CrossOver = Callable[[Request, Endpoint, dict[str, str]], Awaitable[None]]
"""Joins a websocket with one at the endpoint, whose request has these headers besides; fires when both are open.

Fails with TunnelError, before anything was answered: `STATUS REASON` where the other side refused.
"""


class LoopDetected(TunnelError):
    """The operator must correct `forward`: daemons pass a request around."""

    status = 508


class TooManyForwarded(TunnelError):
    """The peer must wait: others are being passed on already."""

    status = 503


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Who is to answer: `name` for people; `endpoint` without a token; `is_node`: it has websockets for us."""

    name: str
    endpoint: Endpoint
    is_node: bool


class Elsewhere:
    """Finds who is to answer a request, and lets them.

    Args: node: our own name. own_fingerprint: of the daemon's certificate, expected at `forward.api` where no other
    one was named: on a Proxmox node both serve the node's. cross_over: joins websockets.
    """

    def __init__(
        self,
        forward: Forward,
        reactor: Reactor,
        *,
        node: str,
        own_fingerprint: Callable[[], str],
        cross_over: CrossOver,
    ) -> None:
        self._forward = forward
        self._reactor = reactor
        self._node = node
        self._own_fingerprint = own_fingerprint
        self._cross_over = cross_over
        self._waiting = 0

    def find(self, path: tuple[str, ...], *, known: bool) -> Destination | None:
        """Who is to answer this path (`api2`, `json`, …); None: ourselves. Args: known: it is one of our own calls."""
        name = path[3] if len(path) > 3 and path[2] == "nodes" else LOCALHOST
        node = self._forward.nodes.get(name)
        if node is not None and name not in (LOCALHOST, self._node):
            endpoint = Endpoint(apitoken="", host=node.host, port=node.port, fingerprint=node.fingerprint)
            return Destination(name=f"node '{name}'", endpoint=endpoint, is_node=True)
        if known or self._forward.api is None or path[:2] != ("api2", "json"):
            return None
        return Destination(name="the API", endpoint=self._api(self._forward.api), is_node=False)

    def has_passed_on(self, request: Request, address: str) -> bool:
        """Whether a request comes from another node's daemon, for somebody else."""
        neighbours = {node.host for node in self._forward.nodes.values()}
        return address in neighbours and read_header(request, HOPS_HEADER.encode("ascii")) is not None

    def _api(self, url: str) -> Endpoint:
        parts = urlsplit(url)
        fingerprint = self._forward.fingerprint or self._own_fingerprint()
        return Endpoint(apitoken="", host=parts.hostname or "", port=parts.port or 443, fingerprint=fingerprint)

    async def answer(self, request: Request, destination: Destination, gone: Deferred[None]) -> Reply | None:
        """Pass a request on. Args: gone: fires when nobody waits for the answer any more.

        Returns: the answer; None: the connection is a websocket now.
        Raises: Unauthenticated: no token at all; LoopDetected, TooManyForwarded, Unreachable, TimedOut.
        """
        endpoint = replace(destination.endpoint, apitoken=read_authorization(request))
        hops = str(count_hops(request) + 1)
        if not request.uri.startswith(b"/"):
            raise BadRequest("only paths are passed on")
        if self._waiting >= MOST_WAITING:
            raise TooManyForwarded("too many requests are being passed on")
        self._waiting += 1
        try:
            return await self._let_answer(request, destination, endpoint, hops, gone)
        finally:
            self._waiting -= 1

    async def _let_answer(
        self, request: Request, destination: Destination, endpoint: Endpoint, hops: str, gone: Deferred[None]
    ) -> Reply | None:
        if destination.is_node and read_header(request, b"upgrade") is not None:
            return await self._join(request, endpoint, hops)
        work = Deferred.fromCoroutine(self._ask(request, endpoint, hops))
        gone.addCallback(_cancel, work)
        work.addTimeout(PATIENCE_S, self._reactor, onTimeoutCancel=_late(destination.name))
        return await work

    async def _join(self, request: Request, endpoint: Endpoint, hops: str) -> Reply | None:
        try:
            await self._cross_over(request, endpoint, {HOPS_HEADER: hops})
        except TunnelError as error:
            match = _STATUS_TEXT.fullmatch(error.text)
            if match is None:
                raise
            body = encode({"data": None, "message": f"{match[2]}\n"})
            return Reply(status=int(match[1]), reason=match[2], body=body)
        return None

    async def _ask(self, request: Request, endpoint: Endpoint, hops: str) -> Reply:
        url = SOMEWHERE.encode("ascii") + request.uri
        client = HTTPClient(pinned_agent(self._reactor, endpoint))
        body = request.content.read()
        try:
            response = await client.request(
                request.method.decode("ascii"),
                url,
                headers=_headers(request, endpoint, hops),
                data=body or None,
                allow_redirects=False,
                unbuffered=True,
            )
            content = await _collect(response)
        except (ConnectError, ConnectionLost, ResponseFailed, OSError, UnicodeDecodeError) as error:
            raise Unreachable(f"cannot pass the request on: {_reason(error)}") from error
        kind = response.headers.getRawHeaders("Content-Type", [JSON])[-1]
        return Reply(status=response.code, reason=response.phrase.decode("latin-1"), body=content, content_type=kind)


def read_authorization(request: Request) -> str:
    """The header of a request to be passed on. Raises: Unauthenticated: there is no API token in it."""
    text = read_header(request, b"authorization")
    match = _AUTHORIZATION.search(text or "")
    if text is None or match is None or not match[1]:
        raise Unauthenticated("No ticket")
    token, _, secret = unquote(match[1]).rpartition("=")
    if not secret or split_token_id(token) is None or not text.isascii():
        raise Unauthenticated("Authentication failed!")
    return text


def count_hops(request: Request) -> int:
    """How often a request was passed on already. Raises: LoopDetected: too often, or it does not say."""
    text = read_header(request, HOPS_HEADER.encode("ascii")) or "0"
    if len(text) > 1 or text not in map(str, range(MOST_HOPS)):
        raise LoopDetected("request was passed on too often")
    return int(text)


def _headers(request: Request, endpoint: Endpoint, hops: str) -> Headers:
    own = {"Host": [host_header(endpoint)], "Authorization": [endpoint.apitoken], HOPS_HEADER: [hops]}
    headers = Headers(own)
    for name in _PASSED_ON:
        values = request.requestHeaders.getRawHeaders(name.encode("ascii"))
        if values:
            headers.setRawHeaders(name.encode("ascii"), values[-1:])
    return headers


async def _collect(response: IResponse) -> bytes:
    """The body. Raises: Unreachable: it is longer than any answer of this API."""
    parts: list[bytes] = []
    kept_bytes = 0

    def take(part: bytes) -> None:
        nonlocal kept_bytes
        kept_bytes += len(part)
        if kept_bytes <= ANSWER_BYTES:
            parts.append(part)

    collected: Awaitable[None] = treq.collect(response, take)
    await collected
    if kept_bytes > ANSWER_BYTES:
        raise Unreachable("the answer of the other side is too long")
    return b"".join(parts)


def _reason(error: Exception) -> str:
    reasons = [failure.value for failure in getattr(error, "reasons", [])] or [error]
    return clean("; ".join(str(reason) or type(reason).__name__ for reason in reasons))


def _cancel(result: None, work: Deferred[Reply]) -> None:
    work.cancel()
    return result


def _late(name: str) -> Callable[[object, float], Reply]:
    def late(result: object, timeout_s: float) -> Reply:
        if isinstance(result, Failure):
            result.trap(CancelledError, Unreachable)
        raise TimedOut(f"no answer of {name} within {timeout_s:g} s")

    return late
