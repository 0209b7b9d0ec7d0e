"""The proxy of the soak with cuts: it has to fail as it says, or the soak proves nothing."""

from __future__ import annotations

import socket
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import patience_s, wait_for
from tests.soak.cutter import Cutter

VAIN_S = 0.3


class OutageTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.target = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.target.close)
        self.target.settimeout(patience_s())
        self.cutter = Cutter(self.target.getsockname()[1], 0, Random(1))

    def connect(self, most_s: float | None = None) -> socket.socket:
        near = socket.create_connection(("127.0.0.1", self.cutter.own_port), most_s or patience_s())
        self.addCleanup(near.close)
        return near

    def assert_carries(self, near: socket.socket) -> None:
        far, _ = self.target.accept()
        self.addCleanup(far.close)
        far.settimeout(patience_s())
        near.sendall(b"beat")
        self.assertEqual(far.recv(4), b"beat")

    def test_everything_is_cut_and_nothing_new_comes_until_the_end(self) -> None:
        near = self.connect()
        self.assert_carries(near)
        self.cutter.refuse()
        wait_for("the cut", lambda: self.cutter.count.total() == 1)
        self.assertRaises(ConnectionRefusedError, self.connect)
        self.cutter.ignore()
        self.assertRaises(TimeoutError, self.connect, VAIN_S)
        self.cutter.recover()
        self.assert_carries(self.connect())
