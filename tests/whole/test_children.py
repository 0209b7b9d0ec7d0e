"""Child programs that work for requests: so many at a time, and none outlives who asked for it."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import patience_s, wait_for
from tests.whole.node import Node
from tests.whole.peer import Tunnel, call, tls_context

PER_TUNNEL, PER_TOKEN = 2, 3
SLOW = """\
#!/bin/sh
case $1 in status) sleep 1.5;; esac
exec {python} -P -m mtunnel_tx.pvesm "$@"
"""
LONG_BYTES = 64 << 30
"""A file with holes only; its digest takes minutes."""


def running(pid: int, word: str) -> int:
    """How many children of a process have this word in their command line; `setsid` comes before each."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    lines = [line for child in pids if (line := command_line(child))]
    return sum(word in line for line in lines)


def command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


class Asker:
    """One GET on a connection of its own, answered some time."""

    def __init__(self, node: Node, path: str) -> None:
        self.connection = http.client.HTTPSConnection(
            "127.0.0.1", node.port, context=tls_context(), timeout=patience_s()
        )
        self.connection.request("GET", f"/api2/json{path}", headers={"Authorization": node.authorization})
        self.status = 0
        self.data: Any = None
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        try:
            response = self.connection.getresponse()
            self.data = json.loads(response.read())
            self.status = response.status
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            self.status = -1

    def leave(self) -> None:
        """Hang up without an answer."""
        assert self.connection.sock is not None
        self.connection.sock.shutdown(2)

    def answer(self) -> int:
        self.thread.join(patience_s())
        return self.status


class ChildrenCase(SynchronousTestCase):
    extra = f"[limits]\nchildren = 8\nchildren_per_token = {PER_TOKEN}\nchildren_per_tunnel = {PER_TUNNEL}"

    def setUp(self) -> None:
        self.node = self.make_node()
        self.addCleanup(self.node.close)
        assert self.node.process is not None
        self.pid = self.node.process.pid

    def make_node(self) -> Node:
        return Node(extra=self.extra).start()

    def children(self, word: str = "sha256sum") -> int:
        return running(self.pid, word)

    def assert_children(self, count: int, word: str = "sha256sum") -> None:
        """So many there are, and no more come."""
        wait_for(f"{count} children", lambda: self.children(word) == count and self.stays(count, word))

    def stays(self, count: int, word: str) -> bool:
        """For a second; one that waits may have its turn before it is seen that its client has left."""
        until_s = time.monotonic() + 1
        while time.monotonic() < until_s:
            if self.children(word) > count:
                return False
            time.sleep(0.02)
        return True


class DigestTests(ChildrenCase):
    def open(self, vmid: int) -> Tunnel:
        tunnel = Tunnel(self.node, vmid, storages="local", bridges="")
        reply = tunnel.ask(cmd="disk", storage="local", drive={"size": LONG_BYTES}, format="raw")
        self.volume = reply["volid"]
        return tunnel

    def askers(self, vmid: int, count: int) -> list[Asker]:
        path = f"/nodes/pvetest/qemu/{vmid}/mtunneldigest?volume={self.volume}"
        return [Asker(self.node, path) for _ in range(count)]

    def end(self, tunnel: Tunnel) -> None:
        self.assertTrue(tunnel.ask(cmd="quit", cleanup=1)["success"])
        tunnel.leave()

    def test_they_end_with_their_clients_and_others_have_their_turn(self) -> None:
        tunnel = self.open(100)
        askers = self.askers(100, 12)
        self.assert_children(PER_TUNNEL)
        for asker in askers[:-1]:
            asker.leave()
        self.assert_children(1)
        askers[-1].leave()
        self.assert_children(0)
        self.end(tunnel)

    def test_one_token_has_its_share_in_all(self) -> None:
        tunnels, askers = [], []
        for vmid in (100, 101):
            tunnels.append(self.open(vmid))
            askers += self.askers(vmid, 4)
        self.assert_children(PER_TOKEN)
        for asker in askers:
            asker.leave()
        self.assert_children(0)
        for tunnel in tunnels:
            self.end(tunnel)

    def test_they_end_with_the_tunnel(self) -> None:
        tunnel = self.open(100)
        askers = self.askers(100, 4)
        self.assert_children(PER_TUNNEL)
        self.end(tunnel)
        self.assertEqual([asker.answer() for asker in askers], [409] * 4)
        self.assertIn("the tunnel of VM 100 has ended", askers[0].data["message"])
        self.assertEqual(self.children(), 0)
        for asker in askers:
            asker.leave()
        self.node.assert_idle()

    def test_they_end_with_the_daemon(self) -> None:
        tunnel, askers = self.open(100), self.askers(100, 4)
        self.assert_children(PER_TUNNEL)
        pids = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        self.node.stop()
        wait_for("their end", lambda: not any("sha256sum" in command_line(pid) for pid in pids), 5)
        del tunnel, askers


class StorageTests(ChildrenCase):
    def make_node(self) -> Node:
        node = Node(extra='[commands]\npvesm = "{root}/slow-pvesm"\n' + self.extra)
        program = node.root / "slow-pvesm"
        program.write_text(SLOW.format(python=sys.executable))
        program.chmod(0o755)
        return node.start()

    def test_many_at_once(self) -> None:
        askers = [Asker(self.node, "/nodes/localhost/storage?enabled=1") for _ in range(9)]
        most = 0
        while any(asker.status == 0 for asker in askers):
            most = max(most, self.children("slow-pvesm"))
            time.sleep(0.02)
        self.assertEqual([asker.status for asker in askers], [200] * 9)
        self.assertTrue(all("avail" in asker.data["data"][0] for asker in askers))
        self.assertEqual(most, PER_TOKEN)

    def test_they_end_with_their_clients(self) -> None:
        askers = [Asker(self.node, "/nodes/localhost/storage?enabled=1") for _ in range(9)]
        self.assert_children(PER_TOKEN, "slow-pvesm")
        for asker in askers:
            asker.leave()
        wait_for("their end", lambda: self.children("slow-pvesm") == 0, 1.2)
        self.assertEqual(call(self.node, "GET", "/version").status, 200)
