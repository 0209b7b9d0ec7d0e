"""Storages and their children in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.ports.storage import ImportRequest, Volume
from mtunnel_tx.pve.imagefile import ImageFacts
from mtunnel_tx.pve.storagecfg import parse_storage_config
from mtunnel_tx.pve.storagetypes import PROXMOX_STREAMS

STORAGES = """\
dir: local
\tpath /var/lib/vz
\tcontent images,iso

dir: nodisks
\tpath /nodisks
\tcontent iso

dir: off
\tpath /off
\tdisable

dir: othernode
\tpath /other
\tnodes someothernode

lvmthin: thin
\tvgname pve
\tthinpool data
\tcontent images
"""


class FakeChild:
    """A child whose lines and end the test decides."""

    pid = 4711
    name = ""
    taken = 0

    def __init__(self, clock: Clock, *lines: str) -> None:
        self.lines = deque(lines)
        self.code: int | None = None
        self.killed = self.let_go = False
        self._clock = clock
        self._waiting: list[Deferred[int]] = []

    async def next_line(self, wait_s: float) -> str | None:
        if not self.lines and self.code is None:
            waiter: Deferred[None] = Deferred()
            self._clock.callLater(wait_s, waiter.callback, None)
            await waiter
        return self.lines.popleft() if self.lines else None

    def exhausted(self) -> bool:
        return self.code is not None and not self.lines

    async def ended(self) -> int:
        if self.code is None:
            waiter: Deferred[int] = Deferred()
            self._waiting.append(waiter)
            await waiter
        assert self.code is not None
        return self.code

    def exit(self, code: int) -> None:
        self.code = code
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(code)

    async def kill(self) -> None:
        self.let_go = True
        if self.code is None:
            self.killed = True
            self.exit(-9)


class FakeStorage:
    def __init__(self, events: list[str], clock: Clock) -> None:
        self.events = events
        self.clock = clock
        self.sizes: dict[str, int] = {}
        self.broken: set[str] = set()
        self.references: dict[str, str] = {}
        self.unwritable: dict[str, str] = {}
        self.child: FakeChild | None = None
        self.next_children: deque[FakeChild] = deque()
        self.requests: list[ImportRequest] = []
        self.alloc_error: TunnelError | None = None
        self.free_bytes: int | None = None

    stream_formats = frozenset(PROXMOX_STREAMS)
    converts = False

    def config(self) -> Mapping[str, Any]:
        return parse_storage_config(STORAGES)

    def datacenter_bwlimit(self) -> str | None:
        return None

    async def alloc(self, storage: str, vmid: int, size_bytes: int, format: str, report: Any, *, name: str = "") -> str:
        volid = f"{storage}:{vmid}/vm-{vmid}-disk-{len(self.sizes)}.{format}"
        self.events.append(f"alloc {volid}")
        if self.alloc_error is not None:
            raise self.alloc_error
        self.sizes[volid] = size_bytes
        return volid

    async def free(self, volid: str) -> None:
        self.events.append(f"free {volid}")
        if volid in self.broken or volid not in self.sizes:
            raise BackendFailed(f"cannot free {volid}")
        del self.sizes[volid]

    async def volumes(self, storage: str, vmid: int | None = None) -> list[Volume]:
        return [
            Volume(volid=volid, format="raw", content="images", size_bytes=size, vmid=vmid)
            for volid, size in self.sizes.items()
            if volid.startswith(f"{storage}:{vmid}/")
        ]

    async def why_unwritable(self, storage: str, vmid: int) -> str | None:
        return self.unwritable.get(storage)

    async def path(self, volid: str) -> str:
        return "/" + volid

    async def size_bytes(self, volid: str) -> int | None:
        return self.sizes.get(volid)

    async def refers_elsewhere(self, volid: str) -> str | None:
        return self.references.get(volid)

    async def image_facts(self, volid: str) -> ImageFacts | None:
        return ImageFacts(format="raw", size_bytes=self.sizes.get(volid, 0), elsewhere=self.references.get(volid))

    async def digest(self, volid: str, *, content: bool = False) -> str:
        return ("cc" if content else "00") * 32

    async def sync(self, volids: Any) -> None:
        self.events.append(f"sync {','.join(volids)}")

    def start_import(self, request: ImportRequest) -> FakeChild:
        self.events.append(f"import {request.volid}")
        self.requests.append(request)
        self.child = self.next_children.popleft() if self.next_children else FakeChild(self.clock, "ready\n")
        return self.child

    def start_export(self, volid: str, stream_format: str, *, with_snapshots: bool, stdout: int) -> FakeChild:
        raise AssertionError("a receiver exports nothing")

    async def end_orphans(self, but=()) -> None:
        self.events.append("end orphans")

    async def available_bytes(self, storage: str) -> int | None:
        return self.free_bytes
