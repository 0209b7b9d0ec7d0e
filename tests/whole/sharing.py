"""A daemon that many hostile tests share, and a witness beside each of them."""

from __future__ import annotations

import atexit

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import wait_for
from tests.whole.node import Node
from tests.whole.peer import Tunnel

VMID = 100
MIB = 1 << 20


class SharedNode:
    """One daemon takes it all, test after test, as long as nothing is left behind; then the next test has another."""

    node: Node | None = None
    is_clean = False

    def take(self) -> Node:
        if not self.is_clean:
            self.close()
            self.node = Node().start()
        self.is_clean = False
        assert self.node is not None
        return self.node

    def close(self) -> None:
        node, self.node = self.node, None
        if node is not None:
            node.close()


SHARED = SharedNode()
atexit.register(SHARED.close)


class Case(SynchronousTestCase):
    """A daemon with a witness: another tunnel that has to stay as it is, whatever the first one does."""

    def setUp(self) -> None:
        self.node = self.take_node()
        self.witness = self.open(999)
        self.addCleanup(self.check_witness)

    def take_node(self) -> Node:
        return SHARED.take()

    def open(self, vmid: int = VMID) -> Tunnel:
        return Tunnel(self.node, vmid, storages="local", bridges="")

    def check_witness(self) -> None:
        """The witness can still do everything; then nothing is left."""
        self.assertEqual(self.witness.ask(cmd="version"), {"success": True, "api": 2, "age": 0})
        reply = self.witness.ask(cmd="disk", storage="local", drive={"size": MIB})
        self.assertEqual(reply["success"], True, reply)
        self.leave(self.witness)
        self.node.assert_idle()
        self.assertNotIn("Traceback", self.node.log.read_text())
        SHARED.is_clean = SHARED.is_clean or self.node is SHARED.node

    def leave(self, tunnel: Tunnel) -> None:
        self.assertEqual(tunnel.ask(cmd="quit", cleanup=1), {"success": True})
        tunnel.leave()

    def assert_nothing_of(self, vmid: int) -> None:
        wait_for("the end of the tunnel", lambda: self.tunnels() == [999])
        found = (self.node.guest(vmid), self.node.firewall(vmid), self.node.images(vmid))
        self.assertEqual(found, (None, None, []))

    def tunnels(self) -> list[int]:
        return [tunnel["vmid"] for tunnel in self.node.ask(cmd="status")["tunnels"]]
