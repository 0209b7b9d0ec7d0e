"""Mirrors of a running VM's disks: each copies its disk to an NBD export of another host, while the guest writes on.

They copy in the background, and no write of the guest waits for its copy: a network that is lost makes no guest stand
still. What is left when the guest stands still for the last of its memory is copied then (`complete_mirrors`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtunnel_tx.backends.qmp import Monitor, QmpCommandFailed
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.waiting import Occasion, together, until

COMMAND_S = 60.0
RECONNECT_S = 5
_POLL_S = 1.0
_BROKEN = {"failed": "Input/output error", "nospace": "No space left on device"}
"""A job's `io-status` to the reason why its target cannot be written."""
_MIRROR = "mirror-"
"""How the jobs and block nodes of mirrors are called, before the drive's key; so are the groups of slowed drives."""
_BUFFER_S = 0.5
"""How much a slowed mirror copies at once, in seconds of its limit: as long as a round trip may be at full speed."""
_LEAST_BUFFER_BYTES, _MOST_BUFFER_BYTES = 256 << 10, 16 << 20
_LIMITS = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """A mirror job. `ready`: the copy has been level with the disk; what is written since is copied at once."""

    drive: str
    ready: bool
    done_bytes: int
    total_bytes: int


def is_mirror(job: str) -> bool:
    """Whether a job is one of ours; one that a program left, which was killed, is taken over."""
    return job.startswith(_MIRROR)


async def nobody(_progress: Any) -> None:
    """Nobody watches."""


