"""The host's clock is set while the daemon runs: forwards, backwards, by minutes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import patience_s, wait_for
from tests.whole.peer import Tunnel, call
from tests.whole.test_systemd import ManagedNode, NotifySocket

TREE = Path(__file__).parents[2]
STEP_S = 3600.0
# Python reads this at its start, before anything that keeps `time.time`.
SITECUSTOMIZE = """\
import os, time
real = time.time
def stepped():
    with open(os.environ["STEP_FILE"]) as file:
        return real() + float(file.read() or 0)
time.time = stepped
"""


class ClockTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.manager = NotifySocket(self)
        self.node = ManagedNode(extra="[limits]\nconnect_s = 30")
        self.addCleanup(self.node.close)
        self.step_file = self.node.root / "step"
        self.set_clock(0)
        folder = self.node.root / "stepping"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
        self.node.more = {
            "STEP_FILE": str(self.step_file),
            "PYTHONPATH": f"{folder}{os.pathsep}{TREE}",
            "NOTIFY_SOCKET": str(self.manager.path),
            "WATCHDOG_USEC": "1500000",
        }
        self.node.start()

    def set_clock(self, step_s: float) -> None:
        """Move the daemon's clock, away from that of the host."""
        new = self.step_file.with_suffix(".new")
        new.write_text(str(step_s))
        new.replace(self.step_file)

    def read_fresh(self) -> None:
        """What the watchdog hears after everything that was under way."""
        until_s = time.monotonic() + 1.0
        while time.monotonic() < until_s:
            self.manager.read_until("WATCHDOG")

    def test_set_back_the_watchdog_is_told_on(self) -> None:
        self.set_clock(-STEP_S)
        began_s = time.monotonic()
        for _ in range(4):
            self.read_fresh()
        self.assertLess(time.monotonic() - began_s, patience_s(20))

    def test_set_forward_a_waiting_tunnel_goes_on(self) -> None:
        opened = call(self.node, "POST", "/nodes/pvetest/qemu/100/mtunnel", {"storages": "", "bridges": ""})
        self.assertEqual(opened.status, 200)
        self.set_clock(STEP_S)
        self.read_fresh()
        self.assertEqual([tunnel["vmid"] for tunnel in self.node.ask(cmd="status")["tunnels"]], [100])
        wait_for("the limit of 30 s", lambda: not self.node.ask(cmd="status")["tunnels"], 60)

    def test_a_tunnel_works_on_and_tickets_follow_the_date(self) -> None:
        tunnel = Tunnel(self.node, 100, storages="local", bridges="")
        self.set_clock(STEP_S)
        disk_import = {"volname": "a.raw", "format": "raw", "export_formats": "raw+size", "storage": "local"}
        reply = tunnel.ask(cmd="disk-import", **disk_import)
        self.assertTrue(reply["success"], reply)
        ticket = tunnel.ask(cmd="ticket", path=reply["socket"])["ticket"]
        self.set_clock(STEP_S + 60)
        query = f"socket={reply['socket']}&ticket={ticket}".replace("+", "%2B")
        late = call(self.node, "GET", f"/nodes/pvetest/qemu/100/mtunnelwebsocket?{query}")
        self.assertEqual(late.status, 401)
        self.assertTrue(tunnel.ask(cmd="quit", cleanup=1)["success"])
        tunnel.leave()
        self.node.assert_idle()
