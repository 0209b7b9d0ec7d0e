"""The daemon's ports, open for real."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Any

import twisted.internet.reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from mtunnel_tx.daemon.listening import Listeners

_QUEUE = struct.Struct("=8s5II")
"""The head of Linux's `struct tcp_info`: `tcpi_sacked`, the last of it, is a listening socket's longest queue."""


class QueueTests(TestCase):
    def test_as_long_as_the_kernel_allows(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._test())

    async def _test(self) -> None:
        reactor: Any = twisted.internet.reactor
        listeners = Listeners(reactor)
        await listeners.open(["tcp:0:interface=127.0.0.1"], Factory())
        try:
            sock = listeners._ports[0].socket
            longest = _QUEUE.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _QUEUE.size))[-1]
        finally:
            await listeners.close()
        most = int(Path("/proc/sys/net/core/somaxconn").read_text())
        self.assertEqual(longest, min(most, socket.SOMAXCONN))
