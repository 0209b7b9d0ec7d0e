"""The virtual machines of a host without Proxmox: QEMU, started by this program (ports.Hypervisor)."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.backends import agent
from mtunnel_tx.backends.blocknodes import let_unmap, restore
from mtunnel_tx.backends.cloudinit import CloudDrives
from mtunnel_tx.backends.cmdline import StartPlan
from mtunnel_tx.backends.cpu import check_cpu
from mtunnel_tx.backends.cpumodelsfile import CpuModelsFile
from mtunnel_tx.backends.devices import read_host_mtus
from mtunnel_tx.backends.drives import volume_format, volumes
from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.firmware import firmware_of
from mtunnel_tx.backends.host import PROGRAM, HostFacts, QemuHost, check_devices
from mtunnel_tx.backends.incoming import check_exports, with_running_machine
from mtunnel_tx.backends.launch import Launcher
from mtunnel_tx.backends.machine import CUT, POSTCOPY, Machine, find_machine
from mtunnel_tx.backends.migration import RunningMachine
from mtunnel_tx.backends.postcopytrial import try_postcopy
from mtunnel_tx.backends.process import plain_environ, read_reason
from mtunnel_tx.backends.programs import find_program
from mtunnel_tx.backends.qmp import MonitorLost
from mtunnel_tx.backends.qmpactions import expect_state, export_nodes, stop_exports, wake
from mtunnel_tx.backends.survivors import restore_records
from mtunnel_tx.errors import BackendFailed, Refusal, TunnelError, WrongState, at_once, refuse
from mtunnel_tx.ports.machines import Incoming, MachineState
from mtunnel_tx.ports.programs import Program
from mtunnel_tx.ports.storage import Report, Storage
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.hardware import Hardware, read_hardware, resolve_machine
from mtunnel_tx.pve.moved import check_not_moved
from mtunnel_tx.waiting import Turns

log = Logger()
START_S = 30.0
WHOLE_S = 15.0
MOST_REFUSALS = 32
"""How many reasons are looked for why this host cannot run a VM; each look takes about a millisecond."""


class QemuMachines:
    """ports.Hypervisor.

    Args: facts: asked before the first start. storage: knows where volumes are. runtime_dir: mode 0700, for sockets,
        process records and stderr files. cpu_models: the models of the administrator. whole_s: how long `resume` waits
        for the rest of a state.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        threads: ReactorThreads,
        facts: HostFacts,
        storage: Storage,
        runtime_dir: Path,
        cpu_models: CpuModelsFile,
        whole_s: float = WHOLE_S,
    ) -> None:
        self._reactor = reactor
        self._whole_s = whole_s
        self._threads = threads
        self._facts = facts
        self._cpu_models = cpu_models
        self._runtime_dir = runtime_dir
        self._launcher = Launcher(reactor, threads, storage, runtime_dir)
        self._cloud_drives = CloudDrives(reactor, threads, storage, runtime_dir)
        self._machines: dict[int, Machine] = {}
        self._turns = Turns()

    async def prepare(self) -> None:
        """Find running QEMUs, and ask what QEMU can do, so that `check` knows. Without QEMU the log has a warning."""
        await self.find_all()
        try:
            await self._facts.ask()
        except TunnelError as error:
            log.warn("virtual machines cannot be started: {reason}", reason=error.text)

    async def find_all(self) -> None:
        """Restore the records of running QEMUs, in case the runtime directory was emptied."""
        for vmid in await self._threads.run(restore_records, self._runtime_dir):
            log.warn("VM {vmid} runs, but its record was gone; it is there again", vmid=vmid)

    def close(self) -> None:
        """Stop watching all machines; they keep running."""
        machines, self._machines = self._machines, {}
        for machine in machines.values():
            machine.forget()

    def check(self, conf: GuestConfig, refused: Refusal = at_once, machine: str | None = None) -> None:
        """See ports.Hypervisor. Before `prepare`, machine types and CPU models are not checked."""
        rest = conf.copy()
        for _ in range(MOST_REFUSALS):
            error = self._find_refusal(rest, machine)
            if error is not None:
                refused(error.key, error)
            if error is None or error.key not in rest.options:
                return
            # The next look is at the config without what was refused.
            del rest.options[error.key]
            machine = None if error.key == "machine" else machine

    def _find_refusal(self, conf: GuestConfig, machine: str | None) -> TunnelError | None:
        try:
            self._hardware(conf, self._facts.host, machine=machine)
        except TunnelError as error:
            return error
        return None

    async def check_room(self, conf: GuestConfig, machine: str | None = None) -> None:
        """See ports.Hypervisor."""
        if self._facts.host is not None:
            await self._launcher.check_room(self._hardware(conf, self._facts.host, machine=machine))

    def running(self, vmid: int) -> bool:
        """See ports.Hypervisor. A record that cannot be read counts as a machine that runs."""
        try:
            return self._find(vmid) is not None
        except BackendFailed as error:
            log.error("VM {vmid}: {reason}", vmid=vmid, reason=error.text)
            return True

    def process(self, vmid: int) -> Program | None:
        """See ports.Hypervisor."""
        machine = self._find(vmid)
        return None if machine is None else find_program(machine.exit.pid)

    async def state(self, vmid: int) -> MachineState:
        """See ports.Hypervisor. Raises: TimedOut, BackendFailed: it runs, but does not answer."""
        machine = self._find(vmid)
        if machine is not None:
            machine.bound_output()
            try:
                async with machine.monitor():
                    arrival = await machine.arrival()
                    return MachineState(
                        status=await machine.status(),
                        whole=arrival == "completed",
                        partly=arrival == POSTCOPY or arrival in CUT,
                        cut=arrival in CUT,
                        accelerator=await machine.accelerator(),
                    )
            except BackendFailed as error:
                if not await machine.exit.wait(1.0):
                    raise BackendFailed(f"VM {vmid} does not answer: {error.text}") from error
        return MachineState(status="off", dirty_end=read_reason(self._launcher.files(vmid).stderr))

    async def start(self, vmid: int, conf: GuestConfig, incoming: Incoming, report: Report) -> int | None:
        """See ports.Hypervisor."""
        host = await self._facts.ask()
        hardware = self._hardware(conf, host, machine=incoming.machine)
        check_exports(conf, incoming)
        plan = await self._launcher.plan(vmid, hardware, host, report)
        mtus = {**plan.host_mtus, **read_host_mtus(incoming.nets_host_mtu)}
        plan = replace(plan, listen_on=incoming.migrate_socket, cpu=incoming.cpu, host_mtus=mtus)
        async with self._launched(plan) as machine, machine.monitor(START_S) as monitor:
            await expect_state(monitor, postcopy=incoming.postcopy)
            if incoming.nbd_socket is not None:
                nodes = {key: f"drive-{key}" for key in incoming.exports}
                await let_unmap(monitor, machine.exit.pid, nodes.values())
                await export_nodes(monitor, incoming.nbd_socket, nodes)
        return None

    async def local_start(self, vmid: int, conf: GuestConfig, report: Report) -> None:
        """Start a VM of this host. Raises: TunnelError: why it cannot start, for example that it was moved away."""
        check_not_moved(vmid, conf)
        host = await self._facts.ask()
        plan = await self._launcher.plan(vmid, self._hardware(conf, host, local=True), host, report)
        fill = partial(self._cloud_drives.make, vmid, conf, host.programs, report)
        async with self._launched(plan, fill) as machine, machine.monitor(START_S) as monitor:
            for nic in plan.hardware.nics:
                if nic.options.get("link_down") == "1":
                    await monitor.call("set_link", {"name": nic.key, "up": False})

    async def wait_whole(self, vmid: int) -> None:
        """See ports.Hypervisor."""
        machine = self._find(vmid)
        if machine is None:
            raise BackendFailed(f"QEMU ended: {read_reason(self._launcher.files(vmid).stderr) or 'it gave no reason'}")
        await machine.until_whole()

    async def check_postcopy(self) -> None:
        """See ports.Hypervisor."""
        await try_postcopy(self._reactor, plain_environ(), PROGRAM)

    async def resume(self, vmid: int, *, partly: bool = False) -> None:
        """See ports.Hypervisor. Waits for the rest of the state, because an earlier `cont` would have no effect."""
        machine = self._get(vmid)
        async with machine.monitor() as monitor:
            status = await machine.status()
            if status == "running":
                return
            may_run = partly and status == "paused" and await machine.arrival() == POSTCOPY
            if not may_run and machine.record.incoming and not await self._until_settled(machine):
                raise WrongState(f"the state of VM {vmid} has not arrived in full")
            await wake(monitor, await machine.status())
            if machine.record.incoming and not partly:  # in post-copy its monitor may wait for pages
                await restore(monitor, machine.exit.pid)

    async def _until_settled(self, machine: Machine) -> bool:
        return await machine.until_whole(self._whole_s) and await machine.status() != "inmigrate"

    async def stop(self, vmid: int) -> None:
        """See ports.Hypervisor."""
        async with self._turns.of(vmid):
            machine = self._find(vmid)
            if machine is not None:
                await machine.end()
            self._forget(vmid)
            self._launcher.files(vmid).clear()

    async def stop_nbd(self, vmid: int) -> None:
        """See ports.Hypervisor. Success where no server runs."""
        async with self._get(vmid).monitor() as monitor:
            await stop_exports(monitor)

    async def trim(self, vmid: int, report: Report) -> None:
        """See ports.Hypervisor."""
        if self._find(vmid) is None:
            report(f"QEMU Guest Agent is not running - VM {vmid} not running")
        else:
            await agent.trim(self._reactor, vmid, self._launcher.files(vmid).agent, report)

    @asynccontextmanager
    async def attached(self, vmid: int) -> AsyncIterator[RunningMachine]:
        """A running VM, for its migration to another host. Raises: WrongState: `VM N not running`."""
        machine = self._get(vmid)
        async with machine.monitor() as monitor:
            yield RunningMachine(self._reactor, monitor, machine.exit)

    def _hardware(
        self, conf: GuestConfig, host: QemuHost | None, *, local: bool = False, machine: str | None = None
    ) -> Hardware:
        """Read a config, and check what can be checked before a start. Raises: TunnelError: `KEY: REASON`."""
        hardware = read_hardware(conf, local=local, cpu_models=self._cpu_models.value())
        for key, drive in volumes(hardware):
            volume_format(key, drive)
        firmware_of(hardware)
        _check_arguments(hardware.arguments)
        if host is None:
            return hardware
        check_cpu(hardware, host)
        check_devices(hardware, host)
        return resolve_machine(with_running_machine(hardware, machine), host.machines)

    @asynccontextmanager
    async def _launched(
        self, plan: StartPlan, prepare: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator[Machine]:
        """Start QEMU. Args: prepare: called before, when it is certain that the VM does not run.

        If the `async with` block fails, QEMU is ended and its files are removed.
        """
        vmid = plan.vmid
        async with self._turns.of(vmid):
            if self._find(vmid) is not None:
                raise WrongState(f"VM {vmid} already running")
            files = self._launcher.files(vmid)
            files.clear()
            if prepare is not None:
                await prepare()
            try:
                machine = self._machines[vmid] = await self._launcher.launch(plan)
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
                # A QEMU that cannot be killed still has its files open, and must be found again by its record.
                if self._find(vmid) is None:
                    self._forget(vmid)
                    files.clear()
                raise

    def _find(self, vmid: int) -> Machine | None:
        """The VM's QEMU; None: it does not run."""
        machine = self._machines.get(vmid)
        if machine is None:
            machine = find_machine(self._reactor, vmid, self._launcher.files(vmid))
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


def _check_arguments(arguments: str) -> None:
    try:
        shlex.split(arguments)
    except ValueError as error:
        raise refuse("args", str(error)) from error
