"""The running VM of `mtunnel demo`: a guest that counts on its serial port is moved, and must not miss a number."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mtunnel_tx.backends.host import PROGRAM
from mtunnel_tx.backends.process import open_process, read_record
from mtunnel_tx.demo.network import Network, cut_network
from mtunnel_tx.demo.nodes import DemoDaemon, DemoNode, mtunnel_command, started, why_no_workers
from mtunnel_tx.demo.ticker import is_unbroken, read_beats, read_ring, ticker
from mtunnel_tx.errors import TimedOut, TunnelError

LEFT_OUT = f"LEFT OUT: a running VM, as {PROGRAM} is not installed; on Debian: apt-get install qemu-system-x86"
HERE, THERE = 101, 201
RING = 64
BEATS = 20
BEAT_S = 0.055
CUTS_AT_MIB = (4, 12, 24)
"""While its disk and its memory are on their way."""
RESTART_AT_MIB = 16
PATIENCE_S = 60.0
_DISK_BYTES = 64 << 20
_AGAIN_S = 0.005
_GUEST = """\
#Made by mtunnel demo
boot: order=scsi0
memory: 64
name: counting
scsi0: local:101/vm-101-disk-0.raw,size=64M
scsihw: virtio-scsi-pci
serial0: socket
vga: serial0
"""
Say = Callable[[str], None]


class Serial(threading.Thread):
    """Reads a VM's serial port from the moment its socket is there.

    `text`: all that came. `heard`: the time of each piece, by the monotonic clock, in seconds.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.text = b""
        self.heard: list[float] = []
        self.stopped = False
        self.start()

    def run(self) -> None:
        """Wait for the socket, then read until it ends."""
        with socket.socket(socket.AF_UNIX) as sock, suppress(OSError):
            while not self._connects(sock) and not self.stopped:
                time.sleep(_AGAIN_S)
            while not self.stopped and (data := sock.recv(4096)):
                self.text += data
                self.heard.append(time.monotonic())

    def _connects(self, sock: socket.socket) -> bool:
        try:
            sock.connect(str(self.path))
        except OSError:
            return False
        return True

    @property
    def beats(self) -> list[tuple[int, str]]:
        """Number and flag of each whole line."""
        return read_beats(self.text)


def move_running(say: Say, here: DemoNode, daemon: DemoDaemon, limit_kib_s: int | None = None) -> bool:
    """Start a VM, move it while it counts, cut its connections and kill the daemon meanwhile, and say how it went.

    Args: daemon: of the node that it goes to. limit_kib_s: None: as fast as it goes.
    Returns: whether no number is missing or came twice.
    """
    there = daemon.node
    if shutil.which(PROGRAM) is None:
        say(LEFT_OUT)
        return True
    _write_guest(here)
    with _killed_at_the_end(here, there), _listening(here, HERE) as before, _listening(there, THERE) as after:
        here.mtunnel("vm", "start", str(HERE))
        _await_beats(before)
        say(f"VM {HERE} counts on node-a, 18 times a second: {_shown(before.beats[-3:])}")
        began = time.monotonic()
        if not _migrate_over_bad_network(say, here, daemon, limit_kib_s):
            return False
        took_s = time.monotonic() - began
        _await_beats(after)
        there.mtunnel("vm", "stop", str(THERE))
        return _tell(say, before, after, took_s) and _check_disk(say, there, after)


