"""Our own TLS under HTTP, on real sockets."""

import contextlib
import datetime
import select
import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from mtunnel_tx.errors import TunnelError
from mtunnel_tx.tls.protocol import MANY_KEYS, TlsContext, TlsFactory, fingerprint, make_certificate
from tests.patience import patience_s
from tests.stream.openssl import Lost, Tls
from tests.stream.scene import MIB, client_context, read_all


def write_pair(folder, name="node", mode=0o600):
    made = make_certificate(name)
    certificate, key = Path(folder, f"{name}.pem"), Path(folder, f"{name}.key")
    certificate.write_bytes(made.certificate)
    key.write_bytes(made.key)
    key.chmod(mode)
    return certificate, key


class Certificates(SynchronousTestCase):
    def test_what_it_says(self):
        made = make_certificate("node1", names=("192.0.2.7", "extra.example"))
        certificate = x509.load_pem_x509_certificate(made.certificate)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertIn("node1", names.get_values_for_type(x509.DNSName))
        self.assertIn("extra.example", names.get_values_for_type(x509.DNSName))
        self.assertIn("192.0.2.7", [str(ip) for ip in names.get_values_for_type(x509.IPAddress)])
        self.assertGreater(certificate.not_valid_after_utc - certificate.not_valid_before_utc, datetime.timedelta(3650))

    def test_fingerprint(self):
        made = make_certificate("node1")
        text = fingerprint(made.certificate)
        self.assertRegex(text, r"^([0-9A-F]{2}:){31}[0-9A-F]{2}$")
        self.assertEqual(text, fingerprint(x509.load_pem_x509_certificate(made.certificate)))

    def test_key_that_others_can_read_is_refused(self):
        for mode in (0o640, 0o604, 0o601):
            certificate, key = write_pair(self.mktemp_folder(), mode=mode)
            error = self.assertRaises(TunnelError, TlsContext, certificate, key)
            self.assertIn(str(key), error.text)

    def mktemp_folder(self):
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        return folder

    def test_missing_and_broken_files(self):
        folder = self.mktemp_folder()
        certificate, key = write_pair(folder)
        for broken in (
            (folder / "none", key),
            (certificate, folder / "none"),
            (key, key),
            (certificate, write_pair(folder, "b")[1]),
        ):
            self.assertRaises(TunnelError, TlsContext, *broken)

    def test_what_is_wrong_with_a_key(self):
        folder = self.mktemp_folder()
        certificate, key = write_pair(folder)
        other = load_pem_private_key(key.read_bytes(), None)
        locked = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
        no_key = "it is no private key in PEM without a pass phrase"
        for text in (b"", b"garbage", certificate.read_bytes(), locked):
            key.write_bytes(text)
            error = self.assertRaises(TunnelError, TlsContext, certificate, key)
            self.assertEqual(error.text, f"cannot use key '{key}': {no_key}")
        key.write_bytes(make_certificate("other").key)
        error = self.assertRaises(TunnelError, TlsContext, certificate, key)
        self.assertEqual(error.text, f"cannot use key '{key}': it does not belong to the certificate")
        key.unlink()
        key.mkdir(mode=0o700)
        key.chmod(0o600)
        error = self.assertRaises(TunnelError, TlsContext, certificate, key)
        self.assertEqual(error.text, f"cannot read key '{key}': Is a directory")

    def test_reload_keeps_the_old_one_after_an_error(self):
        certificate, key = write_pair(self.mktemp_folder())
        context = TlsContext(certificate, key)
        before = context.context, context.files
        other = make_certificate("other")
        certificate.write_bytes(other.certificate)
        self.assertRaises(TunnelError, context.reload)
        self.assertEqual((context.context, context.files), before)
        key.write_bytes(other.key)
        key.chmod(0o644)
        self.assertRaises(TunnelError, context.reload)
        self.assertEqual((context.context, context.files), before)
        key.chmod(0o600)
        context.reload()
        self.assertIsNot(context.context, before[0])
        self.assertEqual(context.files, other)


class Large(Resource):
    def getChild(self, path, request):
        return self

    def render_GET(self, request):
        if request.path == b"/pull":
            import io

            from twisted.web.static import NoRangeStaticProducer

            NoRangeStaticProducer(request, io.BytesIO(b"p" * 3_000_000)).start()
            return NOT_DONE_YET
        assert request.isSecure()
        return b"y" * 2_000_000

    def render_POST(self, request):
        return b"%d" % len(request.content.read())


class Watched(TlsFactory):
    """Knows when its connections are over."""

    def buildProtocol(self, addr):
        protocol, over = super().buildProtocol(addr), Deferred()
        self.connections = [*getattr(self, "connections", []), over]
        lost = protocol.connectionLost
        protocol.connectionLost = lambda reason: (lost(reason), over.callback(None))
        return protocol


