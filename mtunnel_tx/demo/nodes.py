"""Two nodes for `mtunnel demo`, made and run with nothing but the project's own commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mtunnel_tx
from mtunnel_tx.errors import BackendFailed, TimedOut
from mtunnel_tx.workers.holder import connect_holder
from mtunnel_tx.workers.reachable import find_closed

START_S = 60.0
STOP_S = 20.0
COMMAND_S = 120.0
LOG_LINES = 20

_CONFIG = """\
node = "{node}"
listen = ["tcp:0:interface=127.0.0.1"]
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
workers = {workers}
user = "{user}"

[limits]
restart_s = 60
"""
USER = "nobody"
"""Whom the workers run as when root shows the demonstration."""


@dataclass(frozen=True, slots=True)
class DemoNode:
    """A node of the demonstration: a folder with its configuration file, state and sockets."""

    name: str
    folder: Path

    @property
    def config(self) -> Path:
        """The path of its mtunnel.toml."""
        return self.folder / "mtunnel.toml"

    @property
    def guests(self) -> Path:
        """The folder of its VM configs."""
        return self.folder / "state" / "pve" / "nodes" / self.name / "qemu-server"

    @property
    def images(self) -> Path:
        """The folder of disks in its storage `local`."""
        return self.folder / "state" / "storage" / "images"

    def create(self) -> None:
        """Write the configuration file and run `mtunnel init`."""
        self.folder.mkdir(mode=0o700)
        workers = int(why_no_workers() is None)
        self.config.write_text(_CONFIG.format(node=self.name, folder=self.folder, workers=workers, user=USER))
        self.mtunnel("init")

    def mtunnel(self, *args: str) -> str:
        """Run `mtunnel ARGS` with this node's configuration. Returns: its output. Raises: BackendFailed, TimedOut."""
        return run_command([*mtunnel_command(), *args], self.environment())

    def endpoint(self, port: int) -> str:
        """Returns: what a source needs to reach it by a loopback port. Raises: BackendFailed, TimedOut."""
        return self.mtunnel("endpoint", "--host", "127.0.0.1", "--port", str(port)).strip()

    def volume_file(self, volid: str) -> Path:
        """Returns: the path of a volume, as `mtunnel-pvesm path` says it."""
        command = [sys.executable, "-P", "-m", "mtunnel_tx.pvesm", "path", volid]
        return Path(run_command(command, self.environment()).strip())

    def task_log(self) -> str:
        """Returns: the text of the newest task log."""
        logs = (self.folder / "state" / "tasks").glob("*/UPID*")
        return max(logs, key=lambda log: log.stat().st_mtime_ns).read_text()

    def environment(self) -> dict[str, str]:
        """Returns: our environment, in which commands find this node's configuration and this very package."""
        package = str(Path(mtunnel_tx.__file__).parents[1])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "MTUNNEL_CONFIG": str(self.config), "PYTHONPATH": os.pathsep.join(paths)}

    @contextmanager
    def running(self) -> Iterator[DemoDaemon]:
        """Run the daemon. Yields: it, once it listens. Raises: BackendFailed, TimedOut."""
        daemon = DemoDaemon(self)
        try:
            daemon.start()
            yield daemon
        finally:
            daemon.end()

    def page_link(self) -> str:
        """Returns: an address of the daemon's status page that logs in once."""
        return str(self._ask("page").get("link", "nowhere"))

    def _ask(self, command: str) -> dict[str, Any]:
        return _ask_daemon(self.folder / "run" / "control.sock", command)

    def launch(self, stack: ExitStack) -> tuple[subprocess.Popen[bytes], Mapping[str, Any]]:
        """Start the daemon.

        Returns: it, and its answer to `status` once it listens. Raises: BackendFailed, TimedOut.
        """
        log = self.folder / "daemon.log"
        command = [*_twistd(), "--nodaemon", "--pidfile=", "mtunnel", "--config", str(self.config)]
        with log.open("ab") as output:
            daemon = stack.enter_context(started(command, self.environment(), stdout=output, stderr=output))
        return daemon, self._await_listening(daemon, log)

    def _await_listening(self, daemon: subprocess.Popen[bytes], log: Path) -> Mapping[str, Any]:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if daemon.poll() is not None:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
                raise BackendFailed(f"the daemon of {self.name} ended with status {daemon.returncode}:\n{tail}")
            status = self._ask("status")
            if status.get("listening"):
                return status
            time.sleep(0.05)
        raise TimedOut(f"the daemon of {self.name} does not listen after {START_S:.0f} seconds")