def _write_guest(node: DemoNode) -> None:
    folder = node.images / str(HERE)
    folder.mkdir(parents=True)
    with (folder / f"vm-{HERE}-disk-0.raw").open("wb") as disk:
        disk.write(ticker(16, 1, ring=RING))
        disk.seek(_DISK_BYTES // 2)
        disk.write(os.urandom(_DISK_BYTES // 4))
        disk.truncate(_DISK_BYTES)
    (node.guests / f"{HERE}.conf").write_text(_GUEST)


@contextmanager
def _listening(node: DemoNode, vmid: int) -> Iterator[Serial]:
    serial = Serial(node.folder / "run" / f"{vmid}.serial0")
    try:
        yield serial
    finally:
        serial.stopped = True


@contextmanager
def _killed_at_the_end(*nodes: DemoNode) -> Iterator[None]:
    """Kill the QEMUs of these nodes when the block is left: they outlive the commands that started them."""
    try:
        yield
    finally:
        for node in nodes:
            for file in (node.folder / "run").glob("*.pid"):
                _kill(file)


def _kill(file: Path) -> None:
    record = read_record(file)
    found = open_process(record) if record is not None else None
    if found is not None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(found[1], signal.SIGKILL)
        os.close(found[1])


def _await_beats(serial: Serial) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while len(serial.beats) < BEATS:
        if time.monotonic() > deadline:
            raise TimedOut(f"the guest does not count on {serial.path}")
        time.sleep(0.02)


def _migrate_over_bad_network(say: Say, here: DemoNode, daemon: DemoDaemon, limit_kib_s: int | None) -> bool:
    def tell(carried_bytes: int) -> None:
        say(f"the network cuts every connection, {carried_bytes >> 20} MiB have gone through")

    with cut_network(daemon.port, CUTS_AT_MIB, tell) as network, _restarted(say, daemon, network) as restart:
        good = _migrate(say, here, daemon.node.endpoint(network.at), limit_kib_s)
    say(f"the network has cut all connections {network.cuts} times")
    return good and network.cuts == len(CUTS_AT_MIB) and restart.good


@dataclass(slots=True)
class _Restart:
    """good: the daemon was killed once, and another one has come; or that cannot be shown here."""

    good: bool = False


@contextmanager
def _restarted(say: Say, daemon: DemoDaemon, network: Network) -> Iterator[_Restart]:
    """Kill the daemon in the middle of the block, and start another one; wait for that at its end."""
    restart, over, closed = _Restart(), threading.Event(), why_no_workers()
    if closed is not None:
        say(f"LEFT OUT: a restart of the daemon, as {closed}")
        restart.good = True
        yield restart
        return

    def work() -> None:
        while network.carried_bytes < RESTART_AT_MIB << 20:
            if over.wait(0.01):
                return
        restart.good = _restart(say, daemon, network)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield restart
    finally:
        over.set()
        thread.join()


def _restart(say: Say, daemon: DemoDaemon, network: Network) -> bool:
    before, carried_bytes = daemon.status["pid"], network.carried_bytes
    daemon.kill()
    try:
        daemon.start()
    except TunnelError as error:
        say(f"the daemon of node-b does not start again: {error.text}")
        return False
    network.port = daemon.port
    went_mib = (network.carried_bytes - carried_bytes) / (1 << 20)
    say(f"node-b's daemon was killed, pid {before}, and started again, pid {daemon.status['pid']};")
    say(f"its worker went on without it: {went_mib:.1f} MiB have gone through meanwhile")
    return True


def _migrate(say: Say, node: DemoNode, endpoint: str, limit_kib_s: int | None) -> bool:
    order = ["migrate", str(HERE), "--online", "--target-vmid", str(THERE), "--target-storage", "local"]
    order += [] if limit_kib_s is None else ["--bwlimit", str(limit_kib_s)]
    say(f"mtunnel {' '.join(order)}")
    with started([*mtunnel_command(), *order], {**node.environment(), "MTUNNEL_ENDPOINT": endpoint}) as process:
        return process.wait() == 0


def _tell(say: Say, before: Serial, after: Serial, took_s: float) -> bool:
    beats = read_beats(before.text + after.text)  # a line may begin at the source and end at the target
    whole = is_unbroken(beats)
    say(f"node-a: … {_shown(before.beats[-3:])}   node-b: {_shown(after.beats[:3])} …")
    what = "none is missing, none came twice" if whole else "SOME ARE MISSING, OR CAME TWICE"
    say(f"{len(beats)} numbers from {beats[0][0]} to {beats[-1][0]}: {what}")
    silence_s = after.heard[0] - before.heard[-1]
    say(f"downtime {max(0.0, silence_s - BEAT_S) * 1000:.0f} ms beyond the usual pause; {took_s:.1f} s in all")
    return whole


def _check_disk(say: Say, node: DemoNode, after: Serial) -> bool:
    """The guest writes each number to its disk before it prints it. Returns: whether the disk has the last ones."""
    file = node.images / str(THERE) / f"vm-{THERE}-disk-0.raw"
    ring = read_ring(file.read_bytes(), ring=RING)
    newest = after.beats[-1][0]
    whole = ring == list(range(max(1, ring[-1] - RING + 1), ring[-1] + 1)) and ring[-1] >= newest - 1
    say(f"its disk on node-b has the last {len(ring)} numbers: {'whole' if whole else 'NOT WHOLE'}")
    return whole


def _shown(beats: list[tuple[int, str]]) -> str:
    return " ".join(str(number) for number, _ in beats)
