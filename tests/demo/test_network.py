"""The demonstration's network: it carries bytes both ways, and resets every connection when it was told to."""

import contextlib
import socket
import threading

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.demo.network import MIB, cut_network
from tests.patience import patience_s


class NetworkTests(SynchronousTestCase):
    def setUp(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.listener.close)
        self.told = []

    def network(self, *cut_at_mib):
        block = cut_network(self.listener.getsockname()[1], cut_at_mib, self.told.append)
        network = block.__enter__()
        self.addCleanup(block.__exit__, None, None, None)
        return network

    def connect(self, network):
        near = socket.create_connection(("127.0.0.1", network.at), patience_s(10))
        far, _ = self.listener.accept()
        far.settimeout(patience_s(10))
        for sock in (near, far):
            self.addCleanup(sock.close)
        return near, far

    def test_both_ways_and_each_end(self):
        near, far = self.connect(self.network())
        near.sendall(b"there")
        near.shutdown(socket.SHUT_WR)
        self.assertEqual(b"".join(iter(lambda: far.recv(10), b"")), b"there")
        far.sendall(b"and back")
        far.close()
        self.assertEqual(b"".join(iter(lambda: near.recv(10), b"")), b"and back")

    def test_it_cuts_all_connections_after_so_many_bytes(self):
        network = self.network(1, 3)
        pairs = [self.connect(network) for _ in range(2)]
        sender = threading.Thread(target=self.send, args=(pairs[0][0], MIB))
        sender.start()
        for _, far in pairs:
            with self.assertRaises(ConnectionResetError):
                while far.recv(MIB):
                    pass
        sender.join()
        self.assertEqual((network.cuts, len(self.told)), (1, 1))
        near, far = self.connect(network)
        near.sendall(b"again")
        self.assertEqual(far.recv(10), b"again")

    def send(self, sock, size_bytes):
        with contextlib.suppress(OSError):
            sock.sendall(bytes(size_bytes))
