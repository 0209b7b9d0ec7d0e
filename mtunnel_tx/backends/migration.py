"""The source's side of a live migration: mirrors of a running VM's disks, and the migration of its memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from mtunnel_tx.backends.blocknodes import read_words
from mtunnel_tx.backends.mirrors import COMMAND_S, MirroredMachine, is_mirror, nobody
from mtunnel_tx.backends.process import ProcessExit
from mtunnel_tx.backends.qmp import Monitor, MonitorLost, QmpCommandFailed
from mtunnel_tx.backends.standstill import Standstill
from mtunnel_tx.errors import BackendFailed, TimedOut
from mtunnel_tx.pve.drive import is_drive_key
from mtunnel_tx.waiting import together, within

T = TypeVar("T")
LIMIT_S = 10.0
"""How long a guest stands still at most until its disks are level, and again until the rest of its memory is sent."""
_OVER = frozenset({"completed", "failed", "cancelled"})
_SENT = frozenset({"completed", "postcopy-active"})
_BROKEN_OFF = "postcopy-paused"
_WAITS = "pre-switchover"


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


class RunningMachine(MirroredMachine):
    """What a source does with a running VM. Made by `QemuMachines.attached`, and valid only inside its block."""

    def __init__(self, reactor: Any, monitor: Monitor, ending: ProcessExit) -> None:
        super().__init__(reactor, monitor)
        self._exit = ending
        self._standstill = Standstill(reactor, monitor, LIMIT_S)

    async def machine_type(self) -> str:
        """The type it runs with, e.g. `pc-i440fx-7.2`."""
        kind = str(await self._call("qom-get", {"path": "/machine", "property": "type"}))
        return kind.removesuffix("-machine")

    async def blockers(self) -> list[str]:
        """Why QEMU would refuse to send it, in its own words, which it has since 6.0; and other work on its disks."""
        answer = await self._call("query-migrate")
        reasons = [" ".join(str(reason).split()) for reason in answer.get("blocked-reasons", [])]
        jobs = sorted(str(job["id"]) for job in await self._call("query-jobs") if not is_mirror(str(job["id"])))
        return [*reasons, *(f"QEMU's job '{job}' has not ended" for job in jobs)]

    async def disks(self) -> dict[str, tuple[str, int]]:
        """What the guest has as disks, by QEMU's ids: what QEMU calls the file, and the size in bytes."""
        return {
            id: (str(entry["inserted"]["file"]), int(entry["inserted"]["image"]["virtual-size"]))
            for entry in await self._call("query-block")
            if entry.get("inserted") and not entry.get("removable")
            for id in entry.get("qdev", "").split("/")
            if is_drive_key(id)
        }

    async def memory_bytes(self) -> int:
        """What the guest has as memory, DIMMs included."""
        sizes = await self._call("query-memory-size-summary")
        return int(sizes["base-memory"]) + int(sizes.get("plugged-memory", 0))

    def cpu(self) -> str | None:
        """The `-cpu` argument that it was started with."""
        words = read_words(self._exit.pid)
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

    async def start_migration(
        self,
        socket: Path,
        *,
        limit_bytes_s: int = 0,
        downtime_ms: int = 100,
        auto_converge: bool = False,
        postcopy: bool = False,
    ) -> None:
        """Send memory and devices to a UNIX socket; before the last of it QEMU stops the VM and waits (`switch_over`).

        Until then the receiving side cannot have the whole state. Args: limit_bytes_s: 0: none. postcopy: the other
            side expects that it may come to `start_postcopy`.
        """
        wanted = {"events": True, "pause-before-switchover": True, "auto-converge": auto_converge}
        wanted |= {"postcopy-ram": postcopy}
        capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
        await self._call("migrate-set-capabilities", {"capabilities": capabilities})
        await self.limit(limit_bytes_s=limit_bytes_s, downtime_ms=downtime_ms)
        if postcopy:
            await self._call("migrate-set-parameters", {"max-postcopy-bandwidth": limit_bytes_s})
        await self._call("migrate", {"uri": f"unix:{socket}"})

    async def start_postcopy(self) -> None:
        """Stop the guest, and let it run on the other side after `switch_over`, before all of its memory is there.

        A guest that QEMU itself stops would be started again by it where the migration fails, whoever runs it then.
        """
        await together(self._call("stop"), self._call("migrate-start-postcopy"))

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

    async def until_switchover(
        self, told: Callable[[MemoryProgress], Awaitable[None]] = nobody, *, limit_s: float = LIMIT_S
    ) -> MemoryProgress:
        """Wait until the VM stands still and only the rest of its state is to be sent.

        Args: told: called with the progress about once a second. limit_s: how long a guest that ran stands still for
            its mirrors at most, here and in `complete_mirrors`; then it is given up, and their sockets must be closed.
        Raises: TimedOut: they were not done in time. BackendFailed: it failed or was cancelled; the VM continues here.
        """
        self._standstill = Standstill(self._reactor, self._monitor, limit_s)
        if await self.status() != "running":
            self._standstill.want()
        return await self._level(self._until_status({_WAITS}, told))

    async def complete_mirrors(self) -> None:
        """Copy what is left to the mirrors of a VM that stands still, and end them; each leaves a complete copy.

        Their jobs and nodes stay until QEMU ends, or until `end_mirrors`: nobody has time for them now.
        Raises: TimedOut: not within the time that `until_switchover` was given. BackendFailed: a mirror failed.
        """
        await self._level(self._finish_mirrors())

    async def _level(self, work: Coroutine[Any, Any, T]) -> T:
        """Await what the mirrors may hold up. Raises: TimedOut; what the work raises."""
        return await self._standstill.limited(work, "its disks were not level")

    async def switch_over(self, *, limit_s: float = LIMIT_S) -> None:
        """Send the rest; from now on the receiving side may have the whole state, or by post-copy enough of it to run.

        Raises: TimedOut: it could not be sent within `limit_s`; BackendFailed: it failed. The VM continues here, but
            after `start_postcopy` it stands still.
        """
        await self._call("migrate-continue", {"state": _WAITS})
        sent = Deferred.fromCoroutine(self._until_status(_SENT, nobody))
        try:
            await within(self._reactor, limit_s, sent, f"the rest of its memory was not sent within {limit_s:g} s")
        except TimedOut as late:
            await self._cut()
            try:
                # The last byte may have gone out just now; but by post-copy the rest has no connection any more.
                whole = Deferred.fromCoroutine(self._until_status({"completed"}, nobody))
                await within(self._reactor, LIMIT_S, whole, late.text)
            except MonitorLost:
                raise
            except BackendFailed as error:
                raise late from error

    async def _cut(self) -> None:
        """Cut the connection to the receiving side; QEMU does that even while it waits for it and does nothing else."""
        instances = [{"type": "migration"}]
        with suppress(QmpCommandFailed):  # it is over
            await self._monitor.call("yank", {"instances": instances}, wait_s=COMMAND_S, urgent=True)

    async def until_sent(self, told: Callable[[MemoryProgress], Awaitable[None]] = nobody) -> None:
        """Wait until all memory is there, after a switch-over by post-copy; it is over at once where there was none.

        Raises: BackendFailed: it stays in two parts; the VM must not run here.
        """
        await self._until_status({"completed"}, told)

    async def _until_status(
        self, wanted: Collection[str], told: Callable[[MemoryProgress], Awaitable[None]]
    ) -> MemoryProgress:
        last = MemoryProgress(status="none")

        async def reached() -> bool:
            nonlocal last
            last = await self.progress()
            self._standstill.see_it_run()
            await told(last)
            return last.status in {*wanted, *_OVER, _BROKEN_OFF}

        await self._until(reached)
        if last.status == _BROKEN_OFF:
            raise BackendFailed("post-copy was broken off: QEMU has lost the connection to the other one")
        if last.status not in wanted:
            raise BackendFailed(f"migration {last.status}: {last.error or 'QEMU gives no reason'}")
        return last

    async def migration(self) -> str:
        """How far it is, in one word."""
        return (await self.progress()).status

    async def cancel_migration(self) -> None:
        """Cancel the migration, and wait until it is cancelled; the VM continues here, or stands still as before.

        Raises: BackendFailed: its post-copy was broken off, and QEMU does not take such a VM back.
        """
        if await self.migration() == _BROKEN_OFF:
            raise BackendFailed("QEMU takes no VM back whose post-copy was broken off")
        await self._call("migrate_cancel")

        async def over() -> bool:
            return (await self.progress()).status in {*_OVER, "none"}

        await self._until(over)

    async def run(self) -> None:
        """Let the guest run again, after a migration that failed."""
        await self._until(self._is_settled)
        await self._call("cont")

    async def _is_settled(self) -> bool:
        """Not while QEMU tidies up after a migration: it refuses `cont` then."""
        return await self.status() != "finish-migrate"

    async def pause(self) -> None:
        """Stand still again, after a migration that came to nothing.

        A migration that is over leaves `postmigrate`, which takes no other one, and only `cont` leads out of it. `stop`
        is sent with it, so that the guest runs for some microseconds at most.
        """
        self._standstill.want()
        if await self.migration() in _OVER:
            await self._until(self._is_settled)
        words = ["cont", "stop"] if await self.status() == "postmigrate" else ["stop"]
        await together(*(self._call(word) for word in words))

    async def quit(self) -> None:
        """End QEMU. Raises: BackendFailed: it does not end."""
        with suppress(MonitorLost):
            await self._call("quit")
        if not await self._exit.wait(COMMAND_S):
            raise BackendFailed("QEMU does not end")
