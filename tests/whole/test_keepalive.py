"""Peers that are gone without a word: keep-alive timers, and acknowledgements that stop."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import patience_s, wait_for
from tests.processes import run_program
from tests.whole.hostile import (
    secure,
    start_import,
)
from tests.whole.limited import Case
from tests.whole.node import Node, find_twistd
from tests.whole.peer import Tunnel
from tests.whole.resuming import ResumableTunnel


class KeepaliveTests(Case):
    def test_every_connection_has_it(self) -> None:
        program = shutil.which("ss")
        if program is None:
            raise SkipTest("ss is not installed (Debian: iproute2)")
        tunnel = self.open()
        idle = secure(self.node)
        command = [program, "-tnoH", "sport", "=", f":{self.node.port}"]

        def kept_alive() -> bool:
            """Where bytes are on their way there is another timer for a moment."""
            lines = run_program(command, capture_output=True, text=True, check=False).stdout.splitlines()
            timers = [re.search(r"timer:\(keepalive,(?:30|[12]?\d)[a-z0-9.]*,0\)", x) for x in lines if "ESTAB" in x]
            return len(timers) == 2 and all(timers)

        wait_for("two timers", kept_alive)
        idle.close()
        self.leave(tunnel)


class FarNode(Node):
    """A daemon and its peers in two network namespaces, a cable in between; the host's own network stays as it is."""

    OURS, THEIRS = "192.0.2.1", "192.0.2.2"

    def __init__(self, case: SynchronousTestCase, extra: str) -> None:
        self.spaces = [f"mtunnel-{os.getpid()}-{os.urandom(2).hex()}{side}" for side in "ab"]
        for space in self.spaces:
            self.ip("netns", "add", space)
            case.addCleanup(self.ip, "netns", "delete", space)
        ours, theirs = self.spaces
        self.ip("-netns", ours, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", theirs)
        for space, address in zip(self.spaces, (self.OURS, self.THEIRS), strict=True):
            self.ip("-netns", space, "address", "add", f"{address}/30", "dev", "cable")
            self.ip("-netns", space, "link", "set", "cable", "up")
        super().__init__(extra=extra, listen=f"tcp:0:interface={self.OURS}")
        case.addCleanup(self.close)

    def launch(self, *argv: str) -> None:
        argv = argv or (find_twistd(), "-n", "--pidfile=", "mtunnel", "--config", str(self.config))
        super().launch("ip", "netns", "exec", self.spaces[0], *argv)

    @staticmethod
    def ip(*arguments: str) -> None:
        run_program(["ip", *arguments], capture_output=True)

    def connect(self) -> socket.socket:
        sock = self._in_space(socket.socket)
        sock.settimeout(patience_s())
        sock.connect((self.OURS, self.port))
        return sock

    def _in_space(self, call: Callable[[], socket.socket]) -> socket.socket:
        """A thread moves to the other side, and what it makes stays there."""
        made: list[socket.socket] = []

        def work() -> None:
            with Path(f"/run/netns/{self.spaces[1]}").open("rb") as space:
                if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), 0) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(call())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return made[0]

    def cut(self) -> None:
        """From now on nothing of what they send arrives, not even an acknowledgement."""
        self.ip("-netns", self.spaces[1], "route", "add", "blackhole", f"{self.OURS}/32")

    def mend(self) -> None:
        """It arrives again."""
        self.ip("-netns", self.spaces[1], "route", "delete", "blackhole", f"{self.OURS}/32")


class DeadPeerTests(SynchronousTestCase):
    def setUp(self) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise SkipTest("needs root and ip (Debian: iproute2): it makes a network namespace")
        self.node = FarNode(self, "[limits]\ndead_peer_s = 2")
        self.node.start()

    def test_a_peer_that_acknowledges_nothing(self) -> None:
        tunnel = Tunnel(self.node, 100, storages="local", bridges="")
        upid = tunnel.opened["upid"]
        start_import(tunnel)
        tunnel.ask(cmd="query-disk-import")
        # The reply to this one comes in five seconds, when nobody hears it any more.
        tunnel.send('{"cmd":"query-disk-import"}')
        began = time.monotonic()
        self.node.cut()
        wait_for("the end", lambda: "TASK ERROR: mtunnel exited unexpectedly" in self.node.task_log(upid))
        self.assertLess(time.monotonic() - began, patience_s(15))
        self.node.assert_idle()
        self.assertEqual((self.node.guest(100), self.node.images(100)), (None, []))
        tunnel.commands.drop()

    def test_a_loss_in_silence(self) -> None:
        """Nothing is on its way that would not be acknowledged, and no ping is due: keepalives tell."""
        tunnel = ResumableTunnel(self.node, 100)
        tunnel.ask(cmd="version")
        began = time.monotonic()
        self.node.cut()
        wait_for("a parked flow", tunnel.parked)
        self.assertLess(time.monotonic() - began, patience_s(10))
        self.node.mend()
        tunnel.lose()
        wait_for("another connection", tunnel.comes_back)
        tunnel.leave()
        self.node.assert_idle()

    def test_a_peer_that_only_has_nothing_to_say(self) -> None:
        tunnel = Tunnel(self.node, 100, storages="local", bridges="")
        time.sleep(4)
        self.assertEqual(tunnel.ask(cmd="version")["success"], True)
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()
        self.node.assert_idle()