class DemoDaemon:
    """The daemon of a node, and what goes on with its moves while there is none. `status`: its answer, at its start."""

    def __init__(self, node: DemoNode) -> None:
        self.node = node
        self.status: Mapping[str, Any] = {}
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.status["listening"][0].rpartition(":")[2])

    def start(self) -> None:
        """Raises: BackendFailed, TimedOut."""
        self._process, self.status = self.node.launch(self._stack)

    def kill(self) -> None:
        """End it without a chance to do anything."""
        assert self._process is not None, "it runs"
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """End it, and what waits for another one."""
        self._stack.close()
        holder = connect_holder(self.node.folder / "run" / "hold.sock")
        if holder is not None:
            with holder, suppress(OSError):
                holder.settimeout(STOP_S)
                holder.send(json.dumps({"do": "finish", "id": 0}).encode())
                while holder.recv(1 << 16):
                    pass


@cache
def why_no_workers() -> str | None:
    """Why there can be none; None: there can."""
    if os.geteuid() != 0:
        return None
    argv = ["setpriv", "--reuid", USER, "--clear-groups", "--no-new-privs", "--", sys.executable, "-P", "-c"]
    try:
        run_command([*argv, "import mtunnel_tx.workers.process, twisted"], os.environ)
    except (BackendFailed, OSError):
        closed = find_closed(USER) or f"user '{USER}' cannot run {sys.executable}"
        return f"{closed}, and its workers would run as that user: see it from a folder like /opt"
    return None


def mtunnel_command() -> list[str]:
    """The `mtunnel` command of this very installation."""
    return [sys.executable, "-P", "-m", "mtunnel_tx.cli"]


def _twistd() -> list[str]:
    beside = Path(sys.executable).with_name("twistd")
    if beside.exists():
        return [str(beside)]
    return [sys.executable, "-P", "-c", "from twisted.scripts.twistd import run; run()"]


def _ask_daemon(control_socket: Path, command: str) -> dict[str, Any]:
    """Returns: the daemon's answer to a command; empty while nobody listens."""
    try:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(START_S)
            caller.connect(str(control_socket))
            caller.sendall(json.dumps({"cmd": command}).encode() + b"\n")
            with caller.makefile("rb") as answers:
                line = answers.readline()
    except OSError:
        return {}
    return dict(json.loads(line)) if line.endswith(b"\n") else {}


@contextmanager
def started(command: list[str], environment: Mapping[str, str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a session of its own, and end it when the block is left, also by an exception."""
    process = subprocess.Popen(
        command, env=environment, cwd="/", stdin=subprocess.DEVNULL, start_new_session=True, **streams
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM; if the process does not end in time, kill its whole session."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_command(command: list[str], environment: Mapping[str, str]) -> str:
    """Run a short command. Returns: its standard output. Raises: BackendFailed: with its whole output; TimedOut."""
    with started(command, environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            output, errors = process.communicate(timeout=COMMAND_S)
        except subprocess.TimeoutExpired as error:
            raise TimedOut(f"{command[0]} takes longer than {COMMAND_S:.0f} seconds") from error
    if process.returncode != 0:
        text = (output + errors).decode(errors="replace").strip()
        raise BackendFailed(f"{' '.join(command)} failed with status {process.returncode}:\n{text}")
    return output.decode()


def require_programs(*names: str) -> None:
    """Raises: BackendFailed: one of them is not installed."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        raise BackendFailed(f"not installed: {', '.join(missing)}; on Debian: apt-get install qemu-utils")
