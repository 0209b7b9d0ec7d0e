"""A move whose connections are cut again and again: real daemon, real TLS, real QEMU, through a proxy that cuts."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.guest.ticker import read_beats
from tests.matrix.proxy import Proxy
from tests.patience import patience_s, wait_for
from tests.processes import started_process
from tests.proxmox.disks import make_guest
from tests.proxmox.source import Released, Source
from tests.whole.node import Node
from tests.whole.test_keepalive import FarNode
from tests.whole.test_online import Listener, OnlineCase

DISK_BYTES = 256 << 20
STOPPED = f"name: still\nmemory: 64\nscsi0: local:100/vm-100-disk-0.raw,size={DISK_BYTES >> 20}M\n"


def make_disk(node: Node, size_bytes: int) -> bytes:
    """A VM that is off. Returns: what its disk has."""
    folder = node.storage / "images" / "100"
    folder.mkdir(parents=True)
    chance = random.Random(5)
    data = b"".join(chance.randbytes(1 << 20) for _ in range(size_bytes >> 20))
    (folder / "vm-100-disk-0.raw").write_bytes(data)
    node.guest_file(100).write_text(STOPPED)
    return data


class Cutter(threading.Thread):
    """Cuts every connection through a proxy, at random moments, until it is told to stop."""

    def __init__(self, proxy: Proxy, *, most: int, every_s: tuple[float, float]) -> None:
        super().__init__(daemon=True)
        self.cuts = 0
        self._proxy, self._most, self._every_s = proxy, most, every_s
        self._over = threading.Event()
        self._chance = random.Random(11)
        self.start()

    def run(self) -> None:
        while self.cuts < self._most and not self._over.wait(self._chance.uniform(*self._every_s)):
            live = [connection for connection in self._proxy.connections if connection.open]
            self.cuts += bool(live)
            for connection in live:
                connection.cut()

    def stop(self) -> None:
        self._over.set()
        self.join(patience_s())


class Through:
    """A node's endpoint behind a proxy."""

    def __init__(self, case: SynchronousTestCase, node: Node) -> None:
        self.node = node
        self.proxy = Proxy(node.port, lambda: "any", lambda: False)
        case.addCleanup(self.proxy.close)
        self.endpoint = node.endpoint.replace(f"port={node.port}", f"port={self.proxy.own_port}")

    def tunnels(self) -> list[dict[str, Any]]:
        return list(self.node.ask(cmd="status")["tunnels"])

    def cut(self, *, most: int, every_s: tuple[float, float]) -> Cutter:
        wait_for("two streams", lambda: any(tunnel["streams"] >= 2 for tunnel in self.tunnels()))
        return Cutter(self.proxy, most=most, every_s=every_s)


