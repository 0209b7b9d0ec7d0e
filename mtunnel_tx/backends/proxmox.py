"""The virtual machines of a Proxmox node (ports.Hypervisor): `qm` starts them, QEMU's monitor does the rest.

Proxmox's own programs use the same monitor, and QEMU serves one connection at a time: a connection is closed after use.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.backends import agent
from mtunnel_tx.backends.child import run
from mtunnel_tx.backends.machine import Machine, MachineFiles
from mtunnel_tx.backends.process import ProcessExit, ProcessRecord, has_ended
from mtunnel_tx.backends.programs import find_program
from mtunnel_tx.backends.qmp import Monitor
from mtunnel_tx.backends.qmpactions import export_nodes, stop_exports, wake
from mtunnel_tx.errors import BackendFailed, Refusal, TimedOut, WrongState, at_once
from mtunnel_tx.ports.guests import Guests
from mtunnel_tx.ports.machines import Incoming, MachineState
from mtunnel_tx.ports.programs import Program
from mtunnel_tx.ports.storage import Report
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.waiting import pause
from mtunnel_tx.wire.socketkinds import MEMORY, NBD

log = Logger()
START_S = 600.0
"""`qm start` has its own time limit, which grows with the VM's memory."""
ORPHAN_S = 60.0
LOCK_S = 10.0
WHOLE_S = 15.0
POLL_S = 0.2
"""Part of a VM's downtime."""
_LEFT = (".pid", ".qmp", ".vnc", ".qga", MEMORY.suffix, NBD.suffix)
"""Endings of files that QEMU may leave behind."""
_SPICE = re.compile(r"spice listens on port ([0-9]+)")


class ProxmoxMachines:
    """ports.Hypervisor.

    Args: command: `qm`. environ: its whole environment. folder: where it puts a VM's sockets and its pid file.
    """

    def __init__(
        self, reactor: Any, *, command: Sequence[str], environ: Mapping[str, str], guests: Guests, folder: Path
    ) -> None:
        self._reactor = reactor
        self._command = tuple(command)
        self._environ = dict(environ)
        self._guests = guests
        self._folder = folder
        self._machines: dict[int, Machine] = {}

    async def prepare(self) -> None:
        """Wait for `qm start` children of an earlier daemon to end; until then it is unknown which VMs run."""
        end_s = self._reactor.seconds() + ORPHAN_S
        while pids := list(_starting(self._folder)):
            if self._reactor.seconds() > end_s:
                raise BackendFailed(f"'qm start' of an earlier daemon does not end, pid {pids[0]}")
            await pause(self._reactor, POLL_S)

    def close(self) -> None:
        """Stop watching all machines; they keep running."""
        for vmid in list(self._machines):
            self._forget(vmid)

    def check(self, conf: GuestConfig, refused: Refusal = at_once, machine: str | None = None) -> None:
        """See ports.Hypervisor. Nothing is checked here: `qm` checks the config."""

    async def check_room(self, conf: GuestConfig, machine: str | None = None) -> None:
        """See ports.Hypervisor. `qm` looks at the host."""

    def running(self, vmid: int) -> bool:
        """See ports.Hypervisor. Called for every VM of the node, so it keeps no descriptor open."""
        process = find_qemu(self._folder / f"{vmid}.pid")
        if process is not None:
            os.close(process[1])
        return process is not None

    def process(self, vmid: int) -> Program | None:
        """See ports.Hypervisor."""
        machine = self._find(vmid)
        return None if machine is None else find_program(machine.exit.pid)

    async def state(self, vmid: int) -> MachineState:
        """See ports.Hypervisor. Raises: TimedOut, BackendFailed: it runs, but does not answer."""
        machine = self._find(vmid)
        if machine is not None:
            try:
                async with machine.monitor():
                    return MachineState(status=await machine.status(), whole=await machine.is_whole())
            except BackendFailed as error:
                if not await machine.exit.wait(1.0):
                    raise BackendFailed(f"VM {vmid} does not answer: {error.text}") from error
        return MachineState(status="off")

    async def start(self, vmid: int, conf: GuestConfig, incoming: Incoming, report: Report) -> int | None:
        """See ports.Hypervisor. If anything fails, the VM is stopped again."""
        if incoming.postcopy:
            await self.check_postcopy()
        await self._define(vmid, conf, incoming)
        argv = [*self._command, *start_arguments(vmid, self._guests.node, incoming)]
        given = f"spice_ticket: {incoming.spice_ticket}\n" if incoming.spice_ticket else ""
        environ = {**self._environ, _MARK: str(self._folder)}
        try:
            output = await run(self._reactor, argv, environ, START_S, name="qm start", given=given.encode("ascii"))
            for line in output.splitlines():
                report(line)
            if incoming.nbd_socket is not None:
                async with self._get(vmid).monitor() as monitor:
                    await export_nodes(monitor, incoming.nbd_socket, await find_nodes(monitor, incoming.exports))
        except BaseException:
            await self.stop(vmid)
            raise
        found = _SPICE.search(output)
        return int(found[1]) if found else None

    async def _define(self, vmid: int, conf: GuestConfig, incoming: Incoming) -> None:
        """Write the exported drives into the config, where `qm` reads them, if the source wrote others."""
        async with self._guests.locked(vmid, LOCK_S):
            there = self._guests.read(vmid).copy()
            wanted = {key: conf.options[key] for key in incoming.exports if key in conf.options}
            if any(there.options.get(key) != value for key, value in wanted.items()):
                there.options.update(wanted)
                await self._guests.write(vmid, there)

    async def wait_whole(self, vmid: int) -> None:
        """See ports.Hypervisor."""
        machine = self._get(vmid)
        while not await self._is_whole(machine):
            if await machine.exit.wait(POLL_S):
                raise BackendFailed("QEMU ended; its reason may be in this node's journal")

    async def _is_whole(self, machine: Machine) -> bool:
        """False also if it is unknown: another program may use the monitor, or QEMU may have ended."""
        with suppress(BackendFailed, TimedOut):
            return await machine.is_whole()
        return False

    async def check_postcopy(self) -> None:
        """See ports.Hypervisor."""
        raise BackendFailed("no post-copy here: 'qm' starts the VMs of this node, and does not prepare them for it")

    async def resume(self, vmid: int, *, partly: bool = False) -> None:
        """See ports.Hypervisor. Waits for the state, because an earlier `cont` would have no effect."""
        if partly:
            await self.check_postcopy()
        machine = self._get(vmid)
        end_s = self._reactor.seconds() + WHOLE_S
        while (status := await machine.status()) == "inmigrate":
            if self._reactor.seconds() > end_s:
                raise WrongState(f"the state of VM {vmid} has not arrived in full")
            await machine.exit.wait(POLL_S)
        async with machine.monitor() as monitor:
            await wake(monitor, status)

    async def stop(self, vmid: int) -> None:
        """See ports.Hypervisor. Proxmox's event daemon releases what else the VM used of its host."""
        machine = self._find(vmid)
        if machine is not None:
            await machine.end()
            self._forget(vmid)
            for ending in _LEFT:
                (self._folder / f"{vmid}{ending}").unlink(missing_ok=True)

    async def stop_nbd(self, vmid: int) -> None:
        """See ports.Hypervisor. Success where no server runs."""
        async with self._get(vmid).monitor() as monitor:
            await stop_exports(monitor)

    async def trim(self, vmid: int, report: Report) -> None:
        """See ports.Hypervisor."""
        if self._find(vmid) is None:
            report(f"QEMU Guest Agent is not running - VM {vmid} not running")
        else:
            await agent.trim(self._reactor, vmid, MachineFiles(self._folder, vmid).agent, report)

    def _find(self, vmid: int) -> Machine | None:
        """The VM's QEMU; None: it does not run."""
        machine = self._machines.get(vmid)
        if machine is not None and not machine.runs:
            self._forget(vmid)
            machine = None
        if machine is None and (process := find_qemu(self._folder / f"{vmid}.pid")):
            # Proxmox keeps no such record; any VM may have been migrated here.
            record = ProcessRecord(token="", boot="", incoming=True, sockets=(), pid=process[0])
            machine = Machine(
                self._reactor, vmid, MachineFiles(self._folder, vmid), record, ProcessExit(self._reactor, *process)
            )
            self._machines[vmid] = machine
        return machine

    def _get(self, vmid: int) -> Machine:
        machine = self._find(vmid)
        if machine is None:
            raise WrongState(f"VM {vmid} not running")
        return machine

    def _forget(self, vmid: int) -> None:
        self._machines.pop(vmid).forget()


