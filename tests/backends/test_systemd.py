"""Datagrams for systemd: names, the watchdog's conditions, and the journal's native format with a tunnel's record."""

import shutil
import socket
import tempfile
from pathlib import Path

from twisted.logger import Logger, LogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.systemd import JournalObserver, Notifier, encode_entry
from mtunnel_tx.tunnel import audit

RECORD = {
    "vmid": 100,
    "token": "mig@pve!t1",
    "address": "192.0.2.1",
    "end": "quit",
    "verdict": "kept",
    "bytes_in": 7,
    "bytes_out": 8,
    "duration_s": 1.5,
    "upid": "UPID:x:",
}


class Case(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = self.folder / "socket"
        self.sock = self.listen(str(self.path))

    def listen(self, name):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        sock.bind(name)
        sock.setblocking(False)
        return sock


class NotifierTests(Case):
    def notifier(self, pid=7, **environ):
        return Notifier({"NOTIFY_SOCKET": str(self.path), **environ}, pid)

    def test_a_socket_file(self):
        self.notifier().ready()
        self.assertEqual(self.sock.recv(100), b"READY=1")

    def test_an_abstract_socket(self):
        sock = self.listen(f"\0{self.folder}")
        Notifier({"NOTIFY_SOCKET": f"@{self.folder}"}, 7).stopping()
        self.assertEqual(sock.recv(100), b"STOPPING=1")

    def test_nobody_listens(self):
        self.sock.close()
        self.notifier().ready()
        Notifier({"NOTIFY_SOCKET": str(self.folder / "none")}, 7).ready()
        Notifier({}, 7).ready()

    def test_a_full_queue_stops_nobody(self):
        for _ in range(10_000):
            self.notifier().ready()

    def test_status_is_told_when_it_changes(self):
        notifier = self.notifier()
        for text in ("a", "a", "b"):
            notifier.status(text)
        self.assertEqual([self.sock.recv(100), self.sock.recv(100)], [b"STATUS=a", b"STATUS=b"])
        self.assertRaises(BlockingIOError, self.sock.recv, 100)

    def test_watchdog(self):
        self.assertEqual(self.notifier(WATCHDOG_USEC="2500000").watchdog_s, 2.5)
        self.assertEqual(self.notifier(WATCHDOG_USEC="2500000", WATCHDOG_PID="7").watchdog_s, 2.5)
        for environ in (
            {"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "8"},
            {"WATCHDOG_USEC": "0"},
            {"WATCHDOG_USEC": "soon"},
            {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "x"},
            {},
        ):
            notifier = self.notifier(**environ)
            self.assertIsNone(notifier.watchdog_s)
            notifier.alive()
        self.assertRaises(BlockingIOError, self.sock.recv, 100)


class JournalTests(Case):
    def test_values_with_line_feeds_have_their_length(self):
        entry = encode_entry({"MESSAGE": "a\nb", "PRIORITY": 6, "X": "\ud800"})
        self.assertEqual(entry, b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\nPRIORITY=6\nX=?\n")

    def fields(self):
        return dict(line.split("=", 1) for line in self.sock.recv(65536).decode().splitlines())

    def logger(self, namespace):
        observer = JournalObserver(audit.__name__, audit.FIELDS, self.path)
        self.assertTrue(observer.is_heard({}))
        return Logger(namespace=namespace, observer=LogPublisher(observer))

    def test_a_record(self):
        self.logger(audit.__name__).info("{verdict}", secret="no", **RECORD)
        fields = self.fields()
        own = {name: value for name, value in fields.items() if name.startswith("MTUNNEL_")}
        self.assertEqual(own, {f"MTUNNEL_{name.upper()}": str(value) for name, value in RECORD.items()})
        self.assertEqual((fields["MESSAGE"], fields["SYSLOG_IDENTIFIER"]), ("kept", "mtunnel"))

    def test_other_events_are_not_sent(self):
        self.logger("mtunnel_tx.tunnel.registry").info("{verdict}", **RECORD)
        self.assertRaises(BlockingIOError, self.sock.recv, 100)

    def test_no_journal(self):
        observer = JournalObserver(audit.__name__, audit.FIELDS, self.folder / "none")
        self.assertFalse(observer.is_heard({}))
        self.assertTrue(observer.is_heard({"JOURNAL_STREAM": "8:9"}))
        observer({"log_namespace": audit.__name__, "log_format": "x"})