class StoppedVmCase(SynchronousTestCase):
    extra = "[limits]\npark_s = 60"

    def setUp(self) -> None:
        self.here, self.there = Node("here"), Node("there", extra=self.extra).start()
        for node in (self.here, self.there):
            self.addCleanup(node.close)
        self.through = Through(self, self.there)

    def make_disk(self, size_bytes: int) -> bytes:
        return make_disk(self.here, size_bytes)

    def start(self, *more: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "mtunnel_tx.cli", "migrate", "100", self.through.endpoint]
        argv += ["--target-vmid", "200", "--target-storage", "local", *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return started_process(self.addCleanup, argv, env=self.here.environ, **pipes)

    def wait_for_end(self) -> None:
        wait_for("the end of the tunnel", lambda: not self.there.ask(cmd="status")["tunnels"])


class CutTests(StoppedVmCase):
    disk_bytes, least_cuts = DISK_BYTES, 10

    def test_a_disk_arrives_whole(self) -> None:
        data = self.make_disk(self.disk_bytes)
        migration = self.start("--bwlimit", str(40 << 10))
        cutter = self.through.cut(most=16, every_s=(0.2, 0.9))
        out, err = migration.communicate(timeout=patience_s(120))
        cutter.stop()
        self.assertEqual(migration.returncode, 0, (out, err, self.there.log.read_text()[-4000:]))
        self.assertGreaterEqual(cutter.cuts, self.least_cuts)
        self.assertTrue((self.there.storage / "images" / "200" / "vm-200-disk-0.raw").read_bytes() == data)
        self.assertRegex(out, r"connection lost, waiting \(0:00 of 1:00\)\n(?s:.*)resumed after 0:0\d")
        self.assertRegex(out, r"connection lost \d+ times, 0:\d\d in all")
        self.wait_for_end()
        self.assertEqual(self.there.left_over()["journals"], [])
        log = next((self.there.state / "tasks").rglob("UPID*")).read_text()
        self.assertEqual(len(re.findall("received command 'disk-import'", log)), 1)
        self.assertIn("disk-import: connection lost (", log)
        self.assertIn("disk-import: resumed after ", log)


class WorkerTests(CutTests):
    """Each connection lands in whatever process has the fewest, and the flow follows it."""

    disk_bytes, least_cuts = DISK_BYTES // 4, 3
    extra = 'workers = 2\nuser = "nobody"\n[limits]\npark_s = 60'


class StatusTests(StoppedVmCase):
    def test_status_shows_what_is_parked(self) -> None:
        self.make_disk(8 << 20)
        self.start("--bwlimit", "1024")
        cutter = self.through.cut(most=0, every_s=(1, 1))
        self.through.proxy.cut_all()
        wait_for("parked flows", lambda: [len(tunnel["parked"]) for tunnel in self.through.tunnels()] == [2])
        shown = self.there.run("mtunnel_tx.cli", "status").stdout
        self.assertRegex(shown, r"VM 200: disk-import has lost its connection, waiting \(0:\d\d of 1:00\)")
        cutter.stop()


class BlackHoleTests(SynchronousTestCase):
    """Nothing arrives any more, and nothing says so; limits so short that they pass."""

    extra = "[limits]\ndead_peer_s = 2\nping_s = 2"

    def test_both_ends_notice_and_go_on(self) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise SkipTest("needs root and ip (Debian: iproute2): it makes a network namespace")
        there = FarNode(self, self.extra).start()
        here = Node("here", extra=self.extra)
        self.addCleanup(here.close)
        data = make_disk(here, 24 << 20)
        endpoint = there.endpoint.replace("host=127.0.0.1", f"host={there.OURS}")
        argv = ["ip", "netns", "exec", there.spaces[1], sys.executable, "-m", "mtunnel_tx.cli", "migrate", "100"]
        argv += [endpoint, "--target-vmid", "200", "--target-storage", "local", "--bwlimit", "2048"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        migration = started_process(self.addCleanup, argv, env=here.environ, **pipes)

        def parked() -> list[int]:
            return [len(tunnel["parked"]) for tunnel in there.ask(cmd="status")["tunnels"]]

        wait_for("two streams", lambda: any(one["streams"] >= 2 for one in there.ask(cmd="status")["tunnels"]))
        there.cut()
        wait_for("parked flows", lambda: parked() == [2])
        there.mend()
        out, err = migration.communicate(timeout=patience_s(60))
        self.assertEqual(migration.returncode, 0, (out, err))
        self.assertIn("connection lost, waiting (0:00 of 10:00)", out)
        self.assertTrue((there.storage / "images" / "200" / "vm-200-disk-0.raw").read_bytes() == data)


class LostForGoodTests(StoppedVmCase):
    """Limits so short that they pass."""

    extra = "[limits]\npark_s = 2"

    def test_a_network_that_does_not_come_back(self) -> None:
        self.make_disk(8 << 20)
        migration = self.start("--bwlimit", "1024")
        self.through.cut(most=0, every_s=(1, 1)).stop()
        self.through.proxy.cut_all()
        out, err = migration.communicate(timeout=patience_s())
        self.assertEqual(migration.returncode, 1, (out, err))
        self.wait_for_end()
        self.assertEqual((self.there.guest(200), self.there.images(200)), (None, []))
        self.assertNotIn("lock", self.here.guest(100) or "lock")

    def test_a_source_that_is_killed(self) -> None:
        self.make_disk(8 << 20)
        migration = self.start("--bwlimit", "1024")
        self.through.cut(most=0, every_s=(1, 1)).stop()
        migration.send_signal(signal.SIGKILL)
        self.wait_for_end()
        self.assertEqual((self.there.guest(200), self.there.images(200)), (None, []))

    def test_a_source_that_is_interrupted_says_so(self) -> None:
        """It does not take the time that a parked flow has."""
        self.make_disk(8 << 20)
        migration = self.start("--bwlimit", "1024")
        self.through.cut(most=0, every_s=(1, 1)).stop()
        migration.send_signal(signal.SIGINT)
        out, err = migration.communicate(timeout=patience_s())
        self.assertIn("the target has removed what was sent", out, err)
        self.wait_for_end()
        log = next((self.there.state / "tasks").rglob("UPID*")).read_text()
        self.assertNotIn("connection lost", log)


@dataclass
class Proxied:
    """A node as a source sees it that only reaches its proxy."""

    node: Node
    port: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.node, name)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), patience_s())


