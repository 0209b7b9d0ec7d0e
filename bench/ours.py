"""mtunnel as a relay: a real daemon and a real tunnel, whose disk import leads to the sink.

The daemon's `commands.pvesm` is `bench/pvesm`, which puts the sink's socket where an importer would have its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from bench.case import Case
from bench.peers import Place, Running, free_port
from bench.processes import PATIENCE_S, Trouble, pin, started, tree, wait_until_listening
from bench.tunnel import Tunnel

NODE = "bench"
MOST_TUNNELS = 64
WINDOWS_BYTES = 64 << 30
"""A thousand resumable flows of one token have a window each; nothing of it is taken before it is used."""
# Of a daemon on a loopback port, gone with the benchmark.
AUTHORIZATION = "PVEAPIToken=bench@pve!t1=00000000-0000-4000-8000-000000000000"
USERS = "user:bench@pve:1:0:::::\ntoken:bench@pve!t1:0:0::\n\nacl:1:/:bench@pve:Administrator:\n"
CONFIG = """\
node = "{node}"
listen = ["tcp:{port}:interface=127.0.0.1"]
workers = {workers}
user = "nobody"
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
[commands]
pvesm = ["{here}/pvesm", "{sink}"]
[limits]
connections = 4096
connections_unauthenticated_per_address = 4096
streams_per_tunnel = {streams}
tunnels = {tunnels}
tunnels_per_token = {tunnels}
windows_bytes = {windows_bytes}
restart_s = 0
"""

_vmids = count(100)


def make_node(folder: Path) -> tuple[Path, Path]:
    """Fill a folder with what a daemon needs. Returns: its certificate and key."""
    _write_config(folder, Path("sink"), 0, 0, 1)
    environ = {**os.environ, "MTUNNEL_CONFIG": str(folder / "mtunnel.toml")}
    subprocess.run([sys.executable, "-m", "mtunnel_tx.cli", "init"], check=True, env=environ, capture_output=True)
    pve = folder / "state/pve"
    (pve / "user.cfg").write_text(USERS)
    (pve / "priv/token.cfg").write_text(" ".join(AUTHORIZATION.split("=")[1:]) + "\n")
    return folder / "state/tls/certificate.pem", folder / "state/tls/key.pem"


def _write_config(folder: Path, sink: Path, port: int, workers: int, streams: int) -> Path:
    """Limits for so many streams: a daemon does not start where the system has too few descriptors for its limits."""
    tunnels = streams if streams <= MOST_TUNNELS else 1
    file = folder / "mtunnel.toml"
    here = Path(__file__).parent
    file.write_text(
        CONFIG.format(
            node=NODE,
            port=port,
            workers=workers,
            folder=folder,
            sink=sink,
            here=here,
            windows_bytes=WINDOWS_BYTES,
            tunnels=tunnels,
            streams=8 if tunnels > 1 else streams + 8,
        )
    )
    return file


class Mtunnel:
    """Our daemon; each stream has a tunnel of its own, but more than MOST_TUNNELS share one.

    Args: relays: another way to run streams than the daemon's own.
    """

    framed = True

    def __init__(self, name: str, place: Place, *, workers: int = 0, relays: str | None = None) -> None:
        self.name = name
        self.place = place
        self._workers = workers
        self._relays = relays

    def is_there(self) -> bool:
        """Whether this version of ours has what it takes."""
        return True

    def shown(self, case: Case) -> str:
        """The command line for people."""
        words = " ".join(self._argv(case, Path("mtunnel.toml"))).replace(sys.executable, "python")
        words = words.replace(str(Path(sys.executable).parent) + "/", "")
        return words + (f"  # workers = {self._workers}" if self._workers else "")

    def _argv(self, case: Case, config: Path) -> list[str]:
        if case.tls and self._relays is None and case.streams <= MOST_TUNNELS:
            twistd = str(Path(sys.executable).parent / "twistd")
            return [twistd, "-n", "--pidfile=", "mtunnel", "--config", str(config)]
        argv = [sys.executable, "-m", "bench.launch", str(config)]
        argv += [] if case.tls else ["--plain"]
        argv += [] if case.streams <= MOST_TUNNELS else ["--shared"]
        return argv + (["--relays", self._relays] if self._relays else [])

    @contextmanager
    def listening(self, case: Case) -> Iterator[Running]:
        """Let the daemon listen for the length of the block."""
        port, log = free_port(), self.place.folder / f"{self.name}.log"
        config = _write_config(self.place.folder, self.place.sink, port, self._workers, case.streams)
        with started([*pin(0 if case.pinned else None), *self._argv(case, config)], log) as process:
            wait_until_listening(process, port, log)
            self._wait_for_workers(process.pid)
            yield Running(pid=process.pid, port=port)

    def _wait_for_workers(self, pid: int) -> None:
        """Raises: Trouble: there are none."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self._workers and len(tree(pid)) <= self._workers:
            if time.monotonic() > deadline_s:
                raise Trouble("workers are not built")
            time.sleep(0.05)

    @contextmanager
    def tunnels(self, daemon: Running, case: Case) -> Iterator[tuple[Tunnel, Running]]:
        """Open tunnels whose imports wait for streams. Yields: one of them, and the way to all."""
        options = ["--header", f"Authorization: {AUTHORIZATION}"]
        with ExitStack() as stack:
            for _ in range(case.streams if case.streams <= MOST_TUNNELS else 1):
                tunnel = Tunnel(daemon.port, AUTHORIZATION, NODE, next(_vmids), tls=case.tls)
                stack.callback(tunnel.close)
                options += ["--target", tunnel.begin_import()]
            yield tunnel, Running(pid=daemon.pid, port=daemon.port, options=options)

    @contextmanager
    def running(self, case: Case) -> Iterator[Running]:
        """Let it wait for the streams of a tunnel for the length of the block."""
        with self.listening(case) as daemon, self.tunnels(daemon, case) as (_, running):
            yield running
