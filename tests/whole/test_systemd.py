"""Under systemd: units that it accepts, what it is told, a port that it holds, and its journal."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.systemd import Notifier
from mtunnel_tx.config import load_settings
from mtunnel_tx.daemon.service import Daemon
from tests.patience import patience_s, wait_for
from tests.processes import run_program
from tests.whole.node import Node, find_twistd
from tests.whole.peer import Tunnel, call

TREE = Path(__file__).parents[2]
TWISTD = find_twistd()
MOST_EXPOSURE = 4.0
CLEAN = (0, -signal.SIGTERM)
"""A service manager takes both for success."""


def program(name: str) -> str:
    """A program of systemd. Raises: SkipTest: says what to install."""
    found = shutil.which(name)
    if found is None:
        raise SkipTest(f"{name} is not installed (Debian: systemd)")
    return found


class NotifySocket:
    """Where a service manager listens."""

    def __init__(self, case: SynchronousTestCase) -> None:
        folder = tempfile.mkdtemp(prefix="mtunnel-notify-")
        case.addCleanup(shutil.rmtree, folder)
        self.path = Path(folder) / "notify"
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        case.addCleanup(self._sock.close)
        self._sock.bind(str(self.path))
        self._sock.settimeout(patience_s())

    def read(self) -> dict[str, str]:
        """The next message."""
        return dict(line.split("=", 1) for line in self._sock.recv(4096).decode().splitlines())

    def read_until(self, name: str) -> list[dict[str, str]]:
        """Every message up to one with this variable."""
        messages = [self.read()]
        while name not in messages[-1]:
            messages.append(self.read())
        return messages


class ManagedNode(Node):
    """A daemon that is told of a service manager."""

    more: dict[str, str] = {}

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, **self.more}


class NotifyTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.manager = NotifySocket(self)
        self.node = ManagedNode()
        self.addCleanup(self.node.close)

    def start(self, **more: str) -> None:
        self.node.more = {"NOTIFY_SOCKET": str(self.manager.path), **more}
        self.node.start()

    def test_ready_comes_with_the_port(self) -> None:
        self.node.more = {"NOTIFY_SOCKET": str(self.manager.path)}
        self.node.launch()
        self.manager.read_until("READY")
        self.assertEqual(len(self.node.ask(cmd="status")["listening"]), 1)
        self.node.stop()

    def test_status(self) -> None:
        self.start(WATCHDOG_USEC="600000")
        self.manager.read_until("READY")
        tunnel = Tunnel(self.node, 100, storages="local", bridges="")
        texts = iter(lambda: self.manager.read_until("STATUS")[-1]["STATUS"], "tunnels: 1, waiting for settle: 0")
        self.assertLess(len(list(texts)), 5)
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()
        self.node.assert_idle()

    def test_watchdog(self) -> None:
        self.start(WATCHDOG_USEC="300000")
        for _ in range(5):
            self.manager.read_until("WATCHDOG")

    def test_no_watchdog_where_none_is_asked_for(self) -> None:
        self.start(WATCHDOG_USEC="300000", WATCHDOG_PID="1")
        self.manager.read_until("READY")
        self.node.stop()
        self.assertNotIn("WATCHDOG", {name for message in self.manager.read_until("STOPPING") for name in message})

    def test_reload(self) -> None:
        self.start()
        self.manager.read_until("READY")
        assert self.node.process is not None
        self.node.process.send_signal(signal.SIGHUP)
        message = self.manager.read_until("RELOADING")[-1]
        self.assertGreater(int(message["MONOTONIC_USEC"]), 0)
        self.manager.read_until("READY")

    def test_reload_before_it_is_ready(self) -> None:
        """It reads the files, and does not say that it is ready."""
        notifier = Notifier({"NOTIFY_SOCKET": str(self.manager.path)}, os.getpid())
        daemon = Daemon(load_settings(self.node.config, {}), None, self.fail, notifier=notifier)
        daemon.reload()
        notifier.status("the only one")
        self.assertEqual(self.manager.read(), {"STATUS": "the only one"})

    def test_stopping(self) -> None:
        self.start()
        self.assertIn(self.node.stop(), CLEAN)
        self.manager.read_until("STOPPING")

    def test_children_are_told_of_no_manager(self) -> None:
        self.start()
        tunnel = Tunnel(self.node, 100, storages="local", bridges="")
        tunnel.ask(cmd="disk-import", volname="a.raw", format="raw", export_formats="raw+size", storage="local")
        assert self.node.process is not None
        pid = self.node.process.pid
        child = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        environ = Path(f"/proc/{child}/environ").read_bytes()
        self.assertIn(b"MTUNNEL_CONFIG", environ)
        self.assertNotIn(b"NOTIFY_SOCKET", environ)
        tunnel.ask(cmd="quit", cleanup=1)
        tunnel.leave()
        self.node.assert_idle()


class SocketActivationTests(SynchronousTestCase):
    def test_systemd_holds_the_port(self) -> None:
        activate = program("systemd-socket-activate")
        node = Node(listen="systemd:domain=INET:name=mtunnel")
        self.addCleanup(node.close)
        with socket.create_server(("127.0.0.1", 0)) as free:
            node.port = free.getsockname()[1]
        twistd = [TWISTD, "-n", "--pidfile=", "mtunnel", "--config", str(node.config)]
        keep = [f"--setenv={name}" for name in node.environ if name.isidentifier()]
        node.launch(activate, f"--listen=127.0.0.1:{node.port}", "--fdname=mtunnel", *keep, *twistd)
        # The first connection is what starts the daemon; it waits in the backlog.
        wait_for("the port", lambda: self.connects(node.port))
        answer = call(node, "GET", "/version")
        self.assertEqual(answer.status, 200)
        self.assertEqual(node.ask(cmd="status")["listening"], [f"127.0.0.1:{node.port}"])
        assert node.process is not None
        self.assertIn(b"twistd", Path(f"/proc/{node.process.pid}/cmdline").read_bytes())
        self.assertIn(node.stop(), CLEAN)

    def test_a_socket_that_systemd_did_not_pass(self) -> None:
        node = Node(listen="systemd:domain=INET:name=mtunnel")
        self.addCleanup(shutil.rmtree, node.root)
        node.launch()
        assert node.process is not None
        self.assertEqual(node.process.wait(patience_s()), 1)
        self.assertIn("systemd passed no socket named 'mtunnel'\n", node.log.read_text())

    def connects(self, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0


class UnitTests(SynchronousTestCase):
    """The units as they are in etc/, but for the program, which is ours here."""

    def setUp(self) -> None:
        self.analyze = program("systemd-analyze")
        self.folder = Path(tempfile.mkdtemp(prefix="mtunnel-units-"))
        self.addCleanup(shutil.rmtree, self.folder)
        text = (TREE / "etc" / "mtunnel.service").read_text()
        self.service = self.folder / "mtunnel.service"
        self.service.write_text(text.replace("/opt/mtunnel/bin/mtunnel-twistd", TWISTD))
        shutil.copy(TREE / "etc" / "mtunnel.socket", self.folder)
        text = (TREE / "etc" / "mtunnel-guests.service").read_text()
        command = str(Path(TWISTD).with_name("mtunnel"))
        (self.folder / "mtunnel-guests.service").write_text(text.replace("/opt/mtunnel/bin/mtunnel", command))

    def run_analyze(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "SYSTEMD_COLORS": "0", "LC_ALL": "C.UTF-8"}
        return run_program([self.analyze, *arguments], capture_output=True, text=True, check=False, env=environ)

    def test_systemd_finds_no_fault(self) -> None:
        names = ("mtunnel.socket", "mtunnel-guests.service")
        units = [str(self.service), *(str(self.folder / name) for name in names)]
        done = self.run_analyze("verify", "--man=no", *units)
        ours = [line for line in done.stderr.splitlines() if "mtunnel" in line]
        self.assertEqual((ours, done.returncode), ([], 0))

    def test_with_the_proxmox_drop_in(self) -> None:
        (self.folder / "mtunnel.service.d").mkdir()
        shutil.copy(TREE / "etc" / "mtunnel-proxmox.conf", self.folder / "mtunnel.service.d" / "proxmox.conf")
        self.test_systemd_finds_no_fault()

    def test_exposure(self) -> None:
        done = self.run_analyze("security", "--offline=true", "--no-pager", str(self.service))
        found = re.search(r"Overall exposure level for mtunnel.service: ([\d.]+)", done.stdout)
        assert found, done.stdout + done.stderr
        self.assertLessEqual(float(found[1]), MOST_EXPOSURE)

    def test_what_a_guest_needs_stays(self) -> None:
        text = self.service.read_text()
        for line in ("KillMode=process", "RuntimeDirectoryPreserve=yes", "OOMPolicy=continue", "TasksMax=infinity"):
            self.assertIn(f"\n{line}\n", text)
        for line in ("DeviceAllow=/dev/kvm rw", "DeviceAllow=/dev/net/tun rw", "Type=notify"):
            self.assertIn(f"\n{line}\n", text)
        for never in ("PrivateDevices=yes", "PrivateNetwork=yes", "MemoryDenyWriteExecute=yes"):
            self.assertNotIn(never, text)
