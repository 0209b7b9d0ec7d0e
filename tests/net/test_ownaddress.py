"""Which addresses are this host's."""

from __future__ import annotations

import socket

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mtunnel_tx.net.ownaddress import is_this_host


class OwnAddress(SynchronousTestCase):
    def test_loopback_and_sockets(self) -> None:
        for address in ("127.0.0.1", "127.1.2.3", "::1", "local"):
            self.assertTrue(is_this_host(address), address)

    def test_others(self) -> None:
        for address in ("192.0.2.1", "2001:db8::1", "0.0.0.0", "::", "255.255.255.255", "somebody"):
            self.assertFalse(is_this_host(address), address)

    def test_that_of_an_interface(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect(("192.0.2.1", 9))
            except OSError as error:
                raise SkipTest("this host has no address but loopback: ITS OWN ADDRESS IS NOT TESTED") from error
            self.assertTrue(is_this_host(sock.getsockname()[0]))
