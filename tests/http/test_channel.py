"""One HTTP connection, in memory: what is refused before anybody asks for anything, and what is one request or two."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import Request

from mtunnel_tx.config import Limits
from mtunnel_tx.http.channel import LimitedSite

BAD = b"HTTP/1.1 400 Bad Request"
LARGE = b"HTTP/1.1 413 Request Entity Too Large"
SECOND = b"GET /second HTTP/1.1\r\nHost: here\r\n\r\n"


class Paths(Resource):
    """Answers everything, and remembers what was asked for."""

    isLeaf = True  # noqa: N815 - the name that twisted.web looks for

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bytes] = []

    def render(self, request: Request) -> bytes:
        self.asked.append(request.path)
        return b""


class ChannelCase(SynchronousTestCase):
    def send(self, *lines: bytes, body: bytes = b"") -> tuple[bytes, list[bytes]]:
        """Returns: the first answer's status line, and the paths that were asked for."""
        clock, paths = Clock(), Paths()
        channel = LimitedSite(paths, clock, Limits()).buildProtocol(None)
        transport = StringTransport()
        channel.callLater = clock.callLater
        channel.makeConnection(transport)
        head = (b"POST /first HTTP/1.1", b"Host: here", *lines, b"", body)
        channel.dataReceived(b"\r\n".join(head))
        return transport.value().partition(b"\r\n")[0], paths.asked


class LengthTests(ChannelCase):
    def answer(self, length: bytes) -> bytes:
        return self.send(b"Content-Length: " + length)[0]

    def test_numbers_that_python_does_not_read(self) -> None:
        """It fails at more than 4300 digits, leading zeros included."""
        for length in (b"9" * 5000, b"0" * 5000 + b"4"):
            self.assertEqual(self.answer(length), LARGE)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_numbers_that_are_none(self) -> None:
        for length in (b"+4", b"0x4", b"4, 4", b"-1", b"1_0", b""):
            self.assertEqual(self.answer(length), BAD)


class SmugglingTests(ChannelCase):
    """What a proxy in front may count as one request, and we as two, is refused."""

    def test_two_ways_to_say_how_long(self) -> None:
        for lines in (
            (b"Content-Length: 4", b"Transfer-Encoding: chunked"),
            (b"Transfer-Encoding: chunked", b"Content-Length: 4"),
            (b"Content-Length: 0", b"Content-Length: 38"),
            (b"Transfer-Encoding: chunked, identity",),
            (b"Transfer-Encoding: xchunked",),
            (b"Transfer-Encoding : chunked",),
            (b"X: a\nTransfer-Encoding: chunked",),
            (b"X: a\rContent-Length: 5",),
            (b"X: a\0b",),
        ):
            self.assertEqual(self.send(*lines, body=b"0\r\n\r\n" + SECOND), (BAD, []), lines)

    def test_chunks_that_are_none(self) -> None:
        for body in (b"0x0\r\n\r\n", b"0\n\n", b"f" * 2000 + b"\r\n", b"-1\r\n\r\n", b" 0\r\n\r\n"):
            answer, asked = self.send(b"Transfer-Encoding: chunked", body=body + SECOND)
            self.assertEqual((answer, asked), (BAD, []), body)

    def test_a_body_is_no_request(self) -> None:
        length = b"Content-Length: %d" % len(SECOND)
        self.assertEqual(self.send(length, body=SECOND)[1], [b"/first"])
        self.assertEqual(self.send(length, body=2 * SECOND)[1], [b"/first", b"/second"])
