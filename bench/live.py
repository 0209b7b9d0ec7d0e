"""A whole migration of a running VM: `mtunnel migrate --online`, beside the same QEMUs alone, and by Proxmox's path."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from bench.bare import sockets_there
from bench.guest import CONFIG, counting, counts, write_disk
from bench.processes import PATIENCE_S, Trouble
from bench.proxmoxpath import proxmox_path
from bench.tunnel import Tunnel
from mtunnel_tx.demo.nodes import DemoNode
from mtunnel_tx.errors import TunnelError

HERE, THERE, ASKING = 100, 200, 300
"""VMIDs: the VM here and there, and that of the tunnel that asks `version` meanwhile."""
VERSION_EVERY_S = 0.02
BARE_S = 120.0
_DOWNTIME = re.compile(r"downtime (\d+) ms")
_TOKEN = re.compile(r"apitoken=([^,]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Voyage:
    """One migration. `version_ms`: how long each `version` took meanwhile; empty where nobody asked."""

    took_s: float
    downtime_ms: float
    version_ms: tuple[float, ...] = ()

    @property
    def version_p99_ms(self) -> float:
        return quantiles(self.version_ms, n=100)[98]


def move_bare() -> Voyage:
    """Between two QEMUs on UNIX sockets. Raises: Trouble."""
    with _folder() as folder:
        return _run_bare(folder)


def move_by_proxmox() -> Voyage:
    """The same by Proxmox's path, without anything that its programs do besides. Raises: Trouble."""
    with _folder() as folder:
        here, relays = (folder / "memory.sock", folder / "disk.sock"), folder / "relays"
        relays.mkdir()
        with proxmox_path(relays, dict(zip(here, sockets_there(folder), strict=True))):
            return _run_bare(folder, *here)


def _run_bare(*paths: Path) -> Voyage:
    argv = [sys.executable, "-m", "bench.bare", *map(str, paths)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=BARE_S, check=False)
    if done.returncode:
        raise Trouble(done.stderr.strip().rpartition("\n")[2])
    return Voyage(**json.loads(done.stdout))


def move_through_tunnel() -> Voyage:
    """From `mtunnel migrate` to a real daemon, by TLS. Raises: Trouble."""
    with _folder() as folder:
        try:
            return _prepare_and_move(DemoNode("here", folder / "a"), DemoNode("there", folder / "b"))
        except TunnelError as error:
            raise Trouble(error.text) from error


def _prepare_and_move(here: DemoNode, there: DemoNode) -> Voyage:
    for node in (here, there):
        node.create()
    there.mtunnel("token", "add", "bench@pve!t1", "--role", "Administrator", "--path", "/")
    with there.running() as daemon, _guest(here, there):
        return _move(here, there, daemon.port)


def _move(here: DemoNode, there: DemoNode, port: int) -> Voyage:
    endpoint = there.mtunnel("endpoint", "--host", "127.0.0.1", "--port", str(port)).strip()
    found = _TOKEN.search(endpoint)
    assert found is not None
    with _asking(port, found[1]) as times_ms:
        began_s = time.monotonic()
        order = ("migrate", str(HERE), endpoint, "--online", "--target-vmid", str(THERE), "--target-storage", "local")
        said = here.mtunnel(*order)
        took_s = time.monotonic() - began_s
    downtime = _DOWNTIME.search(said)
    if downtime is None:
        raise Trouble(f"the migration did not tell its downtime: {said}")
    return Voyage(took_s=took_s, downtime_ms=float(downtime[1]), version_ms=tuple(times_ms))


@contextmanager
def _asking(port: int, authorization: str) -> Iterator[list[float]]:
    """Ask `version` in a tunnel of its own, again and again. Yields: how long each took, in ms."""
    tunnel = Tunnel(port, authorization, "there", ASKING, tls=True)
    times_ms: list[float] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(VERSION_EVERY_S):
            times_ms.append(1000 * tunnel.time_version())

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield times_ms
    finally:
        over.set()
        thread.join(PATIENCE_S)
        tunnel.close()


@contextmanager
def _guest(here: DemoNode, there: DemoNode) -> Iterator[None]:
    """It runs here; in the end neither side has a QEMU."""
    folder = here.images / str(HERE)
    folder.mkdir(parents=True)
    write_disk(folder / f"vm-{HERE}-disk-0.raw")
    conf = CONFIG.format(volume=f"local:{HERE}/vm-{HERE}-disk-0.raw")
    (here.guests / f"{HERE}.conf").write_text(conf)
    try:
        with counting(here.folder / f"run/{HERE}.serial0") as serial:
            here.mtunnel("vm", "start", str(HERE))
            deadline_s = time.monotonic() + PATIENCE_S
            while not counts(serial):
                if time.monotonic() > deadline_s:
                    raise Trouble("the guest does not count")
                time.sleep(0.05)
            yield
    finally:
        for node in (here, there):
            for record in (node.folder / "run").glob("*.pid"):
                node.mtunnel("vm", "stop", record.stem)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mtb-") as name:
        yield Path(name)
