"""A stopped VM on its way: a raw disk, a qcow2 disk with a snapshot, a new disk, a firewall; and what is there then."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.leaks import is_kept
from tests.patience import patience_s, wait_for
from tests.processes import run_program
from tests.whole.node import Node
from tests.whole.peer import Tunnel, Websocket

RAW = bytes(range(256)) * 1024
SIZE_BYTES = len(RAW)
FIREWALL = "[OPTIONS]\n\nenable: 1\n\n"
Import = dict[str, Any]


def make_qcow2() -> bytes:
    """An image with data and a snapshot in it."""
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/disk.qcow2"
        for argv in (
            ["qemu-img", "create", "-q", "-f", "qcow2", file, str(SIZE_BYTES)],
            ["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 64k", file],
            ["qemu-img", "snapshot", "-c", "before", file],
            ["qemu-io", "-f", "qcow2", "-c", "write -q -P 8 64k 64k", file],
        ):
            run_program(argv, capture_output=True)
        return Path(file).read_bytes()


def import_line(vmid: int, number: int, format: str) -> Import:
    return {
        "cmd": "disk-import",
        "volname": f"vm-{vmid}-disk-{number}.{format}",
        "format": format,
        "export_formats": "qcow2+size" if format == "qcow2" else "raw+size",
        "storage": "local",
        "migration_snapshot": 0,
        "with_snapshots": int(format == "qcow2"),
        "allow_rename": 1,
    }


class Move:
    """One migration, step by step; `STEPS` names the steps in order."""

    STEPS = ("version", "raw", "qcow2", "disk", "config", "unlock", "quit")
    GIVEN_UP = STEPS.index("unlock")

    def __init__(self, node: Node, vmid: int, image: bytes) -> None:
        self.node = node
        self.vmid = vmid
        self.image = image
        self.volumes: list[str] = []
        self.tunnel = Tunnel(node, vmid, storages="local", bridges="")

    def run(self, *steps: str) -> None:
        for step in steps:
            getattr(self, step)()

    def ask(self, **request: Any) -> dict[str, Any]:
        reply = self.tunnel.ask(**request)
        assert reply["success"] is True, reply
        return reply

    def version(self) -> None:
        self.ask(cmd="version")

    def begin(self, format: str) -> Websocket:
        """An import that waits for its stream."""
        socket = self.ask(**import_line(self.vmid, len(self.volumes), format))["socket"]
        stream = self.tunnel.stream(socket)
        assert stream.answer == 101, stream.answer
        return stream

    def payload(self, format: str) -> bytes:
        return struct.pack("<Q", SIZE_BYTES) + (RAW if format == "raw" else self.image)

    def feed(self, format: str) -> None:
        stream = self.begin(format)
        stream.send(self.payload(format))
        stream.send_close()
        stream.drop()

    def finish(self) -> None:
        reply: dict[str, Any] = {"status": "pending"}
        while reply["status"] == "pending":
            reply = self.ask(cmd="query-disk-import")
        assert reply["status"] == "complete", reply
        self.volumes.append(reply["volid"])

    def raw(self) -> None:
        self.feed("raw")
        self.finish()

    def qcow2(self) -> None:
        self.feed("qcow2")
        self.finish()

    def disk(self) -> None:
        drive = {"interface": "scsi", "index": 2, "size": SIZE_BYTES}
        self.volumes.append(self.ask(cmd="disk", storage="local", format="raw", drive=drive)["volid"])

    def config(self) -> None:
        drives = "".join(f"scsi{number}: {volid}\n" for number, volid in enumerate(self.volumes))
        self.ask(cmd="config", conf=f"memory: 512\nname: moved\n{drives}", **{"firewall-config": FIREWALL})

    def unlock(self) -> None:
        self.ask(cmd="unlock")

    def quit(self) -> None:
        self.ask(cmd="quit", cleanup=0)

    def leave(self) -> None:
        self.tunnel.leave()
        wait_for("the end of the tunnel", lambda: not self.node.ask(cmd="status")["tunnels"])

    def drop(self) -> None:
        """A source that is gone without a word."""
        self.tunnel.commands.drop()


def state_of(node: Node, vmid: int) -> dict[str, Any]:
    """Everything that a tunnel of this VM may have left on the node."""
    folder = next(iter(node.root.glob(f"**/images/{vmid}")), None)
    images = {path.name: path.read_bytes() for path in folder.iterdir()} if folder else None
    return {
        "config": node.guest(vmid),
        "firewall": node.firewall(vmid),
        "images": images,
        "sockets": sorted(path.name for path in node.runtime.glob("*") if path.is_socket()),
        "journals": sorted(path.name for path in node.state.glob("journal/*")),
        "temporary": sorted(path.name for path in node.root.rglob("*.tmp.*")),
        "locked": is_locked(node, vmid),
        "processes": [pid for pid in processes_of(node) if node.process is None or pid != node.process.pid],
        "held": node.ask(cmd="status")["held"] if node.process else None,
        "tasks": sorted({text.rsplit("\n", 2)[-2] for text in task_logs(node, vmid)}),
    }


def nothing(*tasks: str) -> dict[str, Any]:
    """The state after a migration that was rolled back."""
    return {
        "config": None,
        "firewall": None,
        "images": None,
        "sockets": ["control.sock"],
        "journals": [],
        "temporary": [],
        "locked": False,
        "processes": [],
        "held": {},
        "tasks": sorted(tasks),
    }


def moved(vmid: int, image: bytes, *tasks: str) -> dict[str, Any]:
    """The state after a migration that came to its end, or far enough."""
    names = [f"vm-{vmid}-disk-0.raw", f"vm-{vmid}-disk-1.qcow2", f"vm-{vmid}-disk-2.raw"]
    drives = "".join(f"scsi{n}: local:{vmid}/{name},size={SIZE_BYTES >> 10}K\n" for n, name in enumerate(names))
    return {
        **nothing(*tasks),
        "config": f"memory: 512\nname: moved\n{drives}",
        "firewall": FIREWALL,
        "images": dict(zip(names, (RAW, image, bytes(SIZE_BYTES)), strict=True)),
    }


def task_logs(node: Node, vmid: int) -> Iterator[str]:
    for path in node.state.glob(f"tasks/?/UPID:*:qmtunnel:{vmid}:*"):
        yield path.read_text()


def is_locked(node: Node, vmid: int) -> bool:
    """Whether somebody holds the flock of the VM's config."""
    for path in node.runtime.glob(f"lock/lock-{vmid}.conf"):
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def processes_of(node: Node) -> list[int]:
    """Every process that was started for this node, however deep, but for storage programs that the daemon keeps."""
    word = f"MTUNNEL_CONFIG={node.config}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                marked = word in (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if marked and not is_kept(command):
                found.append(int(folder.name))
    return found


def reboot(node: Node) -> None:
    """What a machine's end and start leave: no process, an empty runtime directory."""
    for pid in processes_of(node):
        os.kill(pid, signal.SIGKILL)
    wait_for("the end of all processes", lambda: not processes_of(node))
    if node.process is not None:
        node.process.wait(patience_s())
        node.process = None
    run_program(["find", str(node.runtime), "-mindepth", "1", "-delete"])


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """What a daemon with workers has besides: its holder's socket, and processes."""
    return {"sockets": ["control.sock", "hold.sock"], "processes": found["processes"]}
