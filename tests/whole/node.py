"""A node of its own for one test: directories, a real `twistd mtunnel` process, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import SkipTest

from mtunnel_tx.cli import init
from mtunnel_tx.config import load_settings
from mtunnel_tx.tls.certificate import fingerprint
from tests.leaks import Account, assert_nothing_left, is_kept, take_account
from tests.patience import patience_s, wait_for
from tests.processes import end_processes_of, run_program, started_process

USERS = """\
user:mig@pve:1:0:::::
token:mig@pve!t1:0:0::

acl:1:/:mig@pve:Administrator:
"""
SECRET = "5c2b6e0a-0000-4000-8000-000000000001"
TOKEN = "mig@pve!t1"
NOBODY = 65534
_WORKERS = re.compile(r"^workers *=", re.MULTILINE)
_NOBODYS = re.compile(r"""user = ["']nobody""")


@cache
def can_become_nobody() -> bool:
    """Whether that user can read this tree and its Python: below /root, for one, it cannot."""
    become = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--")
    argv = (*become, sys.executable, "-P", "-c", "import mtunnel_tx.workers.process.service")
    return os.geteuid() != 0 or run_program(argv, check=False, capture_output=True).returncode == 0


def find_twistd() -> str:
    """The one beside this Python; Debian's package puts the major version behind its name."""
    beside = (Path(sys.executable).with_name(name) for name in ("twistd", "twistd3"))
    return str(next(path for path in beside if path.exists()))