_MARK = "MTUNNEL_QM"
"""Environment variable of `qm start` and its children; the value is the folder of the sockets."""


def start_arguments(vmid: int, node: str, incoming: Incoming) -> list[str]:
    """The arguments of `qm start`.

    `--migratedfrom` names this node, because the config is already this node's.
    """
    argv = ["start", str(vmid), "--skiplock", "1", "--stateuri", "unix", "--migratedfrom", node]
    for option, value in (
        ("--machine", incoming.machine),
        ("--force-cpu", incoming.cpu),
        ("--nets-host-mtu", incoming.nets_host_mtu),
    ):
        if value is not None:
            argv += [option, value]
    return argv


def find_qemu(pidfile: Path) -> tuple[int, int] | None:
    """The QEMU that wrote a pid file.

    Returns: its pid and a pidfd; None: it has ended, or the pid was reused.
    """
    try:
        pid = int(pidfile.read_text("ascii"))
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return None
    if has_ended(pidfd) or not _wrote(pid, pidfile.name):
        os.close(pidfd)
        return None
    return pid, pidfd


def _wrote(pid: int, name: str) -> bool:
    words = _words(pid, "cmdline")
    named = [os.fsdecode(after) for word, after in pairwise(words) if word == b"-pidfile"]
    return any(Path(path).name == name for path in named)


def _words(pid: int, what: str) -> list[bytes]:
    """The words of a file in /proc; none if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes().split(b"\0")
    except OSError:
        return []


def _starting(folder: Path) -> Iterator[int]:
    """The `qm start` processes of an earlier daemon. Their children have the mark too, but other arguments."""
    mark = f"{_MARK}={folder}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and mark in _words(int(entry.name), "environ"):
            words = _words(int(entry.name), "cmdline")
            if b"start" in words and b"--stateuri" in words:
                yield int(entry.name)


async def find_nodes(monitor: Monitor, keys: Mapping[str, str]) -> dict[str, str]:
    """The block node of each drive: named as the drive, or found through it in a VM of an older machine type.

    Raises: BackendFailed: there is no such drive.
    """
    named = {node["node-name"] for node in await monitor.call("query-named-block-nodes", {"flat": True})}
    attached = {
        device["device"]: str(device["inserted"]["node-name"])
        for device in await monitor.call("query-block")
        if device.get("inserted")
    }
    nodes = {}
    for key in keys:
        name = f"drive-{key}"
        if name not in named and name not in attached:
            raise BackendFailed(f"the VM has no drive '{key}' to export")
        nodes[key] = name if name in named else attached[name]
    return nodes
