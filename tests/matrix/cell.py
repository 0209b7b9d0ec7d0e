"""One running VM on its way from one real node to another, through a proxy, and everything that can be seen of it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from mtunnel_tx.demo.ticker import read_beats, read_ring, ticker
from tests.matrix.insisting import ANSWERS
from tests.matrix.nginx import start_nginx
from tests.matrix.proxy import API, COMMANDS, DISK, MEMORY, Proxy
from tests.matrix.serial import Listener
from tests.matrix.spy import Spy, make_shim, overlap_ms
from tests.patience import patience_s, wait_for
from tests.processes import run_program, started_process
from tests.whole.node import Node

MIB = 1 << 20
RING = 1024
RING_BASE = 2048
DISK_BYTES = 32 * MIB
FILLED = (2 * MIB, 26 * MIB)
"""Random data on the disk, more than the 16 MiB that a mirror asks for before it heeds its limit; what the guest writes
lies before it, and has no blocks yet."""
BALLAST_MIB = 8
LIMIT_KIB_S = 4096
"""Long phases: each stream takes about two seconds."""
_GUEST = """\
boot: order=scsi0
memory: 48
name: ticker
scsi0: local:100/vm-100-disk-0.raw,discard=on,size=32M
scsihw: virtio-scsi-pci
serial0: socket
vga: serial0
"""
HERE, THERE = 100, 200


class Side(Node):
    """A node whose QEMUs are watched."""

    def __init__(self, name: str, shims: Path, park_s: float = 600, restart_s: float | None = None) -> None:
        self.shims = shims
        make_shim(shims)
        workers = "" if restart_s is None else 'workers = 1\nuser = "nobody"\n'
        super().__init__(name, extra=f"{workers}[limits]\npark_s = {park_s}\nrestart_s = {restart_s or 0}")
        self.spies: list[Spy] = []

    @property
    def environ(self) -> dict[str, str]:
        return {**super().environ, "PATH": f"{self.shims}{os.pathsep}{os.environ['PATH']}"}

    def spy(self) -> Spy | None:
        """The newest QEMU's; a new one is watched as soon as somebody asks."""
        known = {spy.pid for spy in self.spies}
        for path in self.shims.glob("*.spy"):
            if int(path.stem) not in known:
                with suppress(OSError):
                    self.spies.append(Spy(path))
        return self.spies[-1] if self.spies else None

    def status(self) -> str:
        """QEMU's own word; `off`."""
        spy = self.spy()
        return spy.status() if spy is not None else "off"

    def journal(self) -> str:
        """The records of the VM that comes."""
        with suppress(FileNotFoundError):
            return (self.state / "journal" / f"{THERE}.jsonl").read_text()
        return ""

    def leaving(self) -> bool:
        """Whether the journal of the VM that goes stands."""
        return (self.state / "journal" / f"source-{HERE}.jsonl").exists()

    def reached(self, record: str) -> bool:
        """Whether the journal has it."""
        return f'"do":"{record}"' in self.journal().replace(": ", ":")

    def kill_machine(self) -> None:
        """SIGKILL, and its end."""
        spy = self.spy()
        assert spy is not None
        os.kill(spy.pid, signal.SIGKILL)
        wait_for("QEMU's death", lambda: spy.gone)

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def disk(self, vmid: int) -> Path:
        return self.storage / "images" / str(vmid) / f"vm-{vmid}-disk-0.raw"