class Listening(TestCase):
    def setUp(self):
        folder = Path(self.mktemp())
        folder.mkdir(parents=True)
        self.certificate, self.key = write_pair(folder)
        self.context = TlsContext(self.certificate, self.key)
        self.ports = []

    def tearDown(self):
        for port in self.ports:
            port.stopListening()
        return DeferredList([over for port in self.ports for over in getattr(port.factory, "connections", [])])

    def listen(self, inner, **options):
        port = reactor.listenTCP(0, Watched(self.context, inner, reactor, **options), interface="127.0.0.1")
        self.ports.append(port)
        return port.getHost().port

    @staticmethod
    def connect(number, context=None):
        sock = socket.create_connection(("127.0.0.1", number), patience_s())
        return (context or client_context()).wrap_socket(sock)

    def test_http(self):
        number = self.listen(Site(Large()))

        def play():
            with self.connect(number) as sock:
                for path, letter, size in ((b"/", b"y", 2_000_000), (b"/pull", b"p", 3_000_000)):
                    sock.sendall(
                        b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n"
                        % (path, b"Connection: close\r\n" if letter == b"p" else b"")
                    )
                    data = b""
                    while data.count(letter) < size:
                        piece = sock.recv(1 << 16)
                        assert piece, len(data)
                        data += piece
                    self.assertTrue(data.startswith(b"HTTP/1.1 200 OK\r\n"))
                # A close_notify, not only the end of the connection.
                self.assertEqual(sock.recv(10).strip(b"0\r\n"), b"")
                self.assertEqual(sock.version(), "TLSv1.3")

        return deferToThread(play)

    def test_body_in_many_records_and_a_pipelined_request(self):
        number = self.listen(Site(Large()))

        def play():
            with self.connect(number) as sock:
                body = bytes(300_000)
                sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
                for start in range(0, len(body), 7000):
                    sock.sendall(body[start : start + 7000])
                sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi")
                answer = read_all(sock)
                self.assertEqual(answer.count(b"HTTP/1.1 200"), 2)
                self.assertIn(b"300000", answer)

        return deferToThread(play)

    def test_old_tls_is_refused(self):
        number = self.listen(Site(Large()))
        context = client_context()
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("AES128-SHA:@SECLEVEL=0")

        def play():
            self.assertRaises(ssl.SSLError, self.connect, number, context)
            context.set_ciphers("ECDHE+AESGCM")
            self.connect(number, context).close()

        return deferToThread(play)

    def test_new_certificate_for_new_connections(self):
        number = self.listen(Site(Large()))
        shown = []

        def look():
            with self.connect(number) as sock:
                shown.append(fingerprint(x509.load_der_x509_certificate(sock.getpeercert(True))))

        def renew(_):
            made = make_certificate("new")
            self.certificate.write_bytes(made.certificate)
            self.key.write_bytes(made.key)
            self.context.reload()
            return fingerprint(made.certificate)

        first = fingerprint(self.certificate.read_bytes())
        done = deferToThread(look).addCallback(renew)
        return done.addCallback(
            lambda second: deferToThread(look).addCallback(lambda _: self.assertEqual(shown, [first, second]))
        )

    def test_a_handshake_that_does_not_end(self):
        number = self.listen(Site(Large()), handshake_s=0.2)

        def play():
            with socket.create_connection(("127.0.0.1", number), patience_s()) as sock:
                sock.sendall(b"\x16\x03\x01")
                self.assertRaises(ConnectionResetError, sock.recv, 1)

        return deferToThread(play)

    def test_new_keys_before_a_request(self):
        number = self.listen(Site(Large()))

        def play():
            tls = self.connect_own(number)
            for _ in range(100):
                self.assertTrue(tls.demand_keys())
            tls.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            got = b""
            while not got.startswith(b"HTTP/1.1 200 OK"):
                self.assertTrue(select.select([tls.sock], [], [], patience_s())[0])
                got += tls.receive(1 << 16) or b""
            tls.close()

        return deferToThread(play)

    def test_a_peer_that_demands_new_keys_again_and_again(self):
        """Each demand is answered; nobody knows yet who it is."""
        lost = Deferred()

        class Inner(Protocol):
            def connectionLost(self, reason):
                lost.callback(reason.getErrorMessage())

        number = self.listen(Factory.forProtocol(Inner))

        def play():
            tls = self.connect_own(number)
            with contextlib.suppress(Lost):  # the end of a connection of which nothing is read may not be seen
                tls.flood(4 * MIB, patience_s(0.5))
            return tls

        def check(tls):
            tls.close()
            return lost.addCallback(lambda reason: self.assertIn(MANY_KEYS, reason))

        return deferToThread(play).addCallback(check)

    @staticmethod
    def connect_own(number):
        return Tls(socket.create_connection(("127.0.0.1", number), patience_s()))

    def test_plain_http_to_the_tls_port(self):
        number = self.listen(Site(Large()))

        def play():
            with socket.create_connection(("127.0.0.1", number), patience_s()) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                try:
                    read_all(sock)
                except ConnectionResetError:
                    return

        return deferToThread(play)

    def test_lost_connection_reaches_the_inner_protocol(self):
        lost = Deferred()

        class Inner(Protocol):
            def connectionLost(self, reason):
                lost.callback(reason.type)

        number = self.listen(Factory.forProtocol(Inner))
        deferToThread(lambda: self.connect(number).close())
        return lost

    def test_pausing_holds_plaintext_back(self):
        got, made = [], Deferred()

        class Inner(Protocol):
            def connectionMade(self):
                self.transport.pauseProducing()
                reactor.callLater(0.1, self.look)

            def look(self):
                self.before = list(got)
                self.transport.resumeProducing()

            def dataReceived(self, data):
                got.append(data)
                self.transport.pauseProducing()
                reactor.callLater(0, self.transport.resumeProducing)
                if sum(map(len, got)) == 100_000:
                    made.callback(self)

        number = self.listen(Factory.forProtocol(Inner))

        def play():
            sock = self.connect(number)
            sock.sendall(bytes(100_000))
            return sock

        opened = deferToThread(play)

        def check(inner):
            self.assertEqual(inner.before, [])
            inner.transport.loseConnection()
            return opened.addCallback(lambda sock: deferToThread(read_all, sock).addCallback(lambda _: sock.close()))

        return made.addCallback(check)
