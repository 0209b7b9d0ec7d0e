"""The real mtunnel-pvesm as a process, on a storage in a temporary directory."""

import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.patience import patience_s, tries
from tests.processes import run_program, started_process

MIB = 1 << 20
CFG = """\
dir: local
\tpath {root}/local
\tcontent images,iso,snippets,backup

dir: nodisks
\tpath {root}/nodisks
\tcontent iso

dir: off
\tpath {root}/off
\tdisable 1

dir: othernode
\tpath {root}/othernode
\tnodes someothernode

dir: eager
\tpath {root}/eager
\tpreallocation falloc

dir: unmounted
\tpath {root}/unmounted
\tis_mountpoint 1

dir: absent
\tpath {root}/absent
\tcreate-base-path 0

zfspool: tank
\tpool tank
"""


def header(size_bytes: int) -> bytes:
    return struct.pack("<Q", size_bytes)


@dataclass
class Done:
    """What a run printed, and its exit code."""

    code: int
    out: str
    err: str


class PvesmCase(SynchronousTestCase):
    """Has a storage.cfg, a configuration file and the program."""

    def setUp(self):
        self.root = Path(tempfile.mkdtemp(prefix="pvesm-"))
        self.addCleanup(shutil.rmtree, self.root)
        (self.root / "state/pve").mkdir(parents=True)
        (self.root / "run").mkdir(mode=0o700)
        (self.root / "state/pve/storage.cfg").write_text(CFG.format(root=self.root))
        config = self.root / "mtunnel.toml"
        config.write_text(
            f'node = "pvetest"\nstate_dir = "{self.root}/state"\nruntime_dir = "{self.root}/run"\n', encoding="utf-8"
        )
        self.env = {**os.environ, "MTUNNEL_CONFIG": str(config), "PYTHONPATH": str(Path(__file__).parents[2])}
        self.images = self.root / "local/images"
        self.socket = self.root / "x.sock"

    def start(self, *words, **options):
        argv = [sys.executable, "-m", "mtunnel_tx.pvesm", *map(str, words)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        options["env"] = {**self.env, **options.get("env", {})}
        return started_process(self.addCleanup, argv, **options)

    def pvesm(self, *words, given=b"", **options) -> Done:
        process = self.start(*words, stdin=subprocess.PIPE, **options)
        out, err = process.communicate(given, timeout=patience_s())
        return Done(process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))

    def import_socket(self, *words, payload, **options) -> Done:
        """Run an import on a socket, and feed it."""
        process = self.start("import", *words, **options)
        self.assertEqual(process.stdout.readline(), b"ready\n")
        with self.connect() as connection:
            feeder = threading.Thread(target=self._feed, args=(connection, payload))
            feeder.start()
            out, err = process.communicate(timeout=patience_s())
            feeder.join()
        return Done(process.returncode, out.decode(), err.decode())

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        self.addCleanup(connection.close)
        connection.connect(str(self.socket))
        return connection

    @staticmethod
    def _feed(connection, payload):
        """A refused stream is a broken pipe here."""
        try:
            connection.sendall(payload)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def until(self, condition):
        """Wait for something that a process does; returns what it gives once that is true."""
        for _ in tries("what a process does"):
            if found := condition():
                return found
            os.sched_yield()
        raise AssertionError("not reached")

    def url(self) -> str:
        return f"unix://{self.socket}"

    def tree(self) -> list[str]:
        """All files and folders of the storage `local`, hidden ones included."""
        root = self.root / "local"
        return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path != root / "images")

    def qemu_img(self, *words) -> str:
        return run_program(["qemu-img", *map(str, words)], capture_output=True, text=True).stdout

    def qcow2(self, name="source.qcow2", size_bytes=10 * MIB, snapshots=("snap1",), data=b"guest data " * 500) -> Path:
        """An image with some content, and a snapshot of other content."""
        path = self.root / name
        self.qemu_img("create", "-f", "qcow2", "-o", "preallocation=metadata", path, size_bytes)
        for number, snapshot in enumerate(snapshots):
            self._write(path, 65536 * (number + 1), b"old" + data)
            self.qemu_img("snapshot", "-c", snapshot, path)
        self._write(path, 0, data)
        return path

    def _write(self, path, offset, data):
        with tempfile.NamedTemporaryFile(dir=self.root) as file:
            file.write(data)
            file.flush()
            words = f"write -s {file.name} {offset} {len(data)}"
            run_program(["qemu-io", "-f", "qcow2", "-c", words, path], capture_output=True)
