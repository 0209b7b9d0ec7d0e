"""Websockets to a target: connect, check its certificate, upgrade, join with a local socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost, DNSLookupError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BackendFailed, Forbidden, NotFound, TunnelError, Unauthenticated, Unreachable, WrongState
from mtunnel_tx.http.clienthandshake import ClientHandshake
from mtunnel_tx.net.kinds import Reactor, Transport
from mtunnel_tx.pve.maps import Endpoint
from mtunnel_tx.stream.flow import Flow, FlowTerms, Relay, tell_nobody
from mtunnel_tx.stream.limits import FlowLimits
from mtunnel_tx.stream.peer import PeerConnection, take_over
from mtunnel_tx.tls.pinning import CONNECT_S, check_identity, client_connection, explain_tls, host_header, pinned_agent
from mtunnel_tx.tls.protocol import TlsProtocol
from mtunnel_tx.wire.frames import Role

__all__ = ["Endpoint", "open_stream", "pinned_agent"]

UPGRADE_S = 30.0
HEAD_BYTES = 64 * 1024
_STATUS_DIGITS = 3
_MOST_LENGTH_DIGITS = 18
_KINDS: dict[int, type[TunnelError]] = {401: Unauthenticated, 403: Forbidden, 404: NotFound, 409: WrongState}


class _Opening(Protocol):
    """Sends the upgrade request and waits for the head of the answer; `done` fires with that and what came behind."""

    def __init__(self, endpoint: Endpoint, path_query: str, headers: Mapping[str, str] | None = None) -> None:
        self.done: Deferred[tuple[bytes, bytes]] = Deferred()
        own = {"Authorization": endpoint.apitoken, **(headers or {})}
        self._handshake = ClientHandshake(host_header(endpoint), path_query, own)
        self._received = b""
        self.is_sent = False

    def connectionMade(self) -> None:
        transport: Transport = self.transport
        self.is_sent = True
        transport.write(self._handshake.request())

    def dataReceived(self, data: bytes) -> None:
        if self.done.called:
            return
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if end and len(rest) >= _body_bytes(head):
            self._finish(head + end, rest)
        elif len(self._received) > HEAD_BYTES:
            self.done.errback(BackendFailed("the target's answer to the upgrade is too long"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.done.called:
            error = _translate(reason.value or ConnectionLost())
            is_lost = isinstance(reason.value, ConnectionLost | ConnectionDone) and not self.is_sent
            self.done.errback(NotReached(error.text) if is_lost else error)

    def _finish(self, head: bytes, rest: bytes) -> None:
        transport: Transport = self.transport
        transport.pauseProducing()
        try:
            _check_status(head, rest)
            self._handshake.check(head)
        except TunnelError as error:
            self.done.errback(error)
        except ValueError as error:
            self.done.errback(BackendFailed(f"the target's answer is no websocket handshake: {error}"))
        else:
            self.done.callback((head, rest))


def _unreadable() -> BackendFailed:
    return BackendFailed("the target's answer to the upgrade cannot be read")


def _body_bytes(head: bytes) -> int:
    """How much of the body has to be there: of a refusal that tells what became of a flow, all; else nothing."""
    if not head.startswith(b"HTTP/1.1 410 "):
        return 0
    length = read_answer_header(head, "Content-Length") or ""
    if not length.isdecimal():
        return 0
    # Longer numbers are not read: beyond 4300 digits int() raises.
    return min(int(length), HEAD_BYTES // 2) if len(length) <= _MOST_LENGTH_DIGITS else HEAD_BYTES // 2


def read_answer_header(head: bytes, name: str) -> str | None:
    """A header of an answer."""
    for line in head.split(b"\r\n")[1:]:
        found, _, value = line.decode("latin-1").partition(":")
        if found.strip().lower() == name.lower():
            return value.strip()
    return None


class NotReached(Unreachable):
    """Nobody is there, and nothing was asked of anybody."""


class EndedThere(BackendFailed):
    """The target has ended the flow. verdict: what became of it there, or of its VM; reason: why, if it says so;
    orderly: it had everything.
    """

    def __init__(self, verdict: str, reason: str = "", *, orderly: bool) -> None:
        super().__init__(f"the target has ended the flow: {verdict}" + (f" ({reason})" if reason else ""))
        self.orderly = orderly


def _read_end(body: bytes) -> EndedThere:
    try:
        said = json.loads(body)["data"]
        reason = clean(str(said.get("reason") or ""))
        return EndedThere(clean(str(said["verdict"])), reason, orderly=said["orderly"] is True)
    except (ValueError, KeyError, TypeError, RecursionError):
        return EndedThere("it does not say why", orderly=False)


def _check_status(head: bytes, rest: bytes) -> None:
    """Raises: TunnelError: the target refused; it has the status text."""
    line = head.partition(b"\r\n")[0].decode("latin-1")
    parts = line.split(None, 2)
    if len(parts) < 2 or not parts[1].isdecimal() or len(parts[1]) != _STATUS_DIGITS:
        raise _unreadable()
    if parts[1] == "410":
        raise _read_end(rest)
    if parts[1] != "101":
        text = clean(" ".join(parts[1:]))
        raise _KINDS.get(int(parts[1]), BackendFailed)(text)


class _Connecting(Factory):
    """Builds the one protocol of a connection."""

    noisy = False

    def __init__(self, only: Protocol) -> None:
        self._only = only

    def buildProtocol(self, _addr: object) -> Protocol:
        return self._only


async def open_stream(
    reactor: Reactor,
    endpoint: Endpoint,
    path_query: str,
    sock: socket.socket,
    *,
    relay: Relay,
    limits: FlowLimits | None = None,
    headers: Mapping[str, str] | None = None,
    closed: Callable[[bool], Awaitable[None]] = tell_nobody,
    ends_with_peer: bool = False,
) -> Flow:
    """Open a websocket at the target and join it with a local socket.

    Args: sock: connected; it belongs to the flow, whatever happens. closed: awaited at the end (FlowTerms).
    ends_with_peer: see ends.Ends. The others: see connect_websocket.
    Returns: the flow, running. Raises: TunnelError: with the status text where the target refused.
    """
    try:
        opened = await connect_websocket(reactor, endpoint, path_query, headers)
    except BaseException:
        sock.close()
        raise
    limits = limits or FlowLimits()
    flow = Flow(relay, sock, FlowTerms(role=Role.CLIENT, limits=limits, closed=closed, ends_with_peer=ends_with_peer))
    flow.attach(opened.peer)
    return flow


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedWebsocket:
    """A connection that is ready to carry a flow, and the head of the answer that made it so."""

    peer: PeerConnection
    head: bytes


async def connect_websocket(
    reactor: Reactor, endpoint: Endpoint, path_query: str, headers: Mapping[str, str] | None = None
) -> OpenedWebsocket:
    """Connect to the target, check its certificate, and upgrade to a websocket.

    Args: path_query: as it goes into the request line. headers: sent besides.
    Raises: EndedThere: there is nothing to attach to. NotReached. TunnelError: with the status text where the target
    refused.
    """
    opening = _Opening(endpoint, path_query, headers)
    tls = TlsProtocol(client_connection(endpoint), opening, reactor, verified=lambda one: check_identity(one, endpoint))
    try:
        await _connect(reactor, endpoint, tls)
        opening.done.addTimeout(UPGRADE_S, reactor, onTimeoutCancel=_late)
        head, rest = await opening.done
        return OpenedWebsocket(peer=await take_over(tls, b"", rest), head=head)
    except BaseException as error:
        _abort(tls)
        if isinstance(error, ConnectionLost):
            raise _translate(error) from error
        raise


async def _connect(reactor: Reactor, endpoint: Endpoint, tls: TlsProtocol) -> None:
    address = HostnameEndpoint(reactor, endpoint.host, endpoint.port, timeout=CONNECT_S)
    try:
        factory: Any = _Connecting(tls)
        await address.connect(factory)
    except ConnectError as error:
        raise NotReached(_translate(error).text) from error
    except (DNSLookupError, OSError) as error:
        raise _translate(error) from error


def _abort(tls: TlsProtocol) -> None:
    if tls.transport is not None:
        tls.abortConnection()


def _late(_result: object, timeout_s: float) -> None:
    raise Unreachable(f"no answer to the upgrade within {timeout_s:g} s")


def _translate(error: BaseException) -> TunnelError:
    """What stands between us and the target, in words."""
    if isinstance(error, TunnelError):
        return error
    if isinstance(error, SSL.Error):
        return Unreachable(f"TLS with the target failed: {_tls_reason(error)}")
    if isinstance(error, ConnectionLost):
        return Unreachable("the target closed the connection")
    return Unreachable(f"cannot connect to the target: {error}")


def _tls_reason(error: SSL.Error) -> str:
    return explain_tls(error.args[0] if error.args else None) or "no reason"
