"""`mtunnel demo`: make two nodes in a temporary folder, move VMs between them, compare, and remove everything."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mtunnel_tx.demo.live import move_running
from mtunnel_tx.demo.nodes import DemoNode, mtunnel_command, require_programs, run_command, started
from mtunnel_tx.errors import BackendFailed, TunnelError

MIB = 1 << 20
RAW_BYTES = 1 << 30
SNAPSHOT = "before"
SLOW_KIB_S = 6144
"""So that somebody who watches sees something: about ten seconds."""
TOKEN = "mig@pve!demo"  # noqa: S105 - a name

_GUEST = """\
#Made by mtunnel demo
boot: order=scsi0
cores: 2
memory: 2048
name: demo
net0: virtio=BC:24:11:00:00:64
ostype: l26
scsi0: local:100/vm-100-disk-0.raw,size=1G
scsi1: local:100/vm-100-disk-1.qcow2,size=256M
scsihw: virtio-scsi-single
"""


def run_demo(data_mib: int, *, wait: bool = False) -> int:
    """Run the whole demonstration.

    Args: data_mib: random data on the first disk. wait: hold for somebody who looks at the status page.
    Returns: the exit status.
    """
    show = Show(Console(highlight=False))
    with _signals_raise(), tempfile.TemporaryDirectory(prefix="mtunnel-demo-") as folder:
        try:
            good = _tell(show, Path(folder), data_mib, wait=wait)
        except TunnelError as error:
            print(f"mtunnel demo: {error.text}", file=sys.stderr)
            good = False
    show.line("Both nodes, their processes and files are gone again.")
    show.verdict(good)
    return 0 if good else 1


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, so that they clean up as Ctrl-C does."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Show:
    """Prints boxes on a terminal, and plain lines everywhere else."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def heading(self, text: str) -> None:
        """Begin a step."""
        if self._console.is_terminal:
            self._console.rule(Text(text, style="bold"), align="left")
        else:
            self.line(f"\n== {text}")

    def line(self, text: str) -> None:
        """Print a line as it is: rich does not read its brackets as markup."""
        self._console.print(Text(text), soft_wrap=True)
        # A child writes to the same standard output next.
        self._console.file.flush()

    def text(self, title: str, text: str) -> None:
        """Print the content of a file."""
        if self._console.is_terminal:
            self._console.print(Panel(Text(text.rstrip()), title=title, title_align="left"))
        else:
            self.line(f"{title}:\n{text.rstrip()}")

    def hold(self, text: str) -> None:
        """Wait until somebody presses Enter; where there is nobody, go on."""
        self.line(text)
        sys.stdin.readline()

    def table(self, table: Table) -> None:
        """Print a table."""
        self._console.print(table)

    def verdict(self, good: bool) -> None:
        """Print how the demonstration ended."""
        text, style = ("The VM arrived, every disk is the same.", "green") if good else ("It failed.", "red")
        self._console.print(Text(text, style=f"bold {style}"))


def _tell(show: Show, folder: Path, data_mib: int, *, wait: bool) -> bool:
    require_programs("qemu-img", "qemu-io")
    here, there = DemoNode("node-a", folder / "a"), DemoNode("node-b", folder / "b")
    show.heading("Two nodes")
    for node in (here, there):
        node.create()
        show.line(f"{node.name}: {node.config}")
    show.line(f"node-a has VM 100 with two disks, {data_mib} MiB of random data on the first")
    make_guest(here, data_mib)
    there.mtunnel("token", "add", TOKEN, "--role", "Administrator", "--path", "/")
    with there.running() as daemon:
        address, pid = daemon.status["listening"][0], daemon.status["pid"]
        show.line(f"node-b listens on {address}: twistd mtunnel, pid {pid}")
        if not _migrate(show, here, there.endpoint(daemon.port)):
            show.text("daemon.log of node-b", (there.folder / "daemon.log").read_text(errors="replace"))
            return False
        good = _compare(show, here, there)
        show.heading("A running VM")
        _tell_page(show, there, wait=wait)
        good = move_running(show.line, here, daemon, SLOW_KIB_S if wait else None) and good
        if wait:
            show.hold("Press Enter to end node-b, and to remove everything.")
        return good


def _tell_page(show: Show, node: DemoNode, *, wait: bool) -> None:
    """Where one can watch; nobody has to."""
    show.line(f"watch it arrive, the link logs in once: {node.page_link()}")
    if wait:
        show.hold("Open it (the browser warns of a certificate that node-b made itself), then press Enter.")
    else:
        show.line("mtunnel demo --wait holds here, and moves it slowly")


