"""A real daemon with small limits."""

from __future__ import annotations

import ssl

from twisted.trial.unittest import SynchronousTestCase

from tests.whole.node import Node
from tests.whole.peer import Tunnel, call


class Case(SynchronousTestCase):
    limits: dict[str, float] = {}
    extra = ""

    def setUp(self) -> None:
        table = "\n".join(f"{name} = {value}" for name, value in self.limits.items())
        self.node = Node(extra=f"{self.extra}\n[limits]\n{table}").start()
        self.addCleanup(self.node.close)

    def open(self, vmid: int = 100) -> Tunnel:
        return Tunnel(self.node, vmid, storages="local", bridges="")

    def leave(self, tunnel: Tunnel) -> None:
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()

    def is_served(self) -> bool:
        try:
            return call(self.node, "GET", "/version").status == 200
        except (OSError, ssl.SSLError):
            return False
