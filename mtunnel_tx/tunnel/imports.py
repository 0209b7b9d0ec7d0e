"""One disk import: a `pvesm import` child, the flow that brings the image to it, and the volume that it makes."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BackendFailed, TunnelError
from mtunnel_tx.ports.journal import TaskLog
from mtunnel_tx.ports.storage import Child, ImportRequest
from mtunnel_tx.pve.volume import parse_volume_id
from mtunnel_tx.tunnel.checks import known_storage, refuse_foreign
from mtunnel_tx.tunnel.ownership import Ownership
from mtunnel_tx.tunnel.services import Services
from mtunnel_tx.waiting import Task
from mtunnel_tx.wire.importlines import explain_failure

log = Logger()
LAST_LINES = 3
"""Of a failed import's output these are its reason."""
_SUCCESS = re.compile(r"successfully imported '(.+)'\n?")


class EndedChild:
    """A child that has ended well, and that nobody remembers any more (ports.Child)."""

    pid = 0

    def __init__(self, name: str, taken: int) -> None:
        self.name = name
        self.taken = taken

    async def next_line(self, _wait_s: float) -> str | None:
        """See ports.Child."""
        return None

    def exhausted(self) -> bool:
        """See ports.Child."""
        return True

    async def ended(self) -> int:
        """See ports.Child."""
        return 0

    async def kill(self) -> None:
        """See ports.Child."""


class ImportJob:
    """One import; it is over once `query` has returned how it ended.

    `made`: the volume, once the child has named it.
    """

    def __init__(self, services: Services, own: Ownership, task: TaskLog, request: ImportRequest, vmid: int) -> None:
        self._services = services
        self._own = own
        self._task = task
        self._request = request
        self._vmid = vmid
        self._storage = parse_volume_id(request.volid).storage
        self._child: Child | None = None
        self._said: deque[str] = deque(maxlen=LAST_LINES)
        self._end: Task | None = None
        self.made: str | None = None
        self.over = False

    @property
    def pid(self) -> int:
        """The child's process id; 0 before it runs."""
        return self._child.pid if self._child else 0

    async def start(self) -> None:
        """Run the child up to its `ready`. Raises: TunnelError: its own first line, or that it said nothing."""
        await self._own.will_make(self._storage)
        self._request.socket.unlink(missing_ok=True)
        self._child = self._services.storage.start_import(self._request)
        line = await self._child.next_line(self._services.limits.ready_s)
        if line is None or line.rstrip("\n") != "ready":
            await self.cancel()
            raise BackendFailed(line.rstrip("\n") if line else "disk import did not become ready in time")
        self._task.line(line)

    def snapshot(self) -> Mapping[str, Any] | None:
        """What another daemon needs to go on with it; None: it is over, or ends with this one."""
        if self.over or self._child is None or not self._child.name:
            return None
        request = {**asdict(self._request), "socket": str(self._request.socket)}
        return {"request": request, "name": self._child.name, "taken": self._child.taken, "made": self.made}

    def go_on(self, child: Child, made: str | None) -> None:
        """Begin where an earlier daemon has ended. Args: made: the volume, if the child has named it."""
        self._child = child
        if made is not None:
            self.made = made
            self._end = Task(self._succeed(made))

    async def query(self) -> dict[str, Any]:
        """Wait `limits.query_s` for the child's next line or its end (protocol.md section 8.5). Returns: the reply."""
        wait_s = self._services.limits.query_s
        if self._end is None:
            line = await self._next_line(wait_s)
            if self._end is None:
                return {"status": "pending", "msg": line}
        assert self._end is not None
        if not await self._end.wait(self._services.clock, wait_s):
            return {"status": "pending", "msg": ""}
        self.over = True
        if self._child is not None:
            await self._child.kill()  # the next daemon does not need its end any more
        return dict(await self._end.result())

    async def _next_line(self, wait_s: float) -> str:
        assert self._child is not None
        line = await self._child.next_line(wait_s)
        if line is None:
            if self._child.exhausted():
                self._end = Task(self._fail())
            return ""
        self._task.line(f"disk-import: {line}")
        self._said.append(line)
        if success := _SUCCESS.fullmatch(line):
            self.made = success[1]
            self._end = Task(self._succeed(success[1]))
        return line

    async def _succeed(self, volid: str) -> Mapping[str, Any]:
        assert self._child is not None
        self._check_name(volid)
        if await self._child.ended() != 0:
            return await self._fail()
        self._request.socket.unlink(missing_ok=True)
        if volid not in self._own.volumes:  # an earlier daemon may have got so far
            await self._own.has_made(self._storage, volid)
        await self._refuse_references(volid)
        await self._services.storage.sync([volid])
        return {"status": "complete", "volid": volid}

    async def _fail(self) -> Mapping[str, Any]:
        await self.cancel()
        return {"status": "error", "msg": f"{clean(explain_failure(self._said))}\n"}

    def _check_name(self, volid: str) -> None:
        volume = parse_volume_id(volid)
        if volume.storage != self._storage:
            raise BackendFailed(f"import made '{volid}' on another storage")
        refuse_foreign(known_storage(self._services, volume.storage), volume, self._vmid)

    async def _refuse_references(self, volid: str) -> None:
        reason = await self._services.storage.refers_elsewhere(volid)
        if reason is not None:
            await self._own.give_back(volid)
            raise TunnelError(reason)

    async def stream_ended(self, orderly: bool) -> None:
        """The flow is over; if it was not by a Close frame, kill the child before it can take a part for the whole."""
        if not orderly and self._child is not None and self._end is None:
            await self._child.kill()

    async def kill(self) -> None:
        """End the child and remove its socket; the volume is not freed."""
        self.over = True
        if self._child is not None:
            await self._child.kill()
            await self._child.ended()
        self._request.socket.unlink(missing_ok=True)

    async def cancel(self) -> None:
        """End the child, and free the volume that it may have made without naming it."""
        await self.kill()
        await self._own.made_nothing(self._storage)
