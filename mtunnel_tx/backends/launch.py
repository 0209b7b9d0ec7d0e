"""The start of one QEMU: everything that must be known before it, its descriptors, its record, its process."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.backends.cmdline import QMP_FD, StartPlan, command_line
from mtunnel_tx.backends.drives import VolumeFile, look_at_file, volumes
from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.host import QemuHost, check_room
from mtunnel_tx.backends.machine import Machine, MachineFiles
from mtunnel_tx.backends.process import ProcessExit, listen_unix, marks_of, new_record, spawn_qemu, write_record
from mtunnel_tx.backends.taps import bridge_mtu, close_all, open_tap
from mtunnel_tx.ports.storage import Report, Storage
from mtunnel_tx.pve.hardware import Hardware, Nic

log = Logger()


class Launcher:
    """Makes start plans, and processes of them.

    Args: storage: knows where volumes are. runtime_dir: mode 0700, for sockets, records and stderr files.
    """

    def __init__(self, reactor: Any, threads: ReactorThreads, storage: Storage, runtime_dir: Path) -> None:
        self._reactor = reactor
        self._threads = threads
        self._storage = storage
        self._runtime_dir = runtime_dir

    def files(self, vmid: int) -> MachineFiles:
        """The files of a VM's QEMU."""
        return MachineFiles(self._runtime_dir, vmid)

    async def plan(self, vmid: int, hardware: Hardware, host: QemuHost, report: Report) -> StartPlan:
        """Find out everything that a start needs. Raises: TunnelError: something is missing."""
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

    async def launch(self, plan: StartPlan) -> Machine:
        """Start QEMU. If this fails, files may be left; `MachineFiles.clear` removes them. Raises: BackendFailed."""
        files = self.files(plan.vmid)
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
        accelerator = "KVM" if plan.kvm else "emulated"
        log.info(
            "QEMU of VM {vmid} started, pid {pid}, {accelerator}", vmid=plan.vmid, pid=pid, accelerator=accelerator
        )
        return Machine(self._reactor, plan.vmid, files, record, ProcessExit(self._reactor, pid, os.pidfd_open(pid)))

    async def _open_taps(self, plan: StartPlan, ours: ExitStack) -> list[tuple[str, list[int]]]:
        """Open a tap device for each network card that has a bridge; `ours` closes our descriptors."""
        taps = []
        for nic in plan.hardware.nics:
            if "bridge" in nic.options:
                name = f"tap{plan.vmid}i{nic.index}"
                queues = max(1, int(nic.options.get("queues", "0")))
                fds = await self._threads.run(open_tap, name, nic.options["bridge"], queues)
                ours.callback(close_all, fds)
                taps.append((nic.key, fds))
        return taps


def _numbers(taps: list[tuple[str, list[int]]]) -> dict[str, list[int]]:
    """The numbers that the descriptors have in QEMU: in order, after the monitor's."""
    numbers = count(QMP_FD + 1)
    return {key: [next(numbers) for _ in fds] for key, fds in taps}


def _sockets(plan: StartPlan) -> list[Path]:
    """Every socket file that QEMU creates."""
    names = ["vnc", "qga", *(f"serial{number}" for number in plan.hardware.serials)]
    return [plan.socket(name) for name in names] + ([plan.listen_on] if plan.listen_on else [])


def _differences(hardware: Hardware, host: QemuHost) -> list[str]:
    """What this host does not do for the VM although its config asks for it; the guest sees no difference."""
    told = [f"{nic.key}: no firewall on this host" for nic in hardware.nics if nic.options.get("firewall") == "1"]
    told += [f"{nic.key}: no rate limit on this host" for nic in hardware.nics if "rate" in nic.options]
    if hardware.kvm and not host.has_kvm:
        told.append("no KVM on this host: the VM is emulated")
    return told


def _own_mtu(nic: Nic) -> int:
    """The MTU that a config gives; 1 stands for the bridge's."""
    mtu = int(nic.options["mtu"])
    return bridge_mtu(nic.options["bridge"]) if mtu == 1 and "bridge" in nic.options else mtu
