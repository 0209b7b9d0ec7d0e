"""The source's side of a live migration: mirrors of a running VM's disks, and the migration of its memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtunnel_tx.backends.process import ProcessExit
from mtunnel_tx.backends.qmp import Monitor, MonitorLost, QmpCommandFailed
from mtunnel_tx.errors import BackendFailed
from mtunnel_tx.waiting import Occasion, together, until

COMMAND_S = 60.0
RECONNECT_S = 10
_POLL_S = 1.0
_BROKEN = {"failed": "Input/output error", "nospace": "No space left on device"}
"""A job's `io-status` to the reason why its target cannot be written."""
_OVER = frozenset({"completed", "failed", "cancelled"})
_WAITS = "pre-switchover"
_MIRROR = "mirror-"
"""How the jobs and block nodes of mirrors are called, before the drive's key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """A mirror job. `ready`: the copy equals the disk and is kept equal; `error`: why the job ended, or None."""

    drive: str
    ready: bool
    done_bytes: int
    total_bytes: int
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryProgress:
    """The progress of a migration of memory. `status`: as in query-migrate; `none` before the start."""

    status: str
    transferred_bytes: int = 0
    remaining_bytes: int = 0
    total_bytes: int = 0
    downtime_ms: int = 0
    error: str | None = None
    passes: int = 0
    dirty_bytes_s: float = 0
    sent_bytes_s: float = 0
    throttle_percent: int = 0


async def _nobody(_progress: Any) -> None:
    """Nobody watches."""


class RunningMachine:
    """What a source does with a running VM. Made by `QemuMachines.attached`, and valid only inside its block."""

    def __init__(self, reactor: Any, monitor: Monitor, ending: ProcessExit) -> None:
        self._reactor = reactor
        self._monitor = monitor
        self._exit = ending
        self._mirrors: dict[str, str] = {}

    async def status(self) -> str:
        """QEMU's `query-status`."""
        return str((await self._call("query-status"))["status"])

    async def machine_type(self) -> str:
        """The type it runs with, e.g. `pc-i440fx-7.2`."""
        kind = str(await self._call("qom-get", {"path": "/machine", "property": "type"}))
        return kind.removesuffix("-machine")

    def cpu(self) -> str | None:
        """The `-cpu` argument that it was started with."""
        try:
            words = Path(f"/proc/{self._exit.pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            return None
        return words[words.index("-cpu") + 1] if "-cpu" in words[:-1] else None

    async def host_mtus(self) -> dict[str, int]:
        """The MTU that virtio network cards announce to their guest, by card; cards that announce none are left out."""
        devices = {entry["name"] for entry in await self._call("qom-list", {"path": "/machine/peripheral"})}
        mtus: dict[str, int] = {}
        for name in sorted(device for device in devices if device.startswith("net")):
            with suppress(QmpCommandFailed):  # another model
                where = {"path": f"/machine/peripheral/{name}", "property": "host_mtu"}
                mtus[name] = int(await self._call("qom-get", where))
        return {name: mtu for name, mtu in mtus.items() if mtu}

    async def start_mirror(
        self, drive: str, socket: Path, export: str, *, limit_bytes_s: int = 0, reconnect_s: int = RECONNECT_S
    ) -> None:
        """Copy a disk to an NBD export, and then keep the copy equal to the disk.

        If this QEMU cannot change the copy mode of a running job, the guest's writes wait for their copy from the start
        (see `write_through`). While the connection is down, a guest with waiting writes stands still, and so does QEMU
        if the job is stopped or ended meanwhile.
        Args: drive: its key, e.g. `scsi0`. limit_bytes_s: of the first full copy; 0: no limit. reconnect_s: how long
            the connection may be down before the mirror fails.
        """
        node = f"{_MIRROR}{drive}"
        await self._clear(drive, node)
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
        mode = "background" if await self._knows("block-job-change") else "write-blocking"
        job = {"job-id": node, "device": f"drive-{drive}", "target": node, "sync": "full", "copy-mode": mode}
        # If the job ended by itself, it would free memory that waiting writes of the guest still use.
        job["on-target-error"] = "stop"
        try:
            await self._call("blockdev-mirror", {**job, "speed": limit_bytes_s, "auto-dismiss": False})
        except BackendFailed:
            await self._remove_node(node)
            raise
        self._mirrors[drive] = node

    async def _clear(self, drive: str, node: str) -> None:
        """Remove the job and the node of an earlier attempt whose program was killed."""
        if await self._job(node):
            self._mirrors[drive] = node
            await self.end_mirrors()
        else:
            await self._remove_node(node)

    async def write_through(self) -> None:
        """Let each write of the guest wait for its copy from now on, so that the mirrors stay equal to the disks."""
        if await self._knows("block-job-change"):
            for node in self._mirrors.values():
                await self._call("block-job-change", {"id": node, "type": "mirror", "copy-mode": "write-blocking"})

    async def mirrors(self) -> list[Mirror]:
        """The progress of each mirror. Raises: BackendFailed."""
        jobs = {job["id"]: job for job in await self._call("query-jobs")}
        broken = await self._broken()
        return [_mirror(drive, jobs.get(node, {}), broken.get(node)) for drive, node in self._mirrors.items()]

    async def _broken(self) -> dict[str, str]:
        """The jobs that are paused because their target failed, and the reason."""
        states = {job["device"]: str(job.get("io-status", "ok")) for job in await self._call("query-block-jobs")}
        return {node: _BROKEN.get(state, state) for node, state in states.items() if state != "ok"}

    async def until_ready(self, told: Callable[[list[Mirror]], Awaitable[None]] = _nobody) -> None:
        """Wait until all mirrors are ready.

        Args: told: called with the progress about once a second.
        Raises: BackendFailed: a mirror has ended.
        """

        async def ready() -> bool:
            mirrors = await self.mirrors()
            for mirror in mirrors:
                if mirror.error is not None:
                    raise BackendFailed(f"mirror of {mirror.drive} failed: {mirror.error}")
            await told(mirrors)
            return all(mirror.ready for mirror in mirrors)

        await self._until(ready)

    async def complete_mirrors(self) -> None:
        """End the mirrors of a VM that stands still; each leaves a complete copy.

        Their jobs and nodes stay until QEMU ends, or until `end_mirrors`: nobody has time for them now.
        Raises: BackendFailed: a mirror had failed, or fails now.
        """
        await together(*(self._cancel_mirror(node, force=False) for node in self._mirrors.values()))
        await self._until(self._are_complete)

    async def _are_complete(self) -> bool:
        """Raises: BackendFailed: a mirror has failed."""
        jobs = {job["id"]: job for job in await self._call("query-jobs")}
        broken = await self._broken()
        for drive, node in self._mirrors.items():
            reason = broken.get(node) or jobs.get(node, {"error": "it has ended"}).get("error")
            if reason is not None:
                raise BackendFailed(f"mirror of {drive} failed: {reason}")
        return all(jobs[node]["status"] == "concluded" for node in self._mirrors.values())

    async def end_mirrors(self) -> None:
        """End the mirrors at once, whatever their copies are; nothing is left of them."""
        await self._cut()
        # Ending a job while a guest's write passes through it corrupts QEMU's heap; a paused job has no writes.
        runs = self._mirrors and await self.status() == "running"
        if runs:
            await self._call("stop")
        try:
            for drive, node in list(self._mirrors.items()):
                await self._end_mirror(node)
                del self._mirrors[drive]
        finally:
            if runs:
                await self._call("cont")

    async def _cut(self) -> None:
        """Cut their connections, so that nothing waits for one to come back: QEMU would stand still as a whole."""
        for node in self._mirrors.values():
            with suppress(QmpCommandFailed):
                await self._call("yank", {"instances": [{"type": "block-node", "node-name": node}]})

    async def _cancel_mirror(self, node: str, *, force: bool) -> None:
        with suppress(QmpCommandFailed):  # it has ended by itself
            await self._call("block-job-cancel", {"device": node, "force": force})

    async def _end_mirror(self, node: str) -> None:
        async def concluded() -> bool:
            return str((await self._job(node)).get("status", "concluded")) == "concluded"

        await self._cancel_mirror(node, force=True)
        await self._until(concluded)
        with suppress(QmpCommandFailed):
            await self._call("job-dismiss", {"id": node})
        await self._remove_node(node)

    async def adopt_mirrors(self) -> None:
        """Take over the mirrors of a program that has ended, so that `end_mirrors` ends them too."""
        names = [str(job["id"]) for job in await self._call("query-jobs")]
        self._mirrors |= {name.removeprefix(_MIRROR): name for name in names if name.startswith(_MIRROR)}

    async def start_migration(
        self, socket: Path, *, limit_bytes_s: int = 0, downtime_ms: int = 100, auto_converge: bool = False
    ) -> None:
        """Send memory and devices to a UNIX socket; before the last of it QEMU stops the VM and waits (`switch_over`).

        Until then the receiving side cannot have the whole state. Args: limit_bytes_s: 0: none.
        """
        wanted = {"events": True, "pause-before-switchover": True, "auto-converge": auto_converge}
        capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
        await self._call("migrate-set-capabilities", {"capabilities": capabilities})
        await self.limit(limit_bytes_s=limit_bytes_s, downtime_ms=downtime_ms)
        await self._call("migrate", {"uri": f"unix:{socket}"})

    async def limit(self, *, limit_bytes_s: int = 0, downtime_ms: int = 100) -> None:
        """Set the bandwidth and the downtime of a migration, before it or during it."""
        most = limit_bytes_s or (1 << 40)
        await self._call("migrate-set-parameters", {"max-bandwidth": most, "downtime-limit": downtime_ms})

    async def progress(self) -> MemoryProgress:
        """The progress of the migration of memory."""
        answer = await self._call("query-migrate")
        memory = answer.get("ram", {})
        return MemoryProgress(
            status=str(answer.get("status", "none")),
            transferred_bytes=int(memory.get("transferred", 0)),
            remaining_bytes=int(memory.get("remaining", 0)),
            total_bytes=int(memory.get("total", 0)),
            downtime_ms=int(answer.get("downtime", 0)),
            passes=int(memory.get("dirty-sync-count", 0)),
            dirty_bytes_s=float(memory.get("dirty-pages-rate", 0)) * int(memory.get("page-size", 4096)),
            sent_bytes_s=float(memory.get("mbps", 0)) * 1e6 / 8,
            throttle_percent=int(answer.get("cpu-throttle-percentage", 0)),
            error=answer.get("error-desc"),
        )

    async def until_switchover(self, told: Callable[[MemoryProgress], Awaitable[None]] = _nobody) -> MemoryProgress:
        """Wait until the VM stands still and only the rest of its state is to be sent.

        Args: told: called with the progress about once a second.
        Raises: BackendFailed: it failed or was cancelled; the VM continues here.
        """
        return await self._until_status(_WAITS, told)

    async def switch_over(self) -> None:
        """Send the rest; from now on the receiving side may have the whole state. Raises: BackendFailed: it failed."""
        await self._call("migrate-continue", {"state": _WAITS})
        await self._until_status("completed", _nobody)

    async def _until_status(self, wanted: str, told: Callable[[MemoryProgress], Awaitable[None]]) -> MemoryProgress:
        last = MemoryProgress(status="none")

        async def reached() -> bool:
            nonlocal last
            last = await self.progress()
            await told(last)
            return last.status == wanted or last.status in _OVER

        await self._until(reached)
        if last.status != wanted:
            raise BackendFailed(f"migration {last.status}: {last.error or 'QEMU gives no reason'}")
        return last

    async def migration(self) -> str:
        """How far it is, in one word."""
        return (await self.progress()).status

    async def cancel_migration(self) -> None:
        """Cancel the migration, and wait until it is cancelled; the VM continues here."""
        await self._call("migrate_cancel")

        async def over() -> bool:
            return (await self.progress()).status in {*_OVER, "none"}

        await self._until(over)

    async def run(self) -> None:
        """Let the guest run again, after a migration that failed."""
        await self._call("cont")

    async def pause(self) -> None:
        """Stand still again, after a migration that came to nothing.

        A migration that is over leaves `postmigrate`, which takes no other one, and only `cont` leads out of it. `stop`
        is sent with it, so that the guest runs for some microseconds at most.
        """
        words = ["cont", "stop"] if await self.status() == "postmigrate" else ["stop"]
        await together(*(self._call(word) for word in words))

    async def quit(self) -> None:
        """End QEMU. Raises: BackendFailed: it does not end."""
        with suppress(MonitorLost):
            await self._call("quit")
        if not await self._exit.wait(COMMAND_S):
            raise BackendFailed("QEMU does not end")

    async def _call(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        return await self._monitor.call(command, arguments, wait_s=COMMAND_S)

    async def _knows(self, command: str) -> bool:
        return any(entry["name"] == command for entry in await self._call("query-commands"))

    async def _job(self, node: str) -> Mapping[str, Any]:
        jobs: list[Mapping[str, Any]] = await self._call("query-jobs")
        return next((job for job in jobs if job["id"] == node), {})

    async def _remove_node(self, node: str) -> None:
        with suppress(QmpCommandFailed):
            await self._call("blockdev-del", {"node-name": node})

    async def _until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        """Wait until the condition holds; it is checked at every event and once a second. Raises: MonitorLost."""
        happening = Occasion()
        end_listening = self._monitor.listen(lambda _name, _data: happening.happen_soon(self._reactor))
        try:
            await until(self._reactor, happening, holds, _POLL_S)
        finally:
            end_listening()


def _mirror(drive: str, job: Mapping[str, Any], broken: str | None) -> Mirror:
    over = job.get("status") in (None, "concluded", "aborting")
    return Mirror(
        drive=drive,
        ready=job.get("status") == "ready",
        done_bytes=int(job.get("current-progress", 0)),
        total_bytes=int(job.get("total-progress", 0)),
        error=str(job.get("error", "it has ended")) if over else broken,
    )
