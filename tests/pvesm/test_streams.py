"""Where streams come from, in one process: the socket's life, and its time limit."""

import contextlib
import io
import os
import socket
import stat
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.errors import BadRequest
from mtunnel_tx.pvesm.failure import ExitError
from mtunnel_tx.pvesm.streams import open_source, open_target


class StreamCase(SynchronousTestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "s"
        self.said = io.StringIO()

    def fails(self, name, **options) -> ExitError:
        source = open_source(name, **options)
        with contextlib.redirect_stdout(self.said):
            return self.assertRaises(ExitError, source.__enter__)


class SocketTests(StreamCase):
    def test_nobody_comes(self):
        error = self.fails(f"unix://{self.path}", connect_s=0.05)
        self.assertEqual((error.text, error.code), ("timed out waiting for client", 4))
        self.assertEqual(self.said.getvalue(), "ready\n")
        self.assertFalse(self.path.exists())

    def test_one_client_then_no_socket(self):
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        said = _Connecting(lambda: self._meet(client))
        with contextlib.redirect_stdout(said), open_source(f"unix://{self.path}", connect_s=10) as fd:
            self.assertFalse(self.path.exists())
            client.sendall(b"hello")
            self.assertEqual(os.read(fd, 10), b"hello")
        self.assertEqual(self.mode, 0o600)

    def test_a_failure_is_told_before_the_stream_ends(self):
        """Who reads our last line must not have seen the end of the connection, and killed us, before it was out."""
        client = socket.socket(socket.AF_UNIX)
        self.addCleanup(client.close)
        client.settimeout(0)
        said = _Connecting(lambda: self._meet(client))
        with (
            contextlib.redirect_stdout(said),
            self.assertRaises(BadRequest),
            open_source(f"unix://{self.path}", connect_s=10) as fd,
        ):
            raise BadRequest("no image")
        self.assertRaises(BlockingIOError, client.recv, 1)
        os.close(fd)
        self.assertEqual(client.recv(1), b"")

    def _meet(self, client):
        self.mode = stat.S_IMODE(self.path.stat().st_mode)
        client.connect(str(self.path))

    def test_a_path_that_is_too_long(self):
        error = self.fails(f"unix://{self.folder}/{'x' * 108}")
        self.assertIn("failed to open socket: ", error.text)

    def test_a_client_that_comes_is_waited_for_no_longer(self):
        self.assertEqual(self.fails(f"unix://{self.folder}/no/s").code, 2)


class _Connecting(io.StringIO):
    """Calls as soon as `ready` is printed."""

    def __init__(self, call):
        super().__init__()
        self._call = call

    def write(self, text):
        if "ready" in text:
            self._call()
        return super().write(text)


class FileTests(StreamCase):
    def test_a_missing_file(self):
        error = self.fails(f"{self.path}")
        self.assertEqual((error.text, error.code), (f"open({self.path}): No such file or directory", 2))

    def test_other_schemes_are_refused(self):
        with self.assertRaises(BadRequest), open_source("tcp://10.0.0.1"):
            self.fail("opened")

    def test_a_socket_without_a_path(self):
        with self.assertRaises(BadRequest), open_source("unix://", connect_s=0.05):
            self.fail("opened")

    def test_an_unfinished_file_goes(self):
        with self.assertRaises(KeyboardInterrupt), open_target(str(self.path)) as fd:
            os.write(fd, b"half")
            raise KeyboardInterrupt
        self.assertFalse(self.path.exists())

    def test_a_device_stays(self):
        with self.assertRaises(KeyboardInterrupt), open_target("/dev/null"):
            raise KeyboardInterrupt
        self.assertTrue(Path("/dev/null").exists())
