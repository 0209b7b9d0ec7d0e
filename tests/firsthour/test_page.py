"""Every command of docs/first-hour.md, but for those that install: two hosts below a folder of their own."""

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mtunnel_tx.backends.host import PROGRAM
from mtunnel_tx.backends.process import read_record
from tests.firsthour.page import steps, type_in
from tests.patience import wait_for


class FirstHour(SynchronousTestCase):
    def setUp(self):
        if shutil.which(PROGRAM) is None:
            raise SkipTest(f"{PROGRAM} is not installed: THE FIRST HOUR IS NOT TESTED")
        self.folder = Path(tempfile.mkdtemp(prefix="mth-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.addCleanup(self.end_all)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]

    def end_all(self):
        """Neither the daemon nor a QEMU stays."""
        pids = [read_record(file).pid for file in self.folder.glob("*/run/[1-9]*.pid")]
        pids += [int(file.read_text()) for file in self.folder.glob("twistd.pid")]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        for pid in pids:
            wait_for("its end", lambda pid=pid: not Path(f"/proc/{pid}/exe").exists())

    def environ(self, host):
        """A host is a configuration here; its state is beside it."""
        (self.folder / host).mkdir(exist_ok=True)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "MTUNNEL_CONFIG": str(self.folder / host / "mtunnel.toml")}

    def test_each_command(self):
        names = {
            "target.example": "127.0.0.1",
            "--yes --token": f"--yes --port {self.port} --token",
            "~/endpoint": f"{self.folder}/endpoint",
            "/run/mtunnel/twistd.pid": f"{self.folder}/twistd.pid",
            "/var/log/mtunnel.log": f"{self.folder}/log",
        }
        said = []
        for step in steps():
            if step.host == "both":
                continue
            if step.command == "mtunnel status":
                wait_for("the daemon", (self.folder / "target" / "run" / "control.sock").exists)
            said.append((step.command, type_in(step, self.environ(step.host), names)))
        lists = [out for command, out in said if command == "mtunnel vm list"]
        self.assertIn("100   running  first", lists[0])
        self.assertIn("100   running  first", lists[1])
        self.assertIn("moved to 127.0.0.1 as VM 100", lists[2])
        self.assertNotIn("first", lists[3])
        self.assertIn("status: running", dict(said)["mtunnel vm status first"])

    def test_hosts(self):
        """Nothing is left out because a title changed."""
        self.assertEqual({step.host for step in steps()}, {"both", "target", "source"})
        self.assertGreater(len([step for step in steps() if step.host != "both"]), 10)
