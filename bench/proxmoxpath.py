"""The way of a migration between two Proxmox hosts: here a websocket helper, there a relay as its HTTP server has one.

The helper is ours, `mtunnel websocket-tunnel`, a drop-in for Proxmox's own; the relay is `bench/proxmox_relay.pl`. In
place of the target's `qm mtunnel` somebody grants every ticket.
"""

from __future__ import annotations

import json
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.case import Case
from bench.ours import AUTHORIZATION, make_node
from bench.peers import Place, ProxmoxLike
from bench.processes import Reporter, Trouble, started
from mtunnel_tx.tls.certificate import fingerprint

_GRANTED = b'{"success":true,"ticket":"granted"}\n'


@contextmanager
def proxmox_path(folder: Path, ends: dict[Path, Path]) -> Iterator[None]:
    """Let sockets of the source lead to sockets of the target for the length of the block, by TLS.

    Args: folder: an empty one. ends: where each socket here leads; those there may come later. Raises: Trouble.
    """
    certificate, key = make_node(folder)
    commands = folder / "commands.sock"
    place = Place(room=folder, folder=folder, sink=commands, certificate=certificate, key=key)
    relay = ProxmoxLike("proxmox-like", place)
    if not relay.is_there():
        raise Trouble("no Perl with AnyEvent here")
    with _granting(commands), relay.running(Case(pinned=False)) as running, _helper(folder / "helper.log") as helper:
        target = _Target(f"https://127.0.0.1:{running.port}", fingerprint(certificate.read_bytes()))
        helper.order("connect", target.websocket(commands))
        for here, there in ends.items():
            helper.order("forward", {**target.websocket(there), "unix": str(here), "ticket": {"path": str(there)}})
            helper.hear()
        yield


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the relay listens, and what its certificate is."""

    base: str
    fingerprint: str

    def websocket(self, path: Path) -> dict[str, Any]:
        """What the helper needs to open one to a UNIX socket there."""
        headers = [["Authorization", AUTHORIZATION]]
        return {"url": self.base + ProxmoxLike.target(path), "headers": headers, "fingerprint": self.fingerprint}


class _Helper:
    """Takes orders on its standard input."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._replies = Reporter(process, log)

    def order(self, command: str, data: dict[str, Any]) -> None:
        """`connect` has no reply."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"control": True, "cmd": command, "data": data}).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self) -> None:
        """Raises: Trouble: it has refused the order."""
        if not (reply := self._replies.read())["success"]:
            raise Trouble(f"the helper does not listen: {reply['msg']}")


@contextmanager
def _helper(log: Path) -> Iterator[_Helper]:
    argv = [sys.executable, "-m", "mtunnel_tx.cli", "websocket-tunnel"]
    with started(argv, log, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield _Helper(process, log)


class _Grant(socketserver.StreamRequestHandler):
    """Each line asks for a ticket."""

    def handle(self) -> None:
        for _ in self.rfile:
            self.wfile.write(_GRANTED)


class _Commands(socketserver.ThreadingUnixStreamServer):
    """Ends with the program, whoever is still connected."""

    daemon_threads = True
    block_on_close = False


@contextmanager
def _granting(path: Path) -> Iterator[None]:
    with _Commands(str(path), _Grant) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
