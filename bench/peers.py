"""The relays that ours is compared with, each with the best settings that we know."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bench.case import Case
from bench.processes import pin, started, wait_until_listening


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a benchmark happens: its folder, the sink's socket, certificate and key for every relay."""

    room: Path
    folder: Path
    sink: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A relay that listens; `options` tell the load client how to get through."""

    pid: int
    port: int
    options: Sequence[str] = ()


class PeerRelay(ABC):
    """A relay that is one command line; `framed`: it speaks websocket."""

    framed = False
    remark = ""

    def __init__(self, name: str, place: Place) -> None:
        self.name = name
        self.place = place

    @abstractmethod
    def argv(self, case: Case, port: int | str) -> list[str]:
        """The command line."""

    def is_there(self) -> bool:
        """Whether it could be installed."""
        return True

    def load_options(self) -> Sequence[str]:
        """How the load client gets through."""
        return () if self.framed else ("--raw",)

    def shown(self, case: Case) -> str:
        """The command line for people, without our folders."""
        words = shlex.join(self.argv(case, "PORT")) + self.remark
        for path, name in ((self.place.folder, "DIR"), (self.place.room, "BENCH"), (Path.cwd(), ".")):
            words = words.replace(str(path), name)
        return words.replace(sys.executable, "python")

    @contextmanager
    def running(self, case: Case) -> Iterator[Running]:
        """Let it listen for the length of the block."""
        port, log = free_port(), self.place.folder / f"{self.name}.log"
        with started([*pin(0 if case.pinned else None), *self.argv(case, port)], log) as process:
            wait_until_listening(process, port, log)
            yield Running(pid=process.pid, port=port, options=self.load_options())


class Socat(PeerRelay):
    """socat with large blocks; `unix_options`: for its UNIX socket."""

    def __init__(self, name: str, place: Place, unix_options: str = "") -> None:
        super().__init__(name, place)
        self._unix_options = unix_options

    def argv(self, case: Case, port: int | str) -> list[str]:
        place = self.place
        accept = f"{port},bind=127.0.0.1,reuseaddr,fork"
        tls = f"OPENSSL-LISTEN:{accept},cert={place.certificate},key={place.key},verify=0"
        plain = f"TCP-LISTEN:{accept}"
        return ["socat", "-b262144", tls if case.tls else plain, f"UNIX-CONNECT:{place.sink}{self._unix_options}"]


class Nginx(PeerRelay):
    """nginx's stream module."""

    CONFIG = """\
load_module {module};
worker_processes {workers};
pid {folder}/nginx.pid;
error_log {folder}/nginx.error;
events {{ worker_connections 4096; }}
stream {{
    tcp_nodelay on;
    proxy_buffer_size 128k;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.3;
    server {{ listen 127.0.0.1:{port}{tls}; proxy_pass unix:{sink}; }}
}}
"""

    def __init__(self, name: str, place: Place, workers: int = 1) -> None:
        super().__init__(name, place)
        self._workers = workers
        self.remark = f"  # worker_processes {workers}; tcp_nodelay on; proxy_buffer_size 128k; ssl_protocols TLSv1.3"
        self._root = place.room / "nginx"

    def is_there(self) -> bool:
        """Whether it could be fetched."""
        return (self._root / "usr/sbin/nginx").exists()

    def argv(self, case: Case, port: int | str) -> list[str]:
        config = self.place.folder / "nginx.conf"
        text = self.CONFIG.format(
            module=self._root / "usr/lib/nginx/modules/ngx_stream_module.so",
            workers=self._workers,
            folder=self.place.folder,
            certificate=self.place.certificate,
            key=self.place.key,
            port=port,
            tls=" ssl" if case.tls else "",
            sink=self.place.sink,
        )
        config.write_text(text)
        program = self._root / "usr/sbin/nginx"
        return [str(program), "-p", str(self.place.folder), "-c", str(config), "-g", "daemon off; user root;"]


class Websockify(PeerRelay):
    """websockify, with numpy for its masks."""

    framed = True

    def argv(self, case: Case, port: int | str) -> list[str]:
        place = self.place
        tls = ["--ssl-only", f"--cert={place.certificate}", f"--key={place.key}"] if case.tls else []
        program = place.room / "venv/bin/websockify"
        return [str(program), *tls, f"--unix-target={place.sink}", f"127.0.0.1:{port}"]


class Autobahn(PeerRelay):
    """Twisted and autobahn, as everybody writes it."""

    framed = True

    def argv(self, case: Case, port: int | str) -> list[str]:
        place = self.place
        tls = f"ssl:{port}:interface=127.0.0.1:certKey={place.certificate}:privateKey={place.key}"
        plain = f"tcp:{port}:interface=127.0.0.1"
        return [sys.executable, "-m", "bench.autobahn_relay", tls if case.tls else plain, str(place.sink)]


class ProxmoxLike(PeerRelay):
    """A stand-in for the HTTP server of Proxmox VE: AnyEvent in one Perl process. It has no plain side."""

    framed = True
    MODULES = ("AnyEvent::Handle", "AnyEvent::TLS", "EV")

    def is_there(self) -> bool:
        """Whether Perl and its modules could be installed."""
        argv = ["perl", *(f"-M{module}" for module in self.MODULES), "-e", "1"]
        try:
            return subprocess.run(argv, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            return False

    def argv(self, case: Case, port: int | str) -> list[str]:  # noqa: ARG002
        program = Path(__file__).with_name("proxmox_relay.pl")
        return ["perl", str(program), str(port), str(self.place.certificate), str(self.place.key)]

    def load_options(self) -> Sequence[str]:
        """Its websockets name their UNIX sockets."""
        return ("--target", self.target(self.place.sink))

    @staticmethod
    def target(path: Path) -> str:
        """The path and query of a websocket to a UNIX socket."""
        return f"/?socket={quote(str(path), safe='')}"


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