class MirroredMachine:
    """A running VM, as far as its mirrors go."""

    def __init__(self, reactor: Any, monitor: Monitor) -> None:
        self._reactor = reactor
        self._monitor = monitor
        self._mirrors: dict[str, str] = {}

    async def status(self) -> str:
        """QEMU's `query-status`."""
        return str((await self._call("query-status"))["status"])

    async def start_mirror(
        self, drive: str, socket: Path, export: str, *, limit_bytes_s: int = 0, reconnect_s: int = RECONNECT_S,
        connected: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        """Copy a disk to an NBD export, and then whatever the guest writes to the disk.

        While the connection is down, QEMU stands still as a whole if the guest is stopped, for `reconnect_s` at most.
        Args: drive: its key, e.g. `scsi0`. limit_bytes_s: of the first full copy; 0: no limit; a buffer (see `_pace`)
            may go beyond it at the start and whenever the disk is drained. reconnect_s: how long the connection may be
            down before the mirror fails. connected: called when the export has answered: QEMU stands still until then.
        """
        node = f"{_MIRROR}{drive}"
        await self._clear(node)
        server = {"type": "unix", "path": str(socket)}
        target: dict[str, Any] = {
            "driver": "nbd",
            "node-name": node,
            "server": server,
            "export": export,
            "discard": "unmap",
        }
        target |= {"reconnect-delay": reconnect_s, "detect-zeroes": "unmap"}
        await self._call("blockdev-add", target)
        connected()
        job = {"job-id": node, "device": f"drive-{drive}", "target": node, "sync": "full", "copy-mode": "background"}
        # It waits for `end_mirrors`: a job that ended by itself would take a layer from under the guest's writes.
        end = {"on-target-error": "stop", "auto-dismiss": False}
        try:
            await self._call("blockdev-mirror", {**job, **end, **_pace(limit_bytes_s)})
        except BackendFailed:
            await self._remove_node(node)
            raise
        self._mirrors[drive] = node

    async def _clear(self, node: str) -> None:
        """Remove the job and the node of an earlier attempt whose program was killed."""
        if await self._job(node):
            await self._end_mirror(node)
        else:
            await self._remove_node(node)

    async def mirrors(self) -> list[Mirror]:
        """The progress of each mirror. Raises: BackendFailed: one has failed."""
        jobs = {job["id"]: job for job in await self._call("query-jobs")}
        broken = await self._broken()
        return [_mirror(drive, jobs.get(node, {}), broken.get(node)) for drive, node in self._mirrors.items()]

    async def _broken(self) -> dict[str, str]:
        """The jobs that are paused because their target failed, and the reason."""
        states = {job["device"]: str(job.get("io-status", "ok")) for job in await self._call("query-block-jobs")}
        return {node: _BROKEN.get(state, state) for node, state in states.items() if state != "ok"}

    async def until_ready(self, told: Callable[[list[Mirror]], Awaitable[None]] = nobody) -> None:
        """Wait until all mirrors are ready.

        Args: told: called with the progress about once a second.
        Raises: BackendFailed: a mirror has failed.
        """

        async def ready() -> bool:
            mirrors = await self.mirrors()
            await told(mirrors)
            return all(mirror.ready for mirror in mirrors)

        await self._until(ready)

    async def slow_down(self, drive: str, limit_bytes_s: int) -> None:
        """Let the guest write no faster than this to a disk that is mirrored, until `end_mirrors`.

        The limits in the VM's config are another layer of QEMU's, and stay.
        """
        device = (await self._devices()).get(drive)
        if device is not None:
            await self._throttle(drive, str(device["qdev"]), limit_bytes_s)

    async def _devices(self) -> dict[str, Mapping[str, Any]]:
        """What `query-block` says of the guest's disks, by their keys; `qdev` is the key itself, or a path with it."""
        devices = [entry for entry in await self._call("query-block") if entry.get("qdev") and entry.get("inserted")]
        return {drive: entry for drive in self._mirrors for entry in devices if drive in entry["qdev"].split("/")}

    async def _throttle(self, drive: str, device: str, limit_bytes_s: int) -> None:
        limits = {**dict.fromkeys(_LIMITS, 0), "bps_wr": limit_bytes_s}
        await self._call("block_set_io_throttle", {"id": device, "group": f"{_MIRROR}{drive}", **limits})

    async def speed_up(self) -> None:
        """Take off what `slow_down` did, be it that of a program that was killed."""
        for entry in await self._call("query-block"):
            group = str((entry.get("inserted") or {}).get("group", ""))
            if entry.get("qdev") and group.startswith(_MIRROR):
                await self._throttle(group.removeprefix(_MIRROR), str(entry["qdev"]), 0)

    async def _finish_mirrors(self) -> None:
        """Copy the rest, as fast as it goes, and end the jobs; the guest stands still.

        Raises: BackendFailed: a mirror had failed, or fails now.
        """
        await together(*(self._finish_mirror(node) for node in self._mirrors.values()))
        await self._until(self._are_complete)

    async def _finish_mirror(self, node: str) -> None:
        with suppress(QmpCommandFailed):  # it has ended by itself
            # Sent at once, one behind the other.
            await together(
                self._call("block-job-set-speed", {"device": node, "speed": 0}),
                self._call("block-job-cancel", {"device": node, "force": False}),
            )

    async def _are_complete(self) -> bool:
        """Raises: BackendFailed: a mirror has failed."""
        jobs = {job["id"]: job for job in await self._call("query-jobs")}
        broken = await self._broken()
        for drive, node in self._mirrors.items():
            reason = broken.get(node) or jobs.get(node, {"error": "it has ended"}).get("error")
            if reason is not None:
                raise _failed(drive, reason)
        return all(jobs[node]["status"] == "concluded" for node in self._mirrors.values())

    async def end_mirrors(self) -> None:
        """End the mirrors at once, whatever their copies are; nothing is left of them, and the guest runs meanwhile.

        Where their network is lost, their sockets must be closed before: a write that is under way is given up then.
        """
        try:
            for node in self._mirrors.values():
                await self._end_mirror(node)
        finally:
            await self.speed_up()
        self._mirrors.clear()

    async def _end_mirror(self, node: str) -> None:
        async def concluded() -> bool:
            # Again and again: a write that fails behind this pauses the job, and only this lets it go on to its end.
            with suppress(QmpCommandFailed):  # it has ended by itself
                await self._call("block-job-cancel", {"device": node, "force": True})
            return str((await self._job(node)).get("status", "concluded")) == "concluded"

        await self._until(concluded)
        with suppress(QmpCommandFailed):
            await self._call("job-dismiss", {"id": node})
        await self._remove_node(node)

    async def adopt_mirrors(self) -> None:
        """Take over the mirrors of a program that has ended, so that `end_mirrors` ends them too."""
        names = [str(job["id"]) for job in await self._call("query-jobs")]
        self._mirrors |= {name.removeprefix(_MIRROR): name for name in names if name.startswith(_MIRROR)}

    async def _job(self, node: str) -> Mapping[str, Any]:
        jobs: list[Mapping[str, Any]] = await self._call("query-jobs")
        return next((job for job in jobs if job["id"] == node), {})

    async def _remove_node(self, node: str) -> None:
        """QEMU flushes it, and would stand still as a whole until a lost connection is given up."""
        with suppress(QmpCommandFailed):
            await self._call("yank", {"instances": [{"type": "block-node", "node-name": node}]})
        with suppress(QmpCommandFailed):
            await self._call("blockdev-del", {"node-name": node})

    async def _call(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        return await self._monitor.call(command, arguments, wait_s=COMMAND_S)

    async def _until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Wait until the condition holds; it is checked at every event and once a second. Raises: MonitorLost."""
        happening = Occasion()
        end_listening = self._monitor.listen(lambda _name, _data: happening.happen_soon(self._reactor))
        try:
            await until(self._reactor, happening, holds, _POLL_S)
        finally:
            end_listening()


def _pace(limit_bytes_s: int) -> dict[str, int]:
    """The arguments of a mirror job.

    QEMU copies one buffer, 16 MiB if nothing is said, and then sleeps as long as its speed wants. Whatever drains the
    disk meanwhile, as a reset of the guest or of its controller does, ends that sleep, and the next buffer goes.
    """
    if not limit_bytes_s:
        return {"speed": 0}
    buffer_bytes = min(max(round(limit_bytes_s * _BUFFER_S), _LEAST_BUFFER_BYTES), _MOST_BUFFER_BYTES)
    return {"speed": limit_bytes_s, "buf-size": buffer_bytes}


def _mirror(drive: str, job: Mapping[str, Any], broken: str | None) -> Mirror:
    """Raises: BackendFailed."""
    over = job.get("status") in (None, "concluded", "aborting")
    reason = str(job.get("error", "it has ended")) if over else broken
    if reason is not None:
        raise _failed(drive, reason)
    return Mirror(
        drive=drive,
        ready=job.get("status") == "ready",
        done_bytes=int(job.get("current-progress", 0)),
        total_bytes=int(job.get("total-progress", 0)),
    )


def _failed(drive: str, reason: str) -> BackendFailed:
    return BackendFailed(f"mirror of {drive} failed: {reason}")
