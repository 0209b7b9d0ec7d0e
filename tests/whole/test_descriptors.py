"""A daemon that has hardly a descriptor left for a moment: a stream that cannot be started ends, and its tunnel too."""

from __future__ import annotations

import contextlib
import resource
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.config import load_settings
from mtunnel_tx.daemon.descriptors import count_needed
from tests.patience import patience_s, wait_for
from tests.whole.limited import Case
from tests.whole.node import Node, find_twistd
from tests.whole.peer import Websocket, call

VMID = 100
MOST = 10
"""More than one websocket needs."""
MOMENT_S = 0.5


@contextlib.contextmanager
def descriptors_left(node: Node, count: int) -> Iterator[None]:
    """The daemon gets no more than so many new ones for a moment."""
    assert node.process is not None
    pid = node.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    free = sorted({*range(len(taken) + count + 1)} - taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[count], before[1]))
    moment = threading.Timer(MOMENT_S, resource.prlimit, (pid, resource.RLIMIT_NOFILE, before))
    moment.start()
    try:
        yield
    finally:
        moment.join()


class StartTests(SynchronousTestCase):
    def argv(self, node: Node, soft: int, hard: int) -> tuple[str, ...]:
        argv = (find_twistd(), "-n", "--pidfile=", "mtunnel", "--config", str(node.config))
        return ("prlimit", f"--nofile={soft}:{hard}", *argv)

    def node(self, extra: str = "") -> Node:
        node = Node(extra=extra)
        self.addCleanup(node.close)
        return node

    def test_the_soft_limit_is_raised(self) -> None:
        node = self.node()
        node.start(*self.argv(node, 128, 8000))
        assert node.process is not None
        self.assertEqual(resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE), (8000, 8000))

    def test_no_start_below_what_the_limits_need(self) -> None:
        node = self.node()
        node.launch(*self.argv(node, 128, 1024))
        assert node.process is not None
        self.assertEqual(node.process.wait(patience_s()), 1)
        needed = count_needed(load_settings(node.config, {}))
        limits = "connections = 1024, tunnels = 64 and streams_per_tunnel = 64"
        text = f"limits: {limits} need {needed} open files, and the hard limit is 1024"
        self.assertIn(text, node.log.read_text())
        node.process = None

    def test_smaller_limits_need_less(self) -> None:
        node = self.node("[limits]\nconnections = 100\ntunnels = 4")
        node.start(*self.argv(node, 128, 1024))

    def test_parked_flows_of_a_daemon_without_workers_are_counted(self) -> None:
        """They keep their UNIX sockets, and need no connection."""
        extra = "[limits]\nconnections = 10\ntunnels = 2\nstreams_per_tunnel = "
        few, many = (count_needed(load_settings(self.node(f"{extra}{count}").config, {})) for count in (1, 100))
        self.assertGreaterEqual(many - few, 2 * 99)

    def test_parked_flows_are_counted(self) -> None:
        """They lie in the holder, and need no connection."""
        extra = 'workers = 1\nuser = "nobody"\n[limits]\nconnections = 10\nchildren = 1\ntunnels = '
        few, many = (count_needed(load_settings(self.node(f"{extra}{count}").config, {})) for count in (1, 10))
        self.assertGreaterEqual(many - few, 9 * 64 * 3)


class StreamTests(Case):
    limits = {"connect_s": 2}

    def test_with_any_number_left(self) -> None:
        for count in range(MOST):
            self.talk(VMID + count, count)
            wait_for(f"the end with {count} left", lambda: not self.node.ask(cmd="status")["tunnels"])
        self.node.assert_idle()

    def talk(self, vmid: int, count: int) -> None:
        """As far as that goes."""
        opened = call(self.node, "POST", f"/nodes/localhost/qemu/{vmid}/mtunnel", {"storages": "", "bridges": ""})
        given = opened.json["data"]
        with descriptors_left(self.node, count), contextlib.suppress(OSError, ssl.SSLError, AssertionError):
            stream = Websocket(self.node, vmid, given["socket"], given["ticket"])
            if stream.answer == 101:
                stream.send(b'{"cmd":"version"}\n')
                stream.read_line()
            stream.drop()


class WorkerTests(StreamTests):
    extra = 'workers = 1\nuser = "nobody"'
