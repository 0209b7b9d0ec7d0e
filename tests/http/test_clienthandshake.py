"""A client's handshake: against somebody else's websocket, and answers that are none."""

import time

from twisted.trial.unittest import SynchronousTestCase
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request

from mtunnel_tx.http.clienthandshake import ClientHandshake, accept_value

GOOD = (
    "HTTP/1.1 101 Switching Protocols",
    "Upgrade: websocket",
    "Connection: keep-alive, Upgrade",
    "Sec-WebSocket-Accept: KEY",
    "Sec-WebSocket-Protocol: binary",
)


class Handshakes(SynchronousTestCase):
    def setUp(self):
        self.handshake = ClientHandshake("[::1]:8006", "/x?y=%2F", {"Authorization": "PVEAPIToken=a=b"})
        self.request = self.handshake.request()
        key = next(line for line in self.request.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: "))
        self.accept = accept_value(key.partition(b": ")[2]).decode()

    def answer(self, *lines):
        return "\r\n".join([*lines, "", ""]).replace("KEY", self.accept).encode("latin-1")

    def test_somebody_elses_server_takes_it_and_its_answer_is_taken(self):
        server = WSConnection(ConnectionType.SERVER)
        server.receive_data(self.request)
        (request,) = list(server.events())
        self.assertIsInstance(request, Request)
        self.assertEqual((request.host, request.target, request.subprotocols), ("[::1]:8006", "/x?y=%2F", ["binary"]))
        self.assertIn((b"authorization", b"PVEAPIToken=a=b"), list(request.extra_headers))
        self.handshake.check(server.send(AcceptConnection(subprotocol="binary")))

    def test_the_key_of_the_standards_example(self):
        self.assertEqual(accept_value(b"dGhlIHNhbXBsZSBub25jZQ=="), b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")

    def test_each_request_has_a_key_of_its_own(self):
        other = ClientHandshake("[::1]:8006", "/x?y=%2F", {"Authorization": "PVEAPIToken=a=b"}).request()
        self.assertNotEqual(self.request, other)

    def test_good_answers(self):
        self.handshake.check(self.answer(*GOOD))
        self.handshake.check(self.answer(*GOOD[:4], "X-Other:", "X-Other: twice"))
        self.handshake.check(self.answer("HTTP/1.1 101", *GOOD[1:3], "sec-websocket-accept:KEY "))

    def test_bad_answers(self):
        for line, other in (
            (0, "HTTP/1.1 200 OK"),
            (0, "HTTP/1.0 101 Switching Protocols"),
            (1, "Upgrade: h2c"),
            (2, "Connection: close"),
            (3, "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            (3, "X-None: KEY"),
            (4, "Sec-WebSocket-Protocol: text"),
            (4, "Sec-WebSocket-Accept: KEY"),
            (4, "Sec-WebSocket-Extensions: permessage-deflate"),
            (4, "no header"),
            (4, " : folded"),
        ):
            lines = [*GOOD[:line], other, *GOOD[line + 1 :]]
            self.assertRaises(ValueError, self.handshake.check, self.answer(*lines))

    def test_a_line_of_blanks_takes_no_time(self):
        """A pattern that tries each way to divide them takes days, and the reactor with it."""
        blanks = " " * (60 << 10)
        before_s = time.process_time()
        self.assertRaises(ValueError, self.handshake.check, self.answer(*GOOD, f"X-Other:{blanks}\n"))
        self.handshake.check(self.answer(*GOOD, f"X-Other:{blanks}x{blanks}"))
        self.assertLess(time.process_time() - before_s, 5)

    def test_no_line_end_gets_into_the_request(self):
        for path, token in (("/x HTTP/1.1\r\nEvil: 1", "a"), ("/x", "a\nEvil: 1")):
            handshake = ClientHandshake("h:1", path, {"Authorization": token})
            self.assertRaises(ValueError, handshake.request)
