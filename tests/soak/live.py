"""`python -m tests.soak.live [TIMES]`: a running VM goes to and fro between two nodes, and misses no beat.

After each migration nothing of it is left on the node that it came from. Exit status 1: a beat is missing or came
twice, something was left behind, or a daemon's memory grew.
"""

from __future__ import annotations

import random
import re
import shutil
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from mtunnel_tx.backends.host import PROGRAM
from mtunnel_tx.demo.ticker import read_beats, read_ring, ticker
from tests.leaks import take_account
from tests.matrix.serial import Listener
from tests.patience import wait_for
from tests.whole.node import Node

MIB = 1 << 20
VMID = 100
RING = 1024
RING_BASE = 2048
DISK_BYTES = 16 * MIB
FILLED = (2 * MIB, 10 * MIB)
"""Random data on the disk."""
BALLAST_MIB = 8
MORE_BEATS = 5
WARM_SHARE = 0.2
MORE_MEMORY_BYTES = 8 * MIB
"""Of a daemon, from the end of the warm-up migrations to the last one."""
GUEST = """\
boot: order=scsi0
memory: 48
name: ticker
scsi0: local:100/vm-100-disk-0.raw,discard=on,size=16M
scsihw: virtio-scsi-pci
serial0: socket
vga: serial0
"""
_DOWNTIME = re.compile(r"downtime (\d+) ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One migration: how long it took, how long QEMU says that the guest stood still, the daemons' memory after it."""

    took_s: float
    downtime_ms: int
    memory_bytes: tuple[int, int]


class RoundTrips:
    """Two nodes and the VM between them; `text`: what its serial ports have said, in order."""

    def __init__(self, nodes: tuple[Node, Node]) -> None:
        self.nodes = nodes
        self.listeners = [Listener(node.runtime / f"{VMID}.serial0") for node in nodes]
        self.heard = [0, 0]
        self.text = b""
        self.at = 0
        self.migrations: list[Migration] = []

    def boot(self) -> None:
        """The guest ticks on the first node."""
        node = self.nodes[0]
        disk = node.storage / "images" / str(VMID) / f"vm-{VMID}-disk-0.raw"
        disk.parent.mkdir(parents=True)
        with disk.open("wb") as file:
            file.write(ticker(BALLAST_MIB, base=RING_BASE, ring=RING))
            file.seek(FILLED[0])
            file.write(self.filling())
            file.truncate(DISK_BYTES)
        node.guest_file(VMID).write_text(GUEST)
        node.run("mtunnel_tx.cli", "vm", "start", str(VMID))
        self.await_beats()

    def filling(self) -> bytes:
        return random.Random(1).randbytes(FILLED[1] - FILLED[0])

    def await_beats(self) -> None:
        """It runs where it should."""
        listener = self.listeners[self.at]
        start = len(listener.text)
        wait_for("beats", lambda: len(read_beats(listener.text[start:])) >= MORE_BEATS)

    def migrate(self) -> None:
        """To the other node. Raises: AssertionError: something is not as it should be."""
        here, there = self.nodes[self.at], self.nodes[1 - self.at]
        began = time.monotonic()
        order = ("migrate", str(VMID), there.endpoint, "--online", "--delete", "--target-storage", "local")
        said = here.run("mtunnel_tx.cli", *order).stdout
        took_s = time.monotonic() - began
        left, self.at = self.at, 1 - self.at
        self.await_beats()
        self.collect(left)
        self.assert_left(here)
        self.check_beats()
        found = _DOWNTIME.search(said)
        assert found is not None, said
        self.migrations.append(Migration(took_s=took_s, downtime_ms=int(found[1]), memory_bytes=self.memory_bytes()))

    def collect(self, side: int) -> None:
        """Take over what a side has said since the last time."""
        text = self.listeners[side].text
        self.text += text[self.heard[side] :]
        self.heard[side] = len(text)

    def assert_left(self, node: Node) -> None:
        """The VM is gone from there, and so is everything that was needed for it."""
        node.assert_idle()
        assert node.guest(VMID) is None, "its config was left behind"
        assert not node.images(VMID), f"left behind: {node.images(VMID)}"

    def check_beats(self) -> None:
        """A line may begin on one side and end on the other."""
        beats = read_beats(self.text)
        numbers = [number for number, _ in beats]
        assert {flag for _, flag in beats} == {"."}, "the guest found its memory or disk wrong"
        gaps = [pair for pair in pairwise(numbers) if pair[1] != pair[0] + 1]
        assert not gaps, f"beats are missing, or came twice: {gaps}"

    def end(self) -> int:
        """Stop the VM; look at its disk. Returns: how many beats were heard."""
        node = self.nodes[self.at]
        node.run("mtunnel_tx.cli", "vm", "stop", str(VMID))
        self.collect(self.at)
        self.check_beats()
        beats = read_beats(self.text)
        disk = (node.storage / "images" / str(VMID) / f"vm-{VMID}-disk-0.raw").read_bytes()
        ring = read_ring(disk, base=RING_BASE, ring=RING)
        assert ring == list(range(max(1, ring[-1] - RING + 1), ring[-1] + 1)), "the disk's ring has holes"
        assert ring[-1] >= beats[-1][0] - 1, "the disk is behind the beats"
        assert disk[slice(*FILLED)] == self.filling(), "the disk's data has changed"
        return len(beats)

    def memory_bytes(self) -> tuple[int, int]:
        """Of both daemons."""
        accounts = [take_account(node.process.pid, node.root) for node in self.nodes if node.process is not None]
        return accounts[0].memory_bytes, accounts[1].memory_bytes

    def close(self) -> None:
        """No QEMU outlives this."""
        for listener in self.listeners:
            listener.stopped = True
        for node in self.nodes:
            for file in node.runtime.glob("*.pid"):
                node.run("mtunnel_tx.cli", "vm", "stop", file.stem, check=False)


def soak(trips: RoundTrips, times: int) -> list[str]:
    """Returns: what is wrong."""
    trips.boot()
    for number in range(1, times + 1):
        trips.migrate()
        migration = trips.migrations[-1]
        memory = " and ".join(f"{each / MIB:.1f}" for each in migration.memory_bytes)
        print(f"{number:4}: {migration.took_s:5.1f} s, downtime {migration.downtime_ms} ms, {memory} MiB", flush=True)
    beats = trips.end()
    downtimes = sorted(migration.downtime_ms for migration in trips.migrations)
    took_s = median(migration.took_s for migration in trips.migrations)
    print(f"{times} migrations, {beats} beats, none lost, none twice; the disk is whole; nothing was left behind")
    print(f"medians: {took_s:.1f} s, downtime {median(downtimes):.0f} ms; longest downtime {downtimes[-1]} ms")
    return list(grown(trips.migrations))


def grown(migrations: list[Migration]) -> list[str]:
    """Whose memory grew after the warm-up migrations, in words."""
    warm = migrations[int(len(migrations) * WARM_SHARE)].memory_bytes
    pairs = list(zip(("first", "second"), warm, migrations[-1].memory_bytes, strict=True))
    for name, before, after in pairs:
        print(f"{name} daemon: {before / MIB:.1f} MiB when warm, {after / MIB:.1f} MiB at the end")
    return [f"the {name} daemon's memory grew" for name, old, new in pairs if new > old + MORE_MEMORY_BYTES]


def main(times: str = "50") -> int:
    """As a program."""
    if shutil.which(PROGRAM) is None:
        print(f"{PROGRAM} is not installed: NO RUNNING VM IS MOVED", file=sys.stderr)
        return 1
    nodes = (Node("one"), Node("two"))
    trips = RoundTrips(nodes)
    wrong = ["it did not come to its end"]
    try:
        for node in nodes:
            node.start()
        wrong = soak(trips, int(times))
        if wrong:
            print("\n".join(["WRONG:", *wrong]))
    finally:
        trips.close()
        for node in nodes:
            node.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
