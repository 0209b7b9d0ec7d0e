"""The virtual machines of a host without Proxmox: QEMU itself (ports.Hypervisor)."""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.backends import agent
from mtunnel_tx.backends.cmdline import QMP_FD, StartPlan, command_line, firmware_file
from mtunnel_tx.backends.cpu import check_cpu
from mtunnel_tx.backends.devices import read_host_mtus
from mtunnel_tx.backends.drives import VolumeFile, look_at_file, volume_format, volumes
from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.host import HostFacts, QemuHost, check_room
from mtunnel_tx.backends.machine import Machine, MachineFiles, find_machine
from mtunnel_tx.backends.migration import RunningMachine
from mtunnel_tx.backends.process import (
    ProcessExit,
    listen_unix,
    marks_of,
    new_record,
    read_reason,
    spawn_qemu,
    write_record,
)
from mtunnel_tx.backends.qmp import Monitor, MonitorLost, QmpCommandFailed
from mtunnel_tx.backends.survivors import restore_records
from mtunnel_tx.backends.taps import bridge_mtu, close_all, open_tap
from mtunnel_tx.checks import FormatError
from mtunnel_tx.errors import BackendFailed, TunnelError, WrongState, refuse
from mtunnel_tx.ports.machines import Incoming, MachineState
from mtunnel_tx.ports.storage import Report, Storage
from mtunnel_tx.pve.drive import parse_drive
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.hardware import Hardware, Nic, read_hardware
from mtunnel_tx.pve.moved import check_not_moved
from mtunnel_tx.waiting import Turns

log = Logger()
START_S = 30.0
EXPORT_S = 30.0
WHOLE_S = 15.0
RESUME_S = 20.0
_RESETTING = frozenset({"shutdown", "guest-panicked", "internal-error"})
_NO_SERVER = "NBD server not running"


