"""The stand-in for the relay of Proxmox VE's HTTP server, over TLS, by a client that shares no code with it."""

import os
import socket
import ssl
import subprocess
import threading
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, RejectConnection, Request

from bench.case import Case
from bench.peers import Place, ProxmoxLike, free_port
from bench.processes import is_listening
from mtunnel_tx.tls.protocol import make_certificate
from tests.patience import patience_s, wait_for
from tests.processes import started_process
from tests.whole.peer import tls_context

SIZE_BYTES = 300_000
"""More than one frame in each direction."""


class Client:
    """One websocket to the relay."""

    def __init__(self, port, target):
        raw = socket.create_connection(("127.0.0.1", port), timeout=patience_s())
        self.sock = tls_context().wrap_socket(raw)
        self.wire = WSConnection(ConnectionType.CLIENT)
        self.sock.sendall(self.wire.send(Request(host="127.0.0.1", target=target, subprotocols=["binary"])))
        self.answer = self.wait(AcceptConnection, RejectConnection)
        self.received = b""

    def wait(self, *kinds):
        """The next event of such a kind."""
        while True:
            for event in self.wire.events():
                if isinstance(event, BytesMessage):
                    self.received += bytes(event.data)
                if isinstance(event, kinds):
                    return event
            self.wire.receive_data(self.sock.recv(65536) or None)

    def send(self, event):
        self.sock.sendall(self.wire.send(event))


class StandIn(SynchronousTestCase):
    def setUp(self):
        folder = Path(self.mktemp())
        folder.mkdir()
        made = make_certificate("node1")
        place = Place(
            room=folder,
            folder=folder,
            sink=Path(f"/tmp/mtunnel-relay-{os.getpid()}.sock"),
            certificate=folder / "certificate.pem",
            key=folder / "key.pem",
        )
        place.certificate.write_bytes(made.certificate)
        place.key.write_bytes(made.key)
        self.relay = ProxmoxLike("proxmox-like", place)
        if not self.relay.is_there():
            raise SkipTest("no Perl with AnyEvent, Net::SSLeay and EV here")
        self.port = free_port()
        started_process(self.addCleanup, self.relay.argv(Case(), self.port), stdout=subprocess.DEVNULL)
        wait_for("the relay", lambda: is_listening(self.port))

    def connect(self):
        """Returns: both ends."""
        sink = self.relay.place.sink
        with socket.socket(socket.AF_UNIX) as listener:
            self.addCleanup(sink.unlink)
            listener.bind(str(sink))
            listener.listen()
            listener.settimeout(patience_s())
            client = Client(self.port, self.relay.target(sink))
            self.addCleanup(client.sock.close)
            local, _ = listener.accept()
        self.addCleanup(local.close)
        local.settimeout(patience_s())
        return client, local

    def test_bytes_arrive_as_they_were_sent(self):
        client, local = self.connect()
        self.assertEqual(client.answer.subprotocol, "binary")
        sent, received = os.urandom(SIZE_BYTES), bytearray()
        sender = threading.Thread(target=client.send, args=(BytesMessage(sent),))  # masked at random
        sender.start()
        while len(received) < SIZE_BYTES:
            received += local.recv(65536)
        sender.join(patience_s())
        self.assertEqual(bytes(received), sent)
        sender = threading.Thread(target=local.sendall, args=(sent,))
        sender.start()
        while len(client.received) < SIZE_BYTES:
            client.wait(BytesMessage)
        sender.join(patience_s())
        self.assertEqual(client.received, sent)

    def test_ends_are_passed_on(self):
        client, local = self.connect()
        client.send(CloseConnection(1000))
        self.assertEqual(local.recv(1), b"")
        self.assertEqual(client.wait(CloseConnection).code, 1000)

    def test_the_end_of_the_local_side_is_a_close(self):
        client, local = self.connect()
        local.sendall(b"last words")
        local.close()
        self.assertEqual(client.wait(CloseConnection).code, 1000)
        self.assertEqual(client.received, b"last words")

    def test_a_socket_that_is_not_there_is_refused(self):
        try:
            client = Client(self.port, self.relay.target(Path("/nonexistent/sink")))
        except ssl.SSLError as error:
            self.fail(f"no answer: {error}")
        self.addCleanup(client.sock.close)
        self.assertEqual(client.answer.status_code, 502)
