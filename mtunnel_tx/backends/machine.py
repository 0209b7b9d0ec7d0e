"""One running QEMU: its process, its record, and one monitor connection that all callers share."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import DeferredLock

from mtunnel_tx.backends.process import ProcessExit, ProcessRecord, bound_stderr, open_process, read_reason, read_record
from mtunnel_tx.backends.qmp import CALL_S, Monitor, MonitorLost, QmpCommandFailed, connect_monitor
from mtunnel_tx.errors import BackendFailed, TimedOut
from mtunnel_tx.waiting import Occasion, in_time

QUIT_CALL_S = 3.0
QUIT_S = 10.0
TERMINATE_S = 3.0
KILL_S = 30.0
_LAST_WORDS_S = 5.0
_POLL_S = 1.0
POSTCOPY = "postcopy-active"
"""What `query-migrate` says where the rest of the memory comes while the guest runs."""
CUT = frozenset({"postcopy-paused", "postcopy-recover"})
"""And where it does not come any more."""


class MachineFiles:
    """The files of one VM's QEMU in the runtime directory."""

    def __init__(self, runtime_dir: Path, vmid: int) -> None:
        self.record = runtime_dir / f"{vmid}.pid"
        self.monitor = runtime_dir / f"{vmid}.qmp"
        self.stderr = runtime_dir / f"{vmid}.stderr"
        self.agent = runtime_dir / f"{vmid}.qga"

    def clear(self) -> None:
        """Remove all files, once no QEMU is left. The record goes last, because it names the sockets."""
        record = read_record(self.record)
        for name in record.sockets if record else ():
            with suppress(OSError):
                Path(name).unlink(missing_ok=True)
        for path in (self.monitor, self.stderr, self.record):
            path.unlink(missing_ok=True)


class Machine:
    """A QEMU that runs, or that ran when this object was made."""

    def __init__(
        self, reactor: Any, vmid: int, files: MachineFiles, record: ProcessRecord, ending: ProcessExit
    ) -> None:
        self.vmid = vmid
        self.record = record
        self.exit = ending
        self.files = files
        self._reactor = reactor
        self._monitor: Monitor | None = None
        self._users = 0
        self._connecting = DeferredLock()

    @property
    def runs(self) -> bool:
        """Whether the process exists."""
        return not self.exit.happened

    @property
    def reason(self) -> str:
        """The last lines of QEMU's stderr."""
        return read_reason(self.files.stderr)

    def bound_output(self) -> None:
        """Keep QEMU's stderr file from filling the runtime directory."""
        bound_stderr(self.files.stderr)

    @asynccontextmanager
    async def monitor(self, wait_s: float = CALL_S) -> AsyncIterator[Monitor]:
        """QEMU's monitor, connected while at least one caller uses it: QEMU serves one connection at a time.

        Raises: MonitorLost, TimedOut.
        """
        self._users += 1
        try:
            yield await self._connected(wait_s)
        finally:
            self._users -= 1
            if not self._users:
                self._hang_up()

    async def _connected(self, wait_s: float) -> Monitor:
        async with self._connecting:
            if self._monitor is None or self._monitor.is_lost:
                self._monitor = await connect_monitor(self._reactor, self.files.monitor, wait_s)
            return self._monitor

    def _hang_up(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.close()

    async def status(self) -> str:
        """QEMU's `query-status`."""
        async with self.monitor() as monitor:
            return str((await monitor.call("query-status"))["status"])

    async def accelerator(self) -> str:
        """What runs the guest: `kvm`, or `tcg`, QEMU's emulation."""
        async with self.monitor() as monitor:
            return "kvm" if (await monitor.call("query-kvm"))["enabled"] else "tcg"

    async def is_whole(self) -> bool:
        """Whether the whole state of another host has arrived."""
        return await self.arrival() == "completed"

    async def arrival(self) -> str:
        """What QEMU's `query-migrate` says of the state that comes from another host; `none`: none does."""
        if not self.record.incoming:
            return "none"
        async with self.monitor() as monitor:
            return str((await monitor.call("query-migrate")).get("status"))

    async def until_whole(self, wait_s: float | None = None) -> bool:
        """Wait until the whole state has arrived. A QEMU that does not answer for a while is asked again.

        Returns: whether it has arrived. Raises: BackendFailed: QEMU ended, with its reason.
        """
        end_s = None if wait_s is None else self._reactor.seconds() + wait_s
        while True:
            try:
                return await self._listen_until_whole(end_s)
            except MonitorLost as error:
                raise await self.explained(error) from error
            except TimedOut as error:
                if not self.runs:
                    raise await self.explained(BackendFailed(error.text)) from error
                if self._is_late(end_s):
                    return False

    async def _listen_until_whole(self, end_s: float | None) -> bool:
        happening = Occasion()
        async with self.monitor() as monitor:
            end_listening = monitor.listen(lambda _name, _data: happening.happen_soon(self._reactor))
            try:
                while not await self.is_whole():
                    if self._is_late(end_s):
                        return False
                    await in_time(self._reactor, _POLL_S, happening.wait())
            finally:
                end_listening()
        return True

    def _is_late(self, end_s: float | None) -> bool:
        return end_s is not None and self._reactor.seconds() >= end_s

    async def explained(self, error: BackendFailed) -> BackendFailed:
        """The error to report: QEMU's own reason if it has ended, else the given one."""
        if not await self.exit.wait(_LAST_WORDS_S):
            return error
        return BackendFailed(f"QEMU ended: {self.reason or 'it gave no reason'}")

    async def end(self) -> None:
        """End QEMU: by `quit`, then SIGTERM, then SIGKILL. Raises: BackendFailed: it survives all three."""
        if not (await self._quit() and await self.exit.wait(QUIT_S)):
            for number, wait_s in ((signal.SIGTERM, TERMINATE_S), (signal.SIGKILL, KILL_S)):
                self.exit.kill(number)
                if await self.exit.wait(wait_s):
                    break
            else:
                raise BackendFailed(f"QEMU of VM {self.vmid}, pid {self.exit.pid}, cannot be killed")
        self.forget()

    async def _quit(self) -> bool:
        """Returns: whether QEMU accepted `quit`, or has ended."""
        try:
            async with self.monitor(QUIT_CALL_S) as monitor:
                await _cut_mirrors(monitor)
                await monitor.call("quit", wait_s=QUIT_CALL_S)
        except MonitorLost:
            return self.exit.happened
        except (QmpCommandFailed, TimedOut):
            return False
        return True

    def forget(self) -> None:
        """Stop watching the process and close the monitor; QEMU is not touched."""
        self._hang_up()
        self.exit.forget()


async def _cut_mirrors(monitor: Monitor) -> None:
    """QEMU flushes each block node before it ends, and for a mirror's target it would wait for a lost connection."""
    instances = await monitor.call("query-yank", wait_s=QUIT_CALL_S)
    if nodes := [instance for instance in instances if instance["type"] == "block-node"]:
        await monitor.call("yank", {"instances": nodes}, wait_s=QUIT_CALL_S)


def find_machine(reactor: Any, vmid: int, files: MachineFiles) -> Machine | None:
    """The QEMU that an earlier daemon or another program started; None: none runs."""
    record = read_record(files.record)
    found = open_process(record) if record is not None else None
    if record is None or found is None:
        return None
    return Machine(reactor, vmid, files, record, ProcessExit(reactor, *found))