def make_guest(node: DemoNode, data_mib: int) -> None:
    """Make VM 100: a sparse raw disk, and a qcow2 disk that was written to after its snapshot."""
    folder = node.images / "100"
    folder.mkdir(parents=True)
    _write_sparsely(folder / "vm-100-disk-0.raw", data_mib)
    disk = str(folder / "vm-100-disk-1.qcow2")
    run_command(["qemu-img", "create", "-q", "-f", "qcow2", disk, "256M"], os.environ)
    run_command(["qemu-io", "-c", "write -q -P 0x61 1M 12M", disk], os.environ)
    run_command(["qemu-img", "snapshot", "-c", SNAPSHOT, disk], os.environ)
    run_command(["qemu-io", "-c", "write -q -P 0x62 5M 12M", disk], os.environ)
    (node.guests / "100.conf").write_text(_GUEST)


def _write_sparsely(file: Path, data_mib: int) -> None:
    """Write random data in pieces of a MiB, spread evenly over the disk."""
    with file.open("wb") as disk:
        disk.truncate(RAW_BYTES)
        for piece in range(data_mib):
            disk.seek(RAW_BYTES // MIB * piece // data_mib * MIB)
            disk.write(os.urandom(MIB))


def _migrate(show: Show, node: DemoNode, endpoint: str) -> bool:
    """Run `mtunnel migrate`; it prints to our own standard output. Returns: whether it succeeded."""
    order = ["migrate", "100", "--target-vmid", "200", "--target-storage", "local"]
    show.heading("The migration")
    show.line(f"mtunnel {' '.join(order)}   (with the endpoint in $MTUNNEL_ENDPOINT)")
    began = time.monotonic()
    environment = {**node.environment(), "MTUNNEL_ENDPOINT": endpoint}
    with started([*mtunnel_command(), *order], environment) as process:
        status = process.wait()
    show.line(f"exit status {status} after {time.monotonic() - began:.1f} s")
    return status == 0


def _compare(show: Show, here: DemoNode, there: DemoNode) -> bool:
    guest = (there.guests / "200.conf").read_text()
    show.heading("What node-b has now")
    show.text("200.conf", guest)
    show.text("Task log", there.task_log())
    show.heading("The disks of both sides")
    rows = list(_compare_disks((here.guests / "100.conf").read_text(), guest, here, there))
    show.table(_table(rows))
    return all(before == after for _, _, before, after in rows) and "\nlock:" not in f"\n{guest}"


Row = tuple[str, str, str, str]


def _compare_disks(sent: str, received: str, here: DemoNode, there: DemoNode) -> Iterator[Row]:
    """Yields: drive, content or snapshot, SHA-256 at the source, SHA-256 at the target."""
    for key, volid in volumes(sent).items():
        other = volumes(received).get(key)
        if other is None:
            raise BackendFailed(f"{key} is missing in the config of {there.name}")
        file, copy = here.volume_file(volid), there.volume_file(other)
        for what, digest in _views(file).items():
            yield key, what, digest(file), digest(copy)


def volumes(guest: str) -> dict[str, str]:
    """Returns: the volumes of a VM config's drives."""
    return dict(re.findall(r"^(scsi\d+): ([^,\s]+)", guest, re.MULTILINE))


def _views(file: Path) -> Mapping[str, Callable[[Path], str]]:
    """Returns: how to hash the content of a disk, and that of its snapshot, by name."""
    if file.suffix == ".raw":
        return {"content": _digest}
    return {"content": _qcow2_digest, f"snapshot '{SNAPSHOT}'": lambda image: _qcow2_digest(image, SNAPSHOT)}


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _qcow2_digest(image: Path, snapshot: str | None = None) -> str:
    """The SHA-256 of what a guest would read."""
    flat = image.with_suffix(".flat")
    choice = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
    try:
        run_command(["qemu-img", "convert", *choice, "-f", "qcow2", "-O", "raw", str(image), str(flat)], os.environ)
        return _digest(flat)
    finally:
        flat.unlink(missing_ok=True)


def _table(rows: list[Row]) -> Table:
    table = Table("drive", "what", "SHA-256 on node-a", "SHA-256 on node-b", "", box=None, pad_edge=False)
    for key, what, before, after in rows:
        table.add_row(key, what, f"{before[:16]}…", f"{after[:16]}…", "same" if before == after else "DIFFERENT")
    return table
