"""The daemon as a process: it starts, serves, and ends."""

from __future__ import annotations

import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import patience_s
from tests.whole.node import Node, find_twistd
from tests.whole.peer import Tunnel, call


class DaemonTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node().start()
        self.addCleanup(self.node.close)

    def test_version_over_the_whole_path(self) -> None:
        tunnel = Tunnel(self.node, 100, storages="local", bridges="")
        self.assertEqual(tunnel.ask(cmd="version"), {"success": True, "api": 2, "age": 0})
        self.assertEqual(self.node.ask(cmd="status")["tunnels"][0]["vmid"], 100)
        self.assertEqual(tunnel.ask(cmd="quit", cleanup=1), {"success": True})
        tunnel.leave()

    def test_http(self) -> None:
        answer = call(self.node, "GET", "/version")
        self.assertEqual((answer.status, answer.json["data"]["release"]), (200, "9.2"))


class LogTests(SynchronousTestCase):
    def run_one(self, *options: str) -> str:
        """What the daemon logs of a tunnel with a disk, from its start to its end, without dates."""
        node = Node()
        self.addCleanup(node.close)
        node.start(find_twistd(), "-n", "--pidfile=", "mtunnel", "--config", str(node.config), *options)
        tunnel = Tunnel(node, 100, storages="local", bridges="")
        self.assertTrue(tunnel.ask(cmd="disk", storage="local", drive={"size": 1 << 20}, format="raw")["success"])
        self.assertTrue(tunnel.ask(cmd="quit", cleanup=1)["success"])
        tunnel.leave()
        node.stop()
        return re.sub(r"^\S+ ", "", node.log.read_text(), flags=re.MULTILINE)

    def test_an_operator_reads_what_happened_and_nothing_else(self) -> None:
        text = self.run_one()
        for noise in (" object at 0x", "child ", "#debug]", "starting on", "Closed)", "factory"):
            self.assertNotIn(noise, text)
        self.assertIn("listening on 127.0.0.1:", text)
        self.assertIn("tunnel of VM 100 is over: ", text)

    def test_debug_shows_children_and_requests(self) -> None:
        text = self.run_one("--debug")
        self.assertIn("child ", text)
        self.assertIn("<Request POST /api2/json/nodes/pvetest/qemu/100/mtunnel> answered with 200", text)


class StartTests(SynchronousTestCase):
    def test_folder_that_cannot_be_made(self) -> None:
        """The reason, not a traceback."""
        node = self.node()
        with node.config.open("a") as config:
            config.write('lock_dir = "/proc/mtunnel/lock"\n')
        self.fails(node, "/proc/mtunnel: No such file or directory")

    def test_ticket_key_that_is_none(self) -> None:
        """With a short one, tickets could be guessed."""
        node = self.node()
        key = node.state / "ticket.key"
        for text in ("", "abcd", "no key"):
            key.write_text(text)
            self.fails(node, f"'{key}' holds no key; remove it, and the next start makes one")

    def node(self) -> Node:
        node = Node()
        self.addCleanup(node.close)
        return node

    def fails(self, node: Node, reason: str) -> None:
        node.log.unlink(missing_ok=True)
        node.launch()
        process: Any = node.process
        self.assertEqual(process.wait(patience_s()), 1)
        said = node.log.read_text()
        self.assertIn(f"cannot start: {reason}", said)
        self.assertNotIn("Traceback", said)
        node.process = None
