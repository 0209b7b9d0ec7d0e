"""HTTP with limits: what a connection may cost before anybody knows who it is."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from mtunnel_tx.checks import clean
from mtunnel_tx.config import Limits
from mtunnel_tx.net.admission import Place

log = Logger()

LINGER_S = 2.0
_LENGTH_DIGITS = 20


class LimitedChannel(HTTPChannel):
    """One connection. A request has `request_s` to arrive, counted from its first byte, whatever trickles in.

    What is too large gets a short answer; what still comes is thrown away for LINGER_S, because closing at once with
    unread bytes would reset the connection and lose the answer.
    """

    transport: Any

    def __init__(self, limits: Limits) -> None:
        HTTPChannel.__init__(self)
        self.MAX_LENGTH = limits.header_bytes
        self.totalHeadersSize = limits.header_bytes
        self.body_bytes = limits.body_bytes
        self._request_s = limits.request_s
        self._head_bytes = 0
        self._idle = False
        self._refused = False

    def dataReceived(self, data: bytes) -> None:
        if not self._refused:
            HTTPChannel.dataReceived(self, data)

    def resetTimeout(self) -> None:
        """Bytes prolong nothing; the first one of a request begins its time."""
        if self._idle:
            self._idle = False
            self.setTimeout(self._request_s)
            if self.place is not None:
                self.place.work()

    def requestDone(self, request: Request) -> None:
        self._idle = True
        if self.persistent and self.place is not None:
            self.place.rest(self.transport.abortConnection)
        HTTPChannel.requestDone(self, request)

    def lineReceived(self, line: bytes) -> None:
        if self._refused:
            return
        self._head_bytes += len(line) + len(self.delimiter)
        if self._head_bytes > self.totalHeadersSize:
            self.refuse(b"431 Request Header Fields Too Large")
        else:
            HTTPChannel.lineReceived(self, line)

    def headerReceived(self, line: bytes) -> bool:
        """Twisted 24.11 takes the end of a line within one, which may be the beginning of another header to a proxy.

        Python reads no number of more than some thousand digits, and would fail here.
        """
        if any(end in line for end in (b"\r", b"\n", b"\0")):
            self.refuse(b"400 Bad Request")
            return False
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length" and len(value.strip(b" \t")) > _LENGTH_DIGITS:
            self.refuse(b"413 Request Entity Too Large")
            return False
        return bool(HTTPChannel.headerReceived(self, line))

    def lineLengthExceeded(self, line: bytes) -> None:
        self.refuse(b"431 Request Header Fields Too Large")

    def rawDataReceived(self, data: bytes) -> None:
        if not self._refused:
            HTTPChannel.rawDataReceived(self, data)

    def allHeadersReceived(self) -> None:
        if self.length is not None and self.length > self.body_bytes:
            self.refuse(b"413 Request Entity Too Large")
        else:
            HTTPChannel.allHeadersReceived(self)

    def allContentReceived(self) -> None:
        self._head_bytes = 0
        if not self._refused:
            HTTPChannel.allContentReceived(self)

    def loseConnection(self) -> None:
        """What still comes belongs to no request; after a first line that was none it has not even a version."""
        self._refused = True
        HTTPChannel.loseConnection(self)

    @property
    def place(self) -> Place | None:
        """The place that this connection takes."""
        return getattr(self.transport, "place", None)

    def refuse(self, status: bytes) -> None:
        """Answer a request that is too large, and end the connection."""
        if self._refused:
            return
        self._refused = True
        self.clearLineBuffer()
        self.transport.write(b"HTTP/1.1 %b\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
        self.setTimeout(LINGER_S)


class LimitedRequest(Request):
    """A request whose body is held in memory, no larger than the channel allows; its text names no ticket."""

    channel: Any

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        assert self.content is not None
        if self.content.tell() + len(data) > self.channel.body_bytes:
            self.channel.refuse(b"413 Request Entity Too Large")
        else:
            self.content.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The body stays as it came: reading it is the API's own affair."""
        assert self.content is not None
        self.content.seek(0)
        self.method, self.uri, self.clientproto = command, path, version
        self.path, self.args = path.partition(b"?")[0], {}
        self.process()

    def processingFailed(self, reason: Failure) -> Failure:
        """Only a bug leads here, before our own code runs; the peer learns nothing of it."""
        log.failure("unexpected failure in an HTTP request", failure=reason)
        self.setResponseCode(500, b"internal error")
        self.setHeader(b"Content-Length", b"0")
        self.finish()
        return reason

    def __repr__(self) -> str:
        return f"<Request {clean(_text(self.method))} {clean(_text(self.path))}>"


class LimitedSite(Site):
    """Builds limited channels for one resource; HTTP/1.1 only; its log has no query strings, which hold tickets."""

    noisy = False
    requestFactory = LimitedRequest
    protocol: Any

    def __init__(self, resource: Resource, reactor: Any, limits: Limits) -> None:
        Site.__init__(self, resource, reactor=reactor, timeout=limits.request_s)
        self.protocol = lambda: LimitedChannel(limits)

    def startFactory(self) -> None:
        """There is no access log to open."""

    def stopFactory(self) -> None:
        """There is no access log to close."""

    def log(self, request: http.Request) -> None:
        log.debug("{request!r} answered with {status}", request=request, status=request.code)

    def acceptableProtocols(self) -> list[bytes]:
        return [b"http/1.1"]


def _text(value: bytes | None) -> str:
    return (value or b"").decode("latin-1")
