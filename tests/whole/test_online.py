"""A running VM goes from one node to another, through a real daemon, while it counts."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from mtunnel_tx.backends.host import PROGRAM
from mtunnel_tx.backends.process import read_record
from tests.guest.ticker import read_beats, read_ring, ticker
from tests.patience import patience_s, wait_for
from tests.processes import started_process
from tests.whole.node import Node

RING = 64
DISK_BYTES = 16 << 20
GUEST = """\
boot: order=scsi0
memory: 48
name: ticker
scsi0: local:100/vm-100-disk-0.raw,discard=on,size=16M
scsihw: virtio-scsi-pci
serial0: socket
vga: serial0
"""


class Listener(threading.Thread):
    """Reads a VM's first serial port from the moment it is there."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.text = b""
        self.stopped = False
        self.start()

    def run(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        while not self.stopped:
            try:
                sock.connect(str(self.path))
                break
            except OSError:
                threading.Event().wait(0.005)
        with sock, contextlib.suppress(OSError):
            while data := sock.recv(4096):
                self.text += data

    @property
    def beats(self) -> list[tuple[int, str]]:
        return list(read_beats(self.text))


class OnlineCase(SynchronousTestCase):
    def setUp(self) -> None:
        if shutil.which(PROGRAM) is None:
            raise SkipTest(f"{PROGRAM} is not installed: NO RUNNING VM IS MOVED IN THESE TESTS")
        self.here, self.there = Node("here"), self.make_target()
        for node in (self.here, self.there):
            self.addCleanup(node.close)
            self.addCleanup(self.kill_machines, node)

    def make_target(self) -> Node:
        return Node("there").start()

    def kill_machines(self, node: Node) -> None:
        for file in node.runtime.glob("*.pid"):
            if node.run("mtunnel_tx.cli", "vm", "stop", file.stem, check=False).returncode:
                os.kill(read_record(file).pid, signal.SIGKILL)  # a test that failed left it locked

    def boot(self, *, burst: int = 2, more: str = "", spare: bool = True, guest: str = GUEST) -> Listener:
        folder = self.here.storage / "images" / "100"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vm-100-disk-0.raw").write_bytes(ticker(8, burst, ring=RING))
        os.truncate(folder / "vm-100-disk-0.raw", DISK_BYTES)
        if spare:
            (folder / "vm-100-disk-1.raw").write_bytes(bytes(1 << 20))
        self.here.guest_file(100).write_text(guest + more)
        self.here.run("mtunnel_tx.cli", "vm", "start", "100")
        listener = Listener(self.here.runtime / "100.serial0")
        wait_for("the guest's first beats", lambda: len(listener.beats) >= 3)
        return listener

    def migrate(self, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        arguments = ("migrate", "100", self.there.endpoint, "--online", "--target-vmid", "200")
        return self.here.run("mtunnel_tx.cli", *arguments, "--target-storage", "local", *more, check=check)

    def start_slow_migration(self) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "mtunnel_tx.cli", "migrate", "100", self.there.endpoint, "--online"]
        argv += ["--target-vmid", "200", "--target-storage", "local", "--bwlimit", "1024"]
        return self.start(argv)

    def start(self, argv: list[str]) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return started_process(self.addCleanup, argv, env=self.here.environ, **pipes)

    def status(self, node: Node, vmid: int) -> str:
        return node.run("mtunnel_tx.cli", "vm", "status", str(vmid)).stdout


class OnlineTests(OnlineCase):
    def test_not_a_beat_is_lost(self) -> None:
        before, after = self.boot(), Listener(self.there.runtime / "200.serial0")
        self.addCleanup(setattr, after, "stopped", True)
        done = self.migrate()
        for line in (r"scsi0: 16\.\d MiB of 16\.\d MiB in ", r"memory: .* in ", r"downtime \d+ ms"):
            self.assertRegex(done.stdout, line)
        wait_for("beats at the target", lambda: len(after.beats) >= 5)
        self.assertIn("running", self.status(self.there, 200))
        self.assertIn("stopped", self.status(self.here, 100))
        beats = read_beats(before.text + after.text)  # a line may begin here and end there
        # The first line may have come before anybody listened.
        numbers = [number for number, _ in beats]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        self.assertEqual({flag for _, flag in beats}, {"."})
        self.assert_whole_disk(numbers[-1])
        self.assert_tidy()

    def test_a_disk_with_a_thread_of_its_own(self) -> None:
        """As Proxmox's own dialog makes disks; and its image becomes one of another format meanwhile."""
        guest = GUEST.replace("discard=on", "discard=on,iothread=1").replace("scsi-pci", "scsi-single")
        self.boot(guest=guest, spare=False)
        after = Listener(self.there.runtime / "200.serial0")
        self.addCleanup(setattr, after, "stopped", True)
        self.migrate("--target-format", "qcow2")
        wait_for("beats at the target", lambda: len(after.beats) >= 3)
        self.assertIn("scsi0: local:200/vm-200-disk-0.qcow2,", self.there.guest(200) or "")

    def test_in_the_order_of_proxmox(self) -> None:
        """With the VM's own limits, and a trim at the end."""
        more = "agent: enabled=1,fstrim_cloned_disks=1\nmigrate_speed: 8\nmigrate_downtime: 0.5\n"
        self.boot(more=f"{more}unused0: local:100/vm-100-disk-1.raw\n")
        began = time.monotonic()
        self.migrate()
        self.assertGreater(time.monotonic() - began, 1.5)
        log = next((self.there.state / "tasks").rglob("UPID*")).read_text()
        commands = re.findall(r"received command '([a-z-]+)'", log)
        told = [name for name in commands if name not in ("ticket", "query-disk-import")]
        order = "version bwlimit bwlimit disk-import disk config start nbdstop resume fstrim unlock quit"
        self.assertEqual(told, order.split())

    def assert_whole_disk(self, last: int) -> None:
        disk = (self.there.storage / "images" / "200" / "vm-200-disk-0.raw").read_bytes()
        ring = read_ring(disk, ring=RING)
        self.assertGreaterEqual(ring[-1], last)
        self.assertEqual(ring, list(range(max(1, ring[-1] - RING + 1), ring[-1] + 1)))

    def assert_tidy(self) -> None:
        self.assertNotIn("lock", self.there.guest(200) or "")
        self.assertNotIn("lock", self.here.guest(100) or "")
        wait_for("the end of the tunnel", lambda: not self.there.ask(cmd="status")["tunnels"])
        self.assertEqual(self.there.left_over()["journals"], [])
        self.assertEqual(list(self.here.runtime.glob("100.*")), [])

    def test_a_target_that_dies_leaves_the_vm_running_here(self) -> None:
        before = self.boot(burst=64)
        argv = [sys.executable, "-m", "mtunnel_tx.cli", "migrate", "100", self.there.endpoint, "--online"]
        argv += ["--target-vmid", "200", "--target-storage", "local", "--bwlimit", "2048"]
        running = self.start(argv)
        wait_for("the VM's start there", lambda: (self.there.runtime / "200.pid").exists())
        record = wait_for("its pid", lambda: read_record(self.there.runtime / "200.pid"))
        wait_for("its process", lambda: record.pid or read_record(self.there.runtime / "200.pid").pid)
        os.kill(read_record(self.there.runtime / "200.pid").pid, signal.SIGKILL)
        out, err = running.communicate(timeout=patience_s(90))
        self.assertEqual(running.returncode, 1, (out, err))
        self.assertIn("runs on here", out, (out, err))
        count = len(before.beats)
        wait_for("beats here", lambda: len(before.beats) > count + 3)
        self.assertEqual({flag for _, flag in before.beats}, {"."})
        self.assertIn("running", self.status(self.here, 100))
        self.assertIsNone(self.there.guest(200))
        self.assertEqual(self.there.images(200), [])


class UnheardTests(OnlineCase):
    def make_target(self) -> Node:
        """A source that nobody waits for may end before its last words are on their way."""
        return Node("there", extra="[limits]\npark_s = 30").start()

    def test_interrupted_twice_while_the_target_says_nothing(self) -> None:
        """Nobody waits for it; the VM runs on here, and the target cleans up once it can."""
        before = self.boot()
        migration = self.start_slow_migration()
        wait_for("the VM there", lambda: (self.there.runtime / "200.pid").exists())
        assert self.there.process is not None
        self.there.process.send_signal(signal.SIGSTOP)
        migration.send_signal(signal.SIGINT)
        self.assertIn("interrupted", str(migration.stderr and migration.stderr.readline()))
        migration.send_signal(signal.SIGINT)
        out, _ = migration.communicate(timeout=patience_s())
        self.assertEqual(migration.returncode, 130, out)
        self.assertIn("cleanup at the target was not waited for: ", out)
        beats = len(before.beats)
        wait_for("beats here", lambda: len(before.beats) > beats)
        self.assertIn("running", self.status(self.here, 100))
        self.assertNotIn("lock", self.here.guest(100) or "lock")
        self.there.process.send_signal(signal.SIGCONT)
        wait_for("the end of the tunnel", lambda: not self.there.ask(cmd="status")["tunnels"])
        self.assertEqual((self.there.guest(200), self.there.images(200)), (None, []))