class ProxmoxSourceTests(SynchronousTestCase):
    def test_the_helper_answers_while_the_network_is_lost(self) -> None:
        """A Proxmox source gives a question after an import 10 s."""
        home, there = Node("pvehome"), Node("pvetest").start()
        for node in (home, there):
            self.addCleanup(node.close)
        proxy = Proxy(there.port, lambda: "any", lambda: False)
        self.addCleanup(proxy.close)
        disk = make_guest(home)[0]
        target: Any = Proxied(there, proxy.own_port)
        source = Source(home, target, Released())
        self.addCleanup(source.close)
        source.look_around()
        source.open()
        content = disk.file.read_bytes()
        with socket.socket(socket.AF_UNIX) as sink:
            sink.connect(str(source.start_import(disk)))
            sink.sendall(struct.pack("<Q", len(content)) + content[: len(content) // 2])
            wait_for("the stream", lambda: there.ask(cmd="status")["tunnels"][0]["bytes_in"] > len(content) // 4)
            proxy.cut_all()
            began_s = time.monotonic()
            self.assertEqual(source.ask("query-disk-import")["status"], "pending")
            self.assertGreater(time.monotonic() - began_s, 4)
            proxy.down = False
            sink.sendall(content[len(content) // 2 :])
            sink.shutdown(socket.SHUT_WR)
            volid = source.complete()
        self.assertEqual((there.storage / "images" / volid.partition(":")[2]).read_bytes(), content)
        source.give_up()
        self.assertIn("connection lost, waiting for the network", source.leave())
        wait_for("the end of the tunnel", lambda: not there.ask(cmd="status")["tunnels"])


class Swallowing(threading.Thread):
    """Nothing arrives any more from the moment when a connection through a proxy follows the start of QEMU there."""

    def __init__(self, through: Through) -> None:
        super().__init__(daemon=True)
        self.begun = threading.Event()
        self._proxy, self._record = through.proxy, through.node.runtime / "200.pid"
        self.start()

    def run(self) -> None:
        while not self._record.exists():
            time.sleep(0.0005)
        count = len(self._proxy.connections)
        while len(self._proxy.connections) == count:
            time.sleep(0.0005)
        self._proxy.swallow()
        self.begun.set()


class RunningVmTests(OnlineCase):
    def make_target(self) -> Node:
        return Node("there", extra="[limits]\npark_s = 60").start()

    def send(self, through: Through) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "mtunnel_tx.cli", "migrate", "100", through.endpoint, "--online"]
        return self.start([*argv, "--target-vmid", "200", "--target-storage", "local", "--bwlimit", "4096"])

    def test_it_does_not_stand_still_for_a_network_that_is_lost_when_its_disks_begin(self) -> None:
        """QEMU does, until the target's export has answered."""
        before, through = self.boot(), Through(self, self.there)
        swallowing = Swallowing(through)
        migration = self.send(through)
        wait_for("the first disk", swallowing.begun.is_set)
        seen = len(before.beats)
        wait_for("two seconds of beats", lambda: len(before.beats) > seen + 40)
        self.assertIsNone(migration.poll())
        through.proxy.pass_again()
        out, err = migration.communicate(timeout=patience_s(120))
        self.assertEqual(migration.returncode, 0, (out, err))
        self.assertIn("running", self.status(self.there, 200))

    def test_not_a_beat_is_lost(self) -> None:
        before, after = self.boot(), Listener(self.there.runtime / "200.serial0")
        self.addCleanup(setattr, after, "stopped", True)
        through = Through(self, self.there)
        migration = self.send(through)
        cutter = through.cut(most=30, every_s=(0.2, 0.8))
        out, err = migration.communicate(timeout=patience_s(120))
        cutter.stop()
        self.assertEqual(migration.returncode, 0, (out, err))
        self.assertGreaterEqual(cutter.cuts, 8, out)
        wait_for("beats at the target", lambda: len(after.beats) >= 5)
        numbers = [number for number, _ in read_beats(before.text + after.text)]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + len(numbers))))
        self.assertIn("running", self.status(self.there, 200))
        self.assertIn("stopped", self.status(self.here, 100))
        wait_for("the end of the tunnel", lambda: not self.there.ask(cmd="status")["tunnels"])
        self.assertEqual(self.there.left_over()["journals"], [])
