"""A storage whose exports are real processes, and watchers that remember."""

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path

from mtunnel_tx.backends.child import spawn_child
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.extents import measure_extents
from mtunnel_tx.pve.imagefile import ImageFacts
from mtunnel_tx.pve.storagecfg import parse_storage_config
from mtunnel_tx.pve.storagetypes import PROXMOX_STREAMS

EXPORT = """
import struct, sys
data = open(sys.argv[1], "rb").read()
out = sys.stdout.buffer
out.write(struct.pack("<Q", int(sys.argv[2])) + data)
out.flush()
if sys.argv[3] == "hang":
    sys.stderr.write("hanging\\n"); sys.stderr.flush()
    import time; time.sleep(600)
if sys.argv[3] == "fail":
    sys.stderr.write("dd: error reading 'x': Input/output error\\n")
    sys.exit(1)
"""


class FolderStorage:
    """ports.Storage on a folder, as far as a source needs it."""

    def __init__(self, reactor, folder: Path, limit=""):
        self.reactor = reactor
        self.folder = folder
        self.mode = "well"
        self.children = []
        self.freed = []
        self.backing = {}
        self.damaged = {}
        self.facts = {}
        self.written = {}
        self.stuck = set()
        self.entries = parse_storage_config(f"dir: local\n\tpath {folder}\n\tcontent images,iso\n{limit}\n")

    def add(self, name, data):
        path = self._path(f"local:{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def _path(self, volid):
        return self.folder / "images" / volid.partition(":")[2]

    stream_formats = frozenset(PROXMOX_STREAMS)
    converts = False

    def config(self):
        return self.entries

    async def extents(self, volid):
        with self._path(volid).open("rb") as file:
            return measure_extents(file.fileno(), os.fstat(file.fileno()).st_size)

    def datacenter_bwlimit(self):
        return None

    async def path(self, volid):
        return str(self._path(volid))

    async def size_bytes(self, volid):
        path = self._path(volid)
        return path.stat().st_size if path.exists() else None

    async def image_facts(self, volid):
        facts = self.facts.get(volid, ImageFacts(format="raw", size_bytes=0))
        return replace(facts, elsewhere=self.backing.get(volid))

    async def verify(self, volid):
        if volid in self.damaged:
            raise BackendFailed(f"'pvesm verify' failed with exit code 255: {self.damaged[volid]}")

    async def written_bytes(self, volid):
        return self.written.get(volid)

    async def extend(self, volid, size_bytes):
        path = self._path(volid)
        if path.exists() and path.stat().st_size < size_bytes:
            os.truncate(path, size_bytes)

    async def digest(self, volid, *, content=False):
        return hashlib.sha256(b"content of " * content + self._path(volid).read_bytes()).hexdigest()

    async def free(self, volid):
        if volid in self.stuck:
            raise BackendFailed("busy")
        self.freed.append(volid)
        self._path(volid).unlink()

    def start_export(self, volid, stream_format, *, with_snapshots, stdout):
        path = self._path(volid)
        argv = [sys.executable, "-c", EXPORT, str(path), str(path.stat().st_size), self.mode]
        child = spawn_child(self.reactor, argv, dict(os.environ), stdout=stdout)
        self.children.append((child, volid, stream_format, with_snapshots))
        return child


class Watcher:
    """links.ProgressListener that remembers."""

    def __init__(self):
        self.said = []
        self.warned = []
        self.begun = []
        self.resized = []
        self.moved = 0
        self.finished = 0
        self.told = []
        self.report = None

    def say(self, text):
        self.said.append(text)

    def warn(self, text):
        self.said.append(text)
        self.warned.append(text)

    def begin(self, label, total_bytes):
        self.begun.append((label, total_bytes))

    def advance(self, label, size_bytes):
        self.moved += size_bytes

    def resize(self, label, total_bytes):
        self.resized.append((label, total_bytes))

    def finish(self, label):
        self.finished += 1

    def tell(self, event):
        self.told.append(event)

    def connect(self, report):
        self.report = report

    def disconnect(self):
        self.report = None