class Node:
    """A directory with everything a daemon needs, and the daemon itself once it was started."""

    def __init__(
        self,
        name: str = "pvetest",
        storages: str | None = None,
        extra: str = "",
        listen: str = "tcp:0:interface=127.0.0.1",
    ) -> None:
        if _NOBODYS.search(extra) and not can_become_nobody():
            raise SkipTest("user 'nobody' cannot read this folder: NO WORKER RUNS IN THIS TEST")
        self._owner = ExitStack()
        self.root = Path(tempfile.mkdtemp(prefix="mtunnel-test-"))
        self._owner.callback(shutil.rmtree, self.root)
        self._owner.callback(end_processes_of, self.root)
        self.name = name
        self.config = self.root / "mtunnel.toml"
        self.state = self.root / "state"
        self.runtime = self.root / "run"
        self.pve = self.state / "pve"
        self.storage = self.state / "storage"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = self.root / "daemon.log"
        lines = [
            f'node = "{name}"',
            f'listen = ["{listen}"]',
            f'state_dir = "{self.state}"',
            f'runtime_dir = "{self.runtime}"',
            "" if _WORKERS.search(extra) else "workers = 0",
            extra.format(root=self.root),
        ]
        self.config.write_text("\n".join(lines) + "\n")
        self.prepare()
        (self.pve / "user.cfg").write_text(USERS)
        (self.pve / "priv" / "token.cfg").write_text(f"{TOKEN} {SECRET}\n")
        if storages is not None:
            (self.pve / "storage.cfg").write_text(storages.format(root=self.root))

    def prepare(self) -> None:
        """Make what the daemon expects to be there, as `mtunnel init` does, but without a process for it."""
        for _ in init.prepare(load_settings(self.config, self.environ)):
            pass

    # -- programs

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "MTUNNEL_CONFIG": str(self.config), "COLUMNS": "120"}

    def run(self, module: str, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run one of our programs to its end."""
        argv = [sys.executable, "-m", module, *arguments]
        options = {"capture_output": True, "text": True, "quiet_s": 120, "env": self.environ, **options}
        done = run_program(argv, check=False, **options)
        if check and done.returncode != 0:
            raise AssertionError(f"{argv} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def start(self, *argv: str) -> Node:
        """Start the daemon (or what takes its place), and wait until its port is open."""
        self.launch(*argv)
        self.port = int(wait_for(f"the daemon's port\n{self.log}", self._find_port).rpartition(":")[2])
        self.before = self._settled_account()
        return self

    def keep_port(self) -> Node:
        """Let the next daemon listen where this one does."""
        text = self.config.read_text()
        self.config.write_text(text.replace("tcp:0:", f"tcp:{self.port}:"))
        return self

    def _settled_account(self) -> Account:
        """What the daemon has once our own questions to its control socket are over."""
        assert self.process is not None
        account = take_account(self.process.pid, self.root)
        while (again := take_account(self.process.pid, self.root)).descriptors != account.descriptors:
            account = again
        return account

    def launch(self, *argv: str) -> None:
        """Start the daemon, and wait for nothing."""
        argv = argv or (find_twistd(), "-n", "--pidfile=", "mtunnel", "--config", str(self.config))
        with self.log.open("ab") as log:
            self.process = started_process(self._owner.callback, argv, env=self.environ, stdout=log, stderr=log)

    def _find_port(self) -> str | None:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.log.read_text()}")
        try:
            listening = self.ask(cmd="status")["listening"]
        except OSError:
            return None
        return str(listening[0]) if listening else None

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask the daemon by its control socket. Returns: its answer."""
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(patience_s())
                sock.connect(str(self.runtime / "control.sock"))
                sock.sendall(json.dumps(request).encode() + b"\n")
                return dict(json.loads(sock.makefile("rb").readline()))
        except ConnectionResetError as error:
            ended = self.process and self.process.poll()
            raise ConnectionResetError(f"{error}; exit status {ended}; its log:\n{self.log.read_text()}") from error

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """End the daemon. Returns: its exit status."""
        assert self.process is not None
        self.process.send_signal(signal_number)
        try:
            return self.process.wait(patience_s())
        finally:
            self.process = None

    def close(self) -> None:
        """End everything, see that nothing is left of it, and remove the directory."""
        try:
            if self.process is not None and self.process.poll() is None:
                if not self.ask(cmd="status")["tunnels"]:
                    self.assert_nothing_left()
                self.stop()
                self._assert_gone()
        finally:
            self.process = None
            self._owner.close()

    def _assert_gone(self) -> None:
        """An orderly end leaves no process, no lock and no socket; journals are for the next start."""
        journals = Counter({str(path.relative_to(self.root)): 1 for path in self.state.glob("journal/*")})
        nothing = Account(
            descriptors=Counter(), processes=Counter(), locks=Counter(), files=journals, threads=0, memory_bytes=0
        )
        assert_nothing_left(nothing, None, self.root)

    def assert_idle(self) -> None:
        """Every tunnel is over, and nothing is left of any."""
        wait_for("the end of all tunnels", lambda: not self.ask(cmd="status")["tunnels"])
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        """The daemon has no more of anything than right after its start, but for journals of what it holds."""
        assert self.process is not None
        held = {f"state/journal/{vmid}.jsonl": 1 for vmid in self.ask(cmd="status")["held"]}
        before = replace(self.before, files=self.before.files + Counter(held))
        assert_nothing_left(before, self.process.pid, self.root)

    def connect(self) -> socket.socket:
        """A TCP connection to the daemon."""
        return socket.create_connection(("127.0.0.1", self.port), patience_s())

    # -- what is there

    @property
    def endpoint(self) -> str:
        return f"apitoken={self.authorization},host=127.0.0.1,port={self.port},fingerprint={self.fingerprint}"

    @property
    def authorization(self) -> str:
        return f"PVEAPIToken={TOKEN}={SECRET}"

    @property
    def fingerprint(self) -> str:
        return fingerprint((self.state / "tls" / "certificate.pem").read_bytes())

    def guest_file(self, vmid: int) -> Path:
        return self.pve / "nodes" / self.name / "qemu-server" / f"{vmid}.conf"

    def guest(self, vmid: int) -> str | None:
        path = self.guest_file(vmid)
        return path.read_text() if path.exists() else None

    def firewall(self, vmid: int) -> str | None:
        path = self.pve / "firewall" / f"{vmid}.fw"
        return path.read_text() if path.exists() else None

    def images(self, vmid: int) -> list[str]:
        """Everything that lies in the VM's folders, temporary files included."""
        return sorted(path.name for path in self.root.glob(f"**/images/{vmid}/*"))

    def task_log(self, upid: str) -> str:
        return next(self.state.glob(f"tasks/?/{upid}")).read_text()

    def left_over(self) -> dict[str, list[str]]:
        """What a finished tunnel must not leave: sockets but one, journals, children but workers and kept programs."""
        assert self.process is not None
        return {
            "sockets": sorted(
                path.name for path in self.runtime.glob("*") if path.is_socket() and path.name != "control.sock"
            ),
            "journals": sorted(path.name for path in self.state.glob("journal/*")),
            "children": [
                command
                for command in children(self.process.pid)
                if "mtunnel_tx.workers.process" not in command and not is_kept(command)
            ],
            "descriptors": descriptors(self.process.pid),
        }


def children(pid: int) -> list[str]:
    """The command lines of a process's children."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [line for child in pids if (line := _command_line(child)) is not None]


def _command_line(pid: Any) -> str | None:
    """None: it has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return None


def descriptors(pid: int) -> list[str]:
    """Sockets and pipes and files that a process has open, without numbers."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(str(path.readlink()).partition(":")[0])
        except FileNotFoundError:
            continue
    return sorted(found)
