"""A stopped VM's disk goes to another host: by `mtunnel migrate`, and by what people use instead, all over loopback.

Each way is measured from its first command to the last byte on disk there. The CPU time is that of all its processes on
both sides.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.guest import CONFIG, MIB
from bench.live import HERE, THERE
from bench.processes import PATIENCE_S, Trouble, spent_s, started
from bench.secureshell import Shell, shell
from mtunnel_tx.demo.nodes import DemoNode
from mtunnel_tx.errors import TunnelError

GIB = 1024 * MIB
SIZE_BYTES = 2 * GIB
COPY_S = 600.0
MEMORY = Path("/dev/shm")  # noqa: S108 - folders in it are made by tempfile
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_NAME = "vm-100-disk-0.raw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """What one took. cpu_s: of all its processes, on both sides."""

    took_s: float
    cpu_s: float
    size_bytes: int

    @property
    def cpu_s_gib(self) -> float:
        return self.cpu_s * GIB / self.size_bytes


Way = Callable[[Path, int], Copy]
"""Takes an empty folder, and the size of the disk. Raises: Trouble."""


def write_random(file: Path, size_bytes: int) -> None:
    """A disk that nothing can compress."""
    with file.open("wb") as disk:
        for _ in range(size_bytes // (16 * MIB)):
            disk.write(os.urandom(16 * MIB))


def by_mtunnel(folder: Path, size_bytes: int) -> Copy:
    """`mtunnel migrate` of a VM that is off."""
    here, there = DemoNode("here", folder / "a"), DemoNode("there", folder / "b")
    try:
        for node in (here, there):
            node.create()
        there.mtunnel("token", "add", "bench@pve!t1", "--role", "Administrator", "--path", "/")
        (here.images / str(HERE)).mkdir(parents=True)
        source = here.images / str(HERE) / _NAME
        write_random(source, size_bytes)
        (here.guests / f"{HERE}.conf").write_text(CONFIG.format(volume=f"local:{HERE}/{_NAME}"))
        with there.running() as daemon:
            endpoint = there.endpoint(daemon.port)
            order = ("migrate", str(HERE), endpoint, "--target-vmid", str(THERE), "--target-storage", "local")
            copy = _timed(size_bytes, _daemon(there), lambda: here.mtunnel(*order))
        _compare(source, there.images / str(THERE) / f"vm-{THERE}-disk-0.raw")
    except TunnelError as error:
        raise Trouble(error.text) from error
    return copy


def _daemon(node: DemoNode) -> int:
    """The id of the process that listens on its control socket."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(node.folder / "run" / "control.sock"))
        found = caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(found)[0])


def by_rsync(folder: Path, size_bytes: int) -> Copy:
    """`rsync` over ssh, which sees that the bytes are on disk."""
    with _copied(folder, size_bytes) as (source, target), shell(folder) as ssh:
        remote = " ".join(ssh.command)
        argv: list[str | Path] = [
            "rsync",
            "--whole-file",
            "--sparse",
            "--fsync",
            "-e",
            remote,
            source,
            f"{ssh.host}:{target}",
        ]
        return _timed(size_bytes, ssh.pid, lambda: _run(argv))


def by_qemu_img(folder: Path, size_bytes: int) -> Copy:
    """`qemu-img convert` to a `qemu-nbd` there, through a socket that ssh forwards."""
    with _copied(folder, size_bytes) as (source, target), shell(folder) as ssh:
        return _timed(size_bytes, ssh.pid, lambda: _convert(ssh, source, target, folder, size_bytes))


def _convert(ssh: Shell, source: Path, target: Path, folder: Path, size_bytes: int) -> None:
    near, far = folder / "near.sock", folder / "far.sock"
    serve = f"qemu-img create -q -f raw {target} {size_bytes} && exec qemu-nbd --socket={far} --format=raw {target}"
    with started([*ssh.command, "-L", f"{near}:{far}", ssh.host, serve], folder / "nbd.log") as server:
        deadline_s = time.monotonic() + PATIENCE_S
        while not (near.exists() and far.exists()):
            if server.poll() is not None or time.monotonic() > deadline_s:
                raise Trouble("qemu-nbd does not listen")
            time.sleep(0.01)
        _run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, f"nbd+unix:///?socket={near}"])
        server.wait(PATIENCE_S)  # qemu-nbd ends behind its one client


WAYS: dict[str, Way] = {
    "mtunnel": by_mtunnel,
    "rsync over ssh": by_rsync,
    "qemu-img over NBD and ssh": by_qemu_img,
}


def copy_by(way: Way, size_bytes: int = SIZE_BYTES) -> Copy:
    """Raises: Trouble: it cannot be done here, or the copy is another one."""
    with tempfile.TemporaryDirectory(prefix="mtb-", dir=_find_room(size_bytes)) as name:
        return way(Path(name), size_bytes)


def _find_room(size_bytes: int) -> Path | None:
    """Both disks lie in memory where that has room: how long a disk takes to sync would say nothing of the ways."""
    try:
        return MEMORY if shutil.disk_usage(MEMORY).free > 3 * size_bytes else None
    except OSError:
        return None


@contextmanager
def _copied(folder: Path, size_bytes: int) -> Iterator[tuple[Path, Path]]:
    source, target = folder / "here.raw", folder / "there.raw"
    write_random(source, size_bytes)
    yield source, target
    _compare(source, target)


def _timed(size_bytes: int, server: int, copy: Callable[[], object]) -> Copy:
    """Args: server: the process at the other end; what this process starts is ours."""
    os.sync()  # what was written before is no part of it
    there_s, here_s, began_s = spent_s(server), _children_s(), time.monotonic()
    copy()
    took_s = time.monotonic() - began_s
    cpu_s = spent_s(server) - there_s + _children_s() - here_s
    return Copy(took_s=took_s, cpu_s=cpu_s, size_bytes=size_bytes)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(argv: Sequence[str | Path]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COPY_S, check=False)
    if done.returncode:
        raise Trouble(f"{argv[0]}: {done.stderr.strip().rpartition(chr(10))[2]}")


def _compare(source: Path, target: Path) -> None:
    done = subprocess.run(["cmp", source, target], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Trouble(f"the copy is another one: {done.stdout}{done.stderr}")