class QemuMachines:
    """ports.Hypervisor.

    Args: facts: asked before the first start. storage: knows where volumes are. runtime_dir: mode 0700, for sockets,
        records and what QEMU says. whole_s: how long `resume` waits for the rest of a state.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        threads: ReactorThreads,
        facts: HostFacts,
        storage: Storage,
        runtime_dir: Path,
        whole_s: float = WHOLE_S,
    ) -> None:
        self._reactor = reactor
        self._whole_s = whole_s
        self._threads = threads
        self._facts = facts
        self._storage = storage
        self._runtime_dir = runtime_dir
        self._machines: dict[int, Machine] = {}
        self._turns = Turns()

    async def prepare(self) -> None:
        """Find the QEMUs that run, and ask what QEMU can do, so that `check` knows; without QEMU the log says so."""
        await self.find_all()
        try:
            await self._facts.ask()
        except TunnelError as error:
            log.warn("virtual machines cannot be started: {reason}", reason=error.text)

    async def find_all(self) -> None:
        """See that every QEMU which runs has its record, also where the runtime directory was emptied."""
        for vmid in await self._threads.run(restore_records, self._runtime_dir):
            log.warn("VM {vmid} runs, but its record was gone; it is there again", vmid=vmid)

    def close(self) -> None:
        """Let go of all machines; they run on."""
        machines, self._machines = self._machines, {}
        for machine in machines.values():
            machine.forget()

    def check(self, conf: GuestConfig) -> None:
        """See ports.Hypervisor. Before `prepare` it knows nothing of this host's machine types."""
        self._hardware(conf, self._facts.host)

    def running(self, vmid: int) -> bool:
        """See ports.Hypervisor. In doubt it runs."""
        try:
            return self._find(vmid) is not None
        except BackendFailed as error:
            log.error("VM {vmid}: {reason}", vmid=vmid, reason=error.text)
            return True

    async def state(self, vmid: int) -> MachineState:
        """See ports.Hypervisor. Raises: TimedOut, BackendFailed: it runs, but does not answer."""
        machine = self._find(vmid)
        if machine is not None:
            machine.bound_output()
            try:
                async with machine.monitor():
                    return MachineState(status=await machine.status(), whole=await machine.is_whole())
            except BackendFailed as error:
                if not await machine.exit.wait(1.0):
                    raise BackendFailed(f"VM {vmid} does not answer: {error.text}") from error
        return MachineState(status="off", dirty_end=read_reason(self._machine_files(vmid).stderr))

    async def start(self, vmid: int, conf: GuestConfig, incoming: Incoming, report: Report) -> int | None:
        """See ports.Hypervisor."""
        host = await self._facts.ask()
        hardware = self._hardware(_forced(conf, incoming), host)
        _check_exports(conf, incoming)
        plan = await self._plan(vmid, hardware, host, report)
        mtus = {**plan.host_mtus, **read_host_mtus(incoming.nets_host_mtu)}
        plan = replace(plan, listen_on=incoming.migrate_socket, cpu=incoming.cpu, host_mtus=mtus)
        async with self._launched(plan) as machine, machine.monitor(START_S) as monitor:
            await monitor.call("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})
            if incoming.nbd_socket is not None:
                await export_nodes(monitor, incoming.nbd_socket, {key: f"drive-{key}" for key in incoming.exports})
        return None

    async def local_start(self, vmid: int, conf: GuestConfig, report: Report) -> None:
        """Start a VM of this host. Raises: TunnelError: why it cannot be, for example that it was moved away."""
        check_not_moved(vmid, conf)
        host = await self._facts.ask()
        plan = await self._plan(vmid, self._hardware(conf, host, local=True), host, report)
        async with self._launched(plan) as machine, machine.monitor(START_S) as monitor:
            for nic in plan.hardware.nics:
                if nic.options.get("link_down") == "1":
                    await monitor.call("set_link", {"name": nic.key, "up": False})

    async def wait_whole(self, vmid: int) -> None:
        """See ports.Hypervisor."""
        machine = self._find(vmid)
        if machine is None:
            raise BackendFailed(f"QEMU ended: {read_reason(self._machine_files(vmid).stderr) or 'it gave no reason'}")
        await machine.until_whole()

    async def resume(self, vmid: int) -> None:
        """See ports.Hypervisor. Waits a while for the rest of the state: a `cont` before it does nothing at all."""
        machine = self._get(vmid)
        async with machine.monitor() as monitor:
            status = await machine.status()
            if status == "running":
                return
            if machine.record.incoming and not await self._until_settled(machine):
                raise WrongState(f"the state of VM {vmid} has not arrived in full")
            await wake(monitor, await machine.status())

    async def _until_settled(self, machine: Machine) -> bool:
        return await machine.until_whole(self._whole_s) and await machine.status() != "inmigrate"

    async def stop(self, vmid: int) -> None:
        """See ports.Hypervisor."""
        async with self._turns.of(vmid):
            machine = self._find(vmid)
            if machine is not None:
                await machine.end()
            self._forget(vmid)
            self._machine_files(vmid).clear()

    async def stop_nbd(self, vmid: int) -> None:
        """See ports.Hypervisor. Success where no server runs."""
        async with self._get(vmid).monitor() as monitor:
            await stop_exports(monitor)

    async def trim(self, vmid: int, report: Report) -> None:
        """See ports.Hypervisor."""
        if self._find(vmid) is None:
            report(f"QEMU Guest Agent is not running - VM {vmid} not running")
        else:
            await agent.trim(self._reactor, vmid, self._machine_files(vmid).agent, report)

    @asynccontextmanager
    async def attached(self, vmid: int) -> AsyncIterator[RunningMachine]:
        """A running VM, to be sent away. Raises: WrongState: `VM N not running`."""
        machine = self._get(vmid)
        async with machine.monitor() as monitor:
            yield RunningMachine(self._reactor, monitor, machine.exit)

    def _hardware(self, conf: GuestConfig, host: QemuHost | None, *, local: bool = False) -> Hardware:
        hardware = read_hardware(conf, local=local)
        for key, drive in volumes(hardware):
            volume_format(key, drive)
        firmware_file(hardware)
        try:
            shlex.split(hardware.arguments)
        except ValueError as error:
            raise refuse("args", str(error)) from error
        if host is None:
            return hardware
        check_cpu(hardware, host)
        try:
            return replace(hardware, machine=hardware.machine.resolved(host.machines))
        except FormatError as error:
            raise refuse("machine", str(error)) from error

    async def _plan(self, vmid: int, hardware: Hardware, host: QemuHost, report: Report) -> StartPlan:
        """Everything about a start that is known before it. Raises: TunnelError."""
        for text in _differences(hardware, host):
            report(text)
        await self._threads.run(check_room, hardware.memory_mib)
        files = {key: await self._file(drive.volume) for key, drive in volumes(hardware)}
        mtus = {nic.key: _own_mtu(nic) for nic in hardware.nics if "mtu" in nic.options}
        runtime_dir = self._runtime_dir
        return StartPlan(vmid=vmid, hardware=hardware, host=host, runtime_dir=runtime_dir, files=files, host_mtus=mtus)

    async def _file(self, volume: str) -> VolumeFile:
        path = volume if volume.startswith("/") else await self._storage.path(volume)
        return await self._threads.run(look_at_file, path)

    @asynccontextmanager
    async def _launched(self, plan: StartPlan) -> AsyncIterator[Machine]:
        """Start QEMU; where what follows fails, nothing is left, and the error has QEMU's own reason."""
        vmid = plan.vmid
        async with self._turns.of(vmid):
            if self._find(vmid) is not None:
                raise WrongState(f"VM {vmid} already running")
            files = self._machine_files(vmid)
            files.clear()
            try:
                machine = await self._launch(plan, files)
                try:
                    yield machine
                except MonitorLost as error:
                    explained = await machine.explained(error)
                    await machine.end()
                    raise explained from error
                except BaseException:
                    await machine.end()
                    raise
            except BaseException:
                # One that cannot be killed still has its files open, and must be found again.
                if self._find(vmid) is None:
                    self._forget(vmid)
                    files.clear()
                raise

    async def _launch(self, plan: StartPlan, files: MachineFiles) -> Machine:
        with ExitStack() as ours:
            listener = ours.enter_context(listen_unix(files.monitor))
            taps = await self._open_taps(plan, ours)
            fds = dict(enumerate([listener.fileno(), *(fd for _, own in taps for fd in own)], QMP_FD))
            argv = command_line(replace(plan, taps=_numbers(taps)))
            record = new_record(incoming=plan.listen_on is not None, sockets=_sockets(plan))
            write_record(files.record, record)
            marks = marks_of(record, files.record)
            pid = spawn_qemu(self._reactor, argv, marks, files.stderr, fds)
            record = record.with_process(pid)
            write_record(files.record, record)
        log.info("QEMU of VM {vmid} started, pid {pid}", vmid=plan.vmid, pid=pid)
        machine = Machine(self._reactor, plan.vmid, files, record, ProcessExit(self._reactor, pid, os.pidfd_open(pid)))
        self._machines[plan.vmid] = machine
        return machine

    async def _open_taps(self, plan: StartPlan, ours: ExitStack) -> list[tuple[str, list[int]]]:
        """Our descriptors of each network card that has a bridge; `ours` closes them."""
        taps = []
        for nic in plan.hardware.nics:
            if "bridge" in nic.options:
                name = f"tap{plan.vmid}i{nic.index}"
                queues = max(1, int(nic.options.get("queues", "0")))
                fds = await self._threads.run(open_tap, name, nic.options["bridge"], queues)
                ours.callback(close_all, fds)
                taps.append((nic.key, fds))
        return taps

    def _machine_files(self, vmid: int) -> MachineFiles:
        return MachineFiles(self._runtime_dir, vmid)

    def _find(self, vmid: int) -> Machine | None:
        """The VM's QEMU, where one runs."""
        machine = self._machines.get(vmid)
        if machine is None:
            machine = find_machine(self._reactor, vmid, self._machine_files(vmid))
            if machine is not None:
                self._machines[vmid] = machine
        elif not machine.runs:
            self._forget(vmid)
            return None
        return machine

    def _get(self, vmid: int) -> Machine:
        machine = self._find(vmid)
        if machine is None:
            raise WrongState(f"VM {vmid} not running")
        return machine

    def _forget(self, vmid: int) -> None:
        machine = self._machines.pop(vmid, None)
        if machine is not None:
            machine.forget()


def _numbers(taps: list[tuple[str, list[int]]]) -> dict[str, list[int]]:
    """The descriptors as QEMU will know them: in order, after the monitor's."""
    numbers = count(QMP_FD + 1)
    return {key: [next(numbers) for _ in fds] for key, fds in taps}


def _forced(conf: GuestConfig, incoming: Incoming) -> GuestConfig:
    """The config with the machine type that the VM runs with now."""
    if incoming.machine is None:
        return conf
    conf = conf.copy()
    options = conf.options.get("machine", "").split(",")
    kept = [part for part in options if "=" in part and not part.startswith("type=")]
    conf.options["machine"] = ",".join([f"type={incoming.machine}", *kept])
    return conf


def _check_exports(conf: GuestConfig, incoming: Incoming) -> None:
    for key, volid in incoming.exports.items():
        try:
            volume = parse_drive(key, conf.options.get(key, "")).volume
        except FormatError as error:
            raise refuse(key, "there is no such drive to export") from error
        if volume != volid:
            raise refuse(key, f"volume '{volid}' is not the drive's")


def _sockets(plan: StartPlan) -> list[Path]:
    """Every socket file that QEMU makes."""
    names = ["vnc", "qga", *(f"serial{number}" for number in plan.hardware.serials)]
    return [plan.socket(name) for name in names] + ([plan.listen_on] if plan.listen_on else [])


def _differences(hardware: Hardware, host: QemuHost) -> list[str]:
    """What the host does not do about a VM, though the guest sees no difference."""
    told = [f"{nic.key}: no firewall on this host" for nic in hardware.nics if nic.options.get("firewall") == "1"]
    told += [f"{nic.key}: no rate limit on this host" for nic in hardware.nics if "rate" in nic.options]
    if hardware.kvm and not host.has_kvm:
        told.append("no KVM on this host: the VM is emulated")
    return told


def _own_mtu(nic: Nic) -> int:
    """1 stands for the bridge's."""
    mtu = int(nic.options["mtu"])
    return bridge_mtu(nic.options["bridge"]) if mtu == 1 and "bridge" in nic.options else mtu


async def export_nodes(monitor: Monitor, path: Path, nodes: Mapping[str, str]) -> None:
    """An NBD server that has each drive, writable, as `drive-KEY`. Args: nodes: block nodes by drive key."""
    address: Mapping[str, Any] = {"type": "unix", "data": {"path": str(path)}}
    await monitor.call("nbd-server-start", {"addr": address}, wait_s=EXPORT_S)
    for key, node in nodes.items():
        name = f"drive-{key}"
        export = {"type": "nbd", "id": name, "node-name": node, "name": name, "writable": True}
        await monitor.call("block-export-add", export, wait_s=EXPORT_S)


async def stop_exports(monitor: Monitor) -> None:
    """End the NBD server, where there is one."""
    try:
        await monitor.call("nbd-server-stop", wait_s=EXPORT_S)
    except QmpCommandFailed as error:
        if _NO_SERVER not in error.reason:
            raise


async def wake(monitor: Monitor, status: str) -> None:
    """Let a VM in this state run."""
    if status == "running":
        return
    if status in _RESETTING:
        await monitor.call("system_reset", wait_s=RESUME_S)
    with suppress(QmpCommandFailed):
        if status == "suspended":
            await monitor.call("system_wakeup", wait_s=RESUME_S)
            return
    await monitor.call("cont", wait_s=RESUME_S)
