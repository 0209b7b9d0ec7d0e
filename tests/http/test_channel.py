"""One HTTP connection, in memory: what is refused before anybody asks for anything."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from mtunnel_tx.config import Limits
from mtunnel_tx.http.channel import LimitedSite


class LengthTests(SynchronousTestCase):
    def answer(self, length: bytes) -> bytes:
        clock = Clock()
        channel = LimitedSite(Resource(), clock, Limits()).buildProtocol(None)
        transport = StringTransport()
        channel.callLater = clock.callLater
        channel.makeConnection(transport)
        channel.dataReceived(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: %b\r\n\r\n" % length)
        return transport.value().partition(b"\r\n")[0]

    def test_numbers_that_python_does_not_read(self) -> None:
        """It fails at more than 4300 digits, leading zeros included."""
        for length in (b"9" * 5000, b"0" * 5000 + b"4"):
            self.assertEqual(self.answer(length), b"HTTP/1.1 413 Request Entity Too Large")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_numbers_that_are_none(self) -> None:
        for length in (b"+4", b"0x4", b"4, 4", b"-1", b""):
            self.assertEqual(self.answer(length), b"HTTP/1.1 400 Bad Request")