class Cell:
    """Two nodes, a ticking guest on the first one, and `mtunnel migrate --online`."""

    def __init__(
        self,
        *,
        small_disk: bool = False,
        park_s: float = 600,
        restart_s: float | None = None,
        program: str = "mtunnel_tx.cli",
        behind_nginx: bool = False,
    ) -> None:
        self._owner = ExitStack()
        self._program = program
        self.folder = Path(tempfile.mkdtemp(prefix="mx-"))
        self.here, self.there = Side("here", self.folder / "a"), Side("there", self.folder / "b", park_s, restart_s)
        self.mounted: Path | None = None
        if small_disk:
            self._mount()
        self.there.start()
        port = start_nginx(self._owner, self.there) if behind_nginx else self.there.port
        self.proxy = Proxy(port, self._kind, lambda: self.holds())
        self.migration: subprocess.Popen[str] | None = None
        self.said = ""
        self.before = Listener(self.here.runtime / f"{HERE}.serial0")
        self.after = Listener(self.there.runtime / f"{THERE}.serial0")

    def _mount(self) -> None:
        images = self.there.storage / "images"
        images.mkdir(parents=True, exist_ok=True)
        run_program(["mount", "-t", "tmpfs", "-o", "size=64m", "matrix", str(images)])
        self.mounted = images

    def fill(self) -> None:
        """Leave not a block on the target's storage, and be quick: the phase goes on meanwhile."""
        assert self.mounted is not None
        with suppress(OSError), (self.mounted / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(MIB)):
                pass

    def make_room(self) -> None:
        """Give the blocks back."""
        assert self.mounted is not None
        (self.mounted / "filler").unlink()

    def holds(self) -> bool:
        """Whether the source's next command waits in the proxy; a phase replaces it."""
        return False

    def _kind(self) -> str:
        """What a new connection is for, by what has happened before it."""
        if not self.there.journal():
            return API
        if not self.proxy.has(COMMANDS):
            return COMMANDS
        spy = self.here.spy()
        begun = spy is not None and spy.migrated.is_set()  # it cannot be asked while it waits for a connection
        return MEMORY if begun and not self.proxy.has(MEMORY) else DISK

    def boot(self) -> None:
        """A guest with data on its disk that ticks."""
        disk = self.here.disk(HERE)
        disk.parent.mkdir(parents=True)
        with disk.open("wb") as file:
            file.write(ticker(BALLAST_MIB, base=RING_BASE, ring=RING))
            file.seek(FILLED[0])
            file.write(random.Random(1).randbytes(FILLED[1] - FILLED[0]))
            file.truncate(DISK_BYTES)
        self.here.guest_file(HERE).write_text(_GUEST)
        self.here.run("mtunnel_tx.cli", "vm", "start", str(HERE))
        wait_for("QEMU", self.here.spy)
        wait_for("the first beats", lambda: len(self.before.beats) >= 3)

    def migrate(self, *options: str) -> None:
        """Begin; the program runs on its own."""
        endpoint = self.there.endpoint.replace(f"port={self.there.port}", f"port={self.proxy.own_port}")
        argv = [sys.executable, "-m", self._program, "migrate", str(HERE), "--online", "--target-vmid", str(THERE)]
        argv += ["--target-storage", "local", "--bwlimit", str(LIMIT_KIB_S), *options]
        environ = {**self.here.environ, "MTUNNEL_ENDPOINT": endpoint, ANSWERS: str(self.answers)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.migration = started_process(self._owner.callback, argv, env=environ, **pipes)

    @property
    def answers(self) -> Path:
        """Where a source that insists writes what it was told."""
        return self.folder / "answers.json"

    def finish(self) -> int:
        """The migration's exit status; what it said is in `said`."""
        assert self.migration is not None
        out, _ = self.migration.communicate(timeout=patience_s(120))
        self.said += out
        return self.migration.returncode

    def restart_daemon(self) -> None:
        """As systemd would."""
        if not self.there.alive():
            self.there.process = None
            self.there.start()
            self.proxy.port = self.there.port

    def tunnels(self) -> bool:
        return bool(self.there.ask(cmd="status")["tunnels"])

    def held(self) -> bool:
        return str(THERE) in self.there.ask(cmd="status")["held"]

    # -- what is seen

    def overlap_ms(self) -> float:
        """For how long guests ran on both sides."""
        spans = [[span for spy in side.spies for span in spy.all_spans()] for side in (self.here, self.there)]
        return overlap_ms(*spans)

    def beats(self) -> tuple[list[int], list[int]]:
        """Everything that both serial ports said. Raises: AssertionError: the guest found its memory or disk wrong."""
        flags = {flag for listener in (self.before, self.after) for _, flag in read_beats(listener.text)}
        assert flags <= {"."}, f"the guest says {flags}"
        first, second = ([number for number, _ in listener.beats] for listener in (self.before, self.after))
        return first, second

    def lost(self) -> tuple[int, int]:
        """Beats that nobody saw, and beats that were seen twice; a line may begin here and end there."""
        self.beats()
        numbers = [number for number, _ in read_beats(self.before.text + self.after.text)]
        return max(numbers) - min(numbers) + 1 - len(set(numbers)), len(numbers) - len(set(numbers))

    def ring(self, side: Side, vmid: int) -> str:
        """Whether the guest's writes are all there, on a side whose guest does not write now."""
        ring = read_ring(side.disk(vmid).read_bytes(), base=RING_BASE, ring=RING)
        newest = max(number for numbers in self.beats() for number in numbers)
        if not ring or ring != list(range(max(1, ring[-1] - RING + 1), ring[-1] + 1)):
            return f"holes in {ring[:3]}…{ring[-3:]}"
        return "whole" if ring[-1] >= newest else f"{newest - ring[-1]} behind"

    def data(self, side: Side, vmid: int) -> bool:
        """Whether what the guest never wrote is as it was."""
        with side.disk(vmid).open("rb") as file:
            file.seek(FILLED[0])
            return file.read(FILLED[1] - FILLED[0]) == random.Random(1).randbytes(FILLED[1] - FILLED[0])

    # -- the end

    def close(self) -> None:
        """End and remove everything; the nodes see that nothing is left."""
        self._owner.close()
        self.proxy.close()
        for listener in (self.before, self.after):
            listener.stopped = True
        for side in (self.here, self.there):
            self._end_machines(side)
        self._unmount()
        try:
            self.there.close()
        finally:
            self.here.close()
            shutil.rmtree(self.folder)

    def _end_machines(self, side: Side) -> None:
        side.spy()
        for spy in side.spies:
            if not spy.gone:
                with suppress(ProcessLookupError):
                    os.kill(spy.pid, signal.SIGKILL)
                wait_for("QEMU's end", lambda spy=spy: spy.gone)
        for path in side.runtime.glob("[0-9]*.*"):
            path.unlink(missing_ok=True)

    def _unmount(self) -> None:
        """Before the node removes its folder; in a moment nobody has a file open there any more."""
        if self.mounted is not None:
            mounted, self.mounted = self.mounted, None
            command = ["umount", str(mounted)]
            wait_for("the end of a mount", lambda: run_program(command, check=False).returncode == 0)
