"""A scripted Proxmox source: the steps of `qm remote-migrate` for a stopped VM, over our helper as a child process.

It does what Proxmox's own source does, call by call and key by key (protocol.md section 5), in both dialects; it shares
no code with `mtunnel migrate`.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.patience import patience_s
from tests.processes import started_process
from tests.whole.node import Node
from tests.whole.peer import call


class Failed(Exception):
    """The target refused, in its own words."""


class Helper:
    """`mtunnel websocket-tunnel` with pipes."""

    def __init__(self) -> None:
        argv = [sys.executable, "-m", "mtunnel_tx.cli", "websocket-tunnel"]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self._owner = ExitStack()
        self.process = started_process(self._owner.callback, argv, **pipes)
        self.buffered = b""

    def write(self, message: Any) -> None:
        assert self.process.stdin is not None
        line = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """One line of its output."""
        assert self.process.stdout is not None
        number = self.process.stdout.fileno()
        deadline = time.monotonic() + patience_s()
        while b"\n" not in self.buffered:
            ready, _, _ = select.select([number], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError("no line from the helper")
            data = os.read(number, 65536)
            if not data:
                raise Failed("the helper has ended")
            self.buffered += data
        line, _, self.buffered = self.buffered.partition(b"\n")
        return dict(json.loads(line))

    def is_silent(self, wait_s: float = 0.2) -> bool:
        """Whether it says nothing more."""
        assert self.process.stdout is not None
        return not self.buffered and not select.select([self.process.stdout], [], [], wait_s)[0]

    def finish(self) -> tuple[int, str]:
        """End its input. Returns: exit status and what it logged."""
        _, errors = self.process.communicate(timeout=patience_s())
        return self.process.returncode, errors.decode()

    def close(self) -> None:
        """Be rid of it, whatever state it is in."""
        self._owner.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One volume of the source: `local:100/vm-100-disk-0.raw` at `key` of its config."""

    key: str
    volid: str
    file: Path

    def name_for(self, vmid: int) -> str:
        """What the disk is called there: the VMID in its name becomes the target's."""
        return re.sub(r"-\d+-", f"-{vmid}-", self.file.name, count=1)

    @property
    def format(self) -> str:
        return self.file.suffix.removeprefix(".")

    @property
    def has_snapshots(self) -> bool:
        return self.format != "raw"

    @property
    def stream(self) -> str:
        return f"{self.format}+size"


class Released:
    """PVE 7.3 to 9: underscores, lists of storages, exit mode."""

    name = "released"
    is_closed_after_quit = False

    def bwlimit(self, storage: str) -> dict[str, Any]:
        return {"operation": "migration", "storages": [storage], "bwlimit": None}

    def disk_import(self, disk: Disk, vmid: int, storage: str) -> dict[str, Any]:
        return {
            "volname": disk.name_for(vmid),
            "format": disk.format,
            "export_formats": disk.stream,
            "storage": storage,
            "snapshot": None,
            "migration_snapshot": "",
            "with_snapshots": int(disk.has_snapshots),
            "allow_rename": 1,
        }


class First(Released):
    """2021: dashes, one storage, no snapshots of the migration's own."""

    name = "2021"
    is_closed_after_quit = True

    def bwlimit(self, storage: str) -> dict[str, Any]:
        return {"operation": "migration", "storage": storage, "bwlimit": None}

    def disk_import(self, disk: Disk, vmid: int, storage: str) -> dict[str, Any]:
        return {
            "volname": disk.name_for(vmid),
            "format": disk.format,
            "export-formats": disk.stream,
            "storage": storage,
            "with-snapshots": int(disk.has_snapshots),
            "allow-rename": 1,
        }


class Source:
    """One migration, step by step. Args: home: the node that has the VM; never started. target: runs a daemon."""

    def __init__(self, home: Node, target: Node, dialect: Released, vmid: int = 100, target_vmid: int = 200) -> None:
        self.home = home
        self.target = target
        self.dialect = dialect
        self.vmid = vmid
        self.target_vmid = target_vmid
        self.node = target.name
        self.helper = Helper()
        self.forwarded: dict[str, Path] = {}
        self.said: list[str] = []

    # -- before

    def look_around(self, storage: str = "local") -> None:
        """The API calls before the tunnel."""
        cluster = self._get("/cluster/status")
        self.node = next(item["name"] for item in cluster if item["type"] == "node" and item["local"])
        if any(item["vmid"] == self.target_vmid for item in self._get("/cluster/resources?type=vm")):
            raise Failed("target VMID is in use")
        found = {item["storage"]: item for item in self._get("/nodes/localhost/storage?enabled=1")}
        if "images" not in found[storage]["content"].split(","):
            raise Failed("no images there")

    def _get(self, path: str) -> Any:
        answer = call(self.target, "GET", path)
        if answer.status != 200:
            raise Failed(f"{answer.status} {answer.reason}")
        return answer.json["data"]

    # -- the tunnel

    def open(self, storages: str = "local", bridges: str = "") -> None:
        """POST, connect, version."""
        form = {"storages": storages, "bridges": bridges}
        answer = call(self.target, "POST", f"/nodes/{self.node}/qemu/{self.target_vmid}/mtunnel", form)
        if answer.status != 200:
            raise Failed(f"{answer.status} {answer.reason}")
        opened = answer.json["data"]
        self.upid = opened["upid"]
        query = f"ticket={quote(opened['ticket'], safe='')}&socket={quote(opened['socket'], safe='')}"
        self.connect(f"{self.url}{query}")
        version = self.ask("version")
        if version["api"] < 2 or version["api"] - version["age"] > 2:
            raise Failed("version")

    @property
    def url(self) -> str:
        base = f"https://127.0.0.1:{self.target.port}/api2/json"
        return f"{base}/nodes/{self.node}/qemu/{self.target_vmid}/mtunnelwebsocket?"

    def connection(self, url: str) -> dict[str, Any]:
        return {
            "url": url,
            "headers": [["Authorization", self.target.authorization]],
            "fingerprint": self.target.fingerprint,
        }

    def connect(self, url: str) -> None:
        """Has no reply."""
        self.helper.write({"control": True, "cmd": "connect", "data": self.connection(url)})

    def ask(self, command: str, **parameters: Any) -> dict[str, Any]:
        """One command, one reply."""
        self.helper.write({"cmd": command, **parameters})
        reply = self.helper.read()
        if not reply.get("success"):
            raise Failed(reply.get("msg"))
        return reply

    def forward(self, remote: str, local: Path) -> None:
        """Once for each remote socket; its reply is read and not looked at."""
        if self.forwarded.get(remote) == local:
            return
        self.forwarded[remote] = local
        local.unlink(missing_ok=True)
        data = {
            **self.connection(f"{self.url}socket={quote(remote, safe='')}&"),
            "unix": str(local),
            "ticket": {"path": remote},
        }
        self.helper.write({"control": True, "cmd": "forward", "data": data})
        self.helper.read()

    # -- disks

    def limit(self, storage: str = "local") -> Any:
        return self.ask("bwlimit", **self.dialect.bwlimit(storage))["bwlimit"]

    def start_import(self, disk: Disk, storage: str = "local") -> Path:
        """Returns: the local socket that leads to the importer."""
        reply = self.ask("disk-import", **self.dialect.disk_import(disk, self.target_vmid, storage))
        if reply["format"] not in disk.stream.split(","):
            raise Failed("stream format")
        local = self.home.root / f"{self.vmid}.storage"
        self.forward(reply["socket"], local)
        return local

    def export(self, disk: Disk, local: Path) -> None:
        """`pvesm export` straight into the local socket, which is shut down after it."""
        with socket.socket(socket.AF_UNIX) as sink:
            sink.connect(str(local))
            options = ["-with-snapshots", str(int(disk.has_snapshots))]
            self.home.run(
                "mtunnel_tx.pvesm", "export", disk.volid, disk.stream, "-", *options,
                capture_output=False, text=False, stdout=sink.fileno(),
            )  # fmt: skip
            sink.shutdown(socket.SHUT_WR)

    def complete(self) -> str:
        """Query until the import has ended. Returns: the volume there."""
        while True:
            reply = self.ask("query-disk-import")
            if reply.get("msg"):
                self.said.append(reply["msg"])
            if reply["status"] == "complete":
                return str(reply["volid"])
            if reply["status"] == "error":
                raise Failed(reply.get("msg"))

    def send(self, disk: Disk) -> str:
        self.limit()
        self.export(disk, self.start_import(disk))
        return self.complete()

    # -- after

    def define(self, volumes: dict[str, str], firewall: str | None = None) -> None:
        lines = (self.home.guest(self.vmid) or "").splitlines()
        conf = "".join(f"{_moved(line, volumes)}\n" for line in lines if not line.startswith("lock:"))
        self.ask("config", **{"conf": conf, "firewall-config": firewall})

    def finish(self) -> None:
        """Hand over and leave."""
        self.ask("unlock")
        self.ask("quit", cleanup=0)

    def give_up(self) -> None:
        """What a source does after any failure before the start."""
        self.ask("quit", cleanup=1)

    def leave(self) -> str:
        """End the helper. Returns: what it logged."""
        status, errors = self.helper.finish()
        if status:
            raise AssertionError(f"the helper ended with {status}: {errors}")
        return errors

    def close(self) -> None:
        self.helper.close()


def _moved(line: str, volumes: dict[str, str]) -> str:
    key, _, value = line.partition(": ")
    if key not in volumes:
        return line
    return f"{key}: {','.join([volumes[key], *value.split(',')[1:]])}"
