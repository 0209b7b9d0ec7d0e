"""The start of one QEMU: everything that must be known before it, its descriptors, its record, its process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from mtunnel_tx.backends.cmdline import QMP_FD, StartPlan, command_line
from mtunnel_tx.backends.drives import VolumeFile, look_at_file, volumes
from mtunnel_tx.backends.files import ReactorThreads
from mtunnel_tx.backends.firmware import EFIDISK, find_variables, firmware_of
from mtunnel_tx.backends.host import QemuHost, check_huge_pages, check_room
from mtunnel_tx.backends.machine import Machine, MachineFiles
from mtunnel_tx.backends.process import (
    ProcessExit,
    ProcessRecord,
    listen_unix,
    marks_of,
    new_record,
    plain_environ,
    spawn_qemu,
    write_record,
)
from mtunnel_tx.backends.taps import bridge_mtu, close_all, open_tap
from mtunnel_tx.backends.tpm import KEY as TPM
from mtunnel_tx.backends.tpm import control_sockets, is_blank, prepare_state, spawn_swtpm
from mtunnel_tx.errors import refuse
from mtunnel_tx.ports.storage import Report, Storage
from mtunnel_tx.pve.hardware import Hardware, Nic
from mtunnel_tx.pve.volume import find_owner

log = Logger()
VARIABLES = "efivars"
"""The ending of a file with UEFI variables for one run."""
_USUAL_MTU = 1500
_LEAST_MTU = 576


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
        mtus = await self.check_room(hardware)
        files = {key: await self._file(key, drive.volume) for key, drive in volumes(hardware)}
        runtime_dir = self._runtime_dir
        return StartPlan(vmid=vmid, hardware=hardware, host=host, runtime_dir=runtime_dir, files=files, host_mtus=mtus)

    async def check_room(self, hardware: Hardware) -> Mapping[str, int]:
        """Whether the host has the memory and the bridges. Returns: the MTUs of network cards. Raises: TunnelError."""
        if hardware.memory.pages is None:
            await self._threads.run(check_room, hardware.memory.size_mib)
        else:
            await self._threads.run(check_huge_pages, hardware.memory)
        return await self._threads.run(announced_mtus, hardware)

    async def _file(self, key: str, volume: str) -> VolumeFile:
        """Find a drive's file. Raises: TunnelError: there is none, or QEMU would open other files with it."""
        if volume.startswith("/"):
            return await self._threads.run(look_at_file, volume)
        file = await self._threads.run(look_at_file, await self._storage.path(volume))
        self._check_content(key, volume)
        if reason := await self._storage.refers_elsewhere(volume):
            raise refuse(key, f"'{volume}' cannot be used: {reason}")
        return file

    def _check_content(self, key: str, volume: str) -> None:
        """Raises: TunnelError: the storage is not for this kind of volume."""
        storage, _, name = volume.partition(":")
        entry = self._storage.config().get(storage)
        if entry is not None and (content := find_owner(entry, name).content) not in entry.content:
            raise refuse(key, f"storage '{storage}' does not support content-type '{content}'")

    async def launch(self, plan: StartPlan) -> Machine:
        """Start QEMU. If this fails, files may be left; `MachineFiles.clear` removes them. Raises: BackendFailed."""
        files = self.files(plan.vmid)
        plan = await self._with_variables(plan)
        await self._prepare_tpm(plan)
        with ExitStack() as ours:
            listener = ours.enter_context(listen_unix(files.monitor))
            taps = await self._open_taps(plan, ours)
            given = [listener.fileno(), *(fd for _, own in taps for fd in own)]
            plan = replace(plan, taps=_numbers(taps))
            if (tpm := plan.hardware.tpm) is not None:
                to_tpm, of_tpm = ours.enter_context(control_sockets())
                plan = replace(plan, tpm_fd=QMP_FD + len(given))
                given.append(to_tpm)
                spawn_swtpm(self._reactor, plan.files[TPM].path, tpm, of_tpm, files.stderr)
            record = self._spawn(plan, files, dict(enumerate(given, QMP_FD)))
        pid, accelerator = record.pid, "KVM" if plan.kvm else "emulated"
        log.info(
            "QEMU of VM {vmid} started, pid {pid}, {accelerator}", vmid=plan.vmid, pid=pid, accelerator=accelerator
        )
        return Machine(self._reactor, plan.vmid, files, record, ProcessExit(self._reactor, pid, os.pidfd_open(pid)))

    def _spawn(self, plan: StartPlan, files: MachineFiles, fds: Mapping[int, int]) -> ProcessRecord:
        """Start QEMU, with its record written before and after. Args: fds: number in QEMU to our descriptor."""
        record = new_record(incoming=plan.listen_on is not None, sockets=_sockets(plan))
        write_record(files.record, record)
        pid = spawn_qemu(self._reactor, command_line(plan), marks_of(record, files.record), files.stderr, fds)
        record = record.with_process(pid)
        write_record(files.record, record)
        return record

    async def _prepare_tpm(self, plan: StartPlan) -> None:
        """Make a TPM of a state volume that was never used; that of a migration comes with the VM's memory."""
        drive = plan.hardware.tpm
        if drive is not None and plan.listen_on is None and await self._threads.run(is_blank, plan.files[TPM].path):
            await prepare_state(self._reactor, plan.files[TPM].path, drive, plain_environ())

    async def _with_variables(self, plan: StartPlan) -> StartPlan:
        """Give firmware without an EFI disk a copy of its template for this run."""
        firmware = firmware_of(plan.hardware)
        if firmware is None or EFIDISK in plan.files:
            return plan
        copy = plan.socket(VARIABLES)
        await self._threads.run(shutil.copyfile, find_variables(firmware.kind, enrolled=False), copy)
        return replace(plan, files={**plan.files, EFIDISK: VolumeFile(path=str(copy), is_device=False, direct=False)})

    async def _open_taps(self, plan: StartPlan, ours: ExitStack) -> list[tuple[str, list[int]]]:
        """Open a tap device for each network card that has a bridge; `ours` closes our descriptors."""
        taps = []
        for nic in plan.hardware.nics:
            if "bridge" in nic.options:
                name = f"tap{plan.vmid}i{nic.index}"
                queues = max(1, int(nic.options.get("queues", "0")))
                tag, trunks = nic.options.get("tag"), nic.options.get("trunks", "")
                plug = partial(open_tap, name, nic.options["bridge"], queues, tag=tag, trunks=trunks)
                fds = await self._threads.run(plug)
                ours.callback(close_all, fds)
                taps.append((nic.key, fds))
        return taps


def _numbers(taps: list[tuple[str, list[int]]]) -> dict[str, list[int]]:
    """The numbers that the descriptors have in QEMU: in order, after the monitor's."""
    numbers = count(QMP_FD + 1)
    return {key: [next(numbers) for _ in fds] for key, fds in taps}


def _sockets(plan: StartPlan) -> list[Path]:
    """Every file that is of use for this run only, most of them sockets."""
    names = ["vnc", "qga", "spice", VARIABLES, *(f"serial{number}" for number in plan.hardware.serials)]
    return [plan.socket(name) for name in names] + ([plan.listen_on] if plan.listen_on else [])


def _differences(hardware: Hardware, host: QemuHost) -> list[str]:
    """What this host does not do for the VM although its config asks for it; the guest sees no difference."""
    told = [f"{nic.key}: no firewall on this host" for nic in hardware.nics if nic.options.get("firewall") == "1"]
    told += [f"{nic.key}: no rate limit on this host" for nic in hardware.nics if "rate" in nic.options]
    if hardware.kvm and not host.has_kvm:
        told.append("no KVM on this host: the VM is emulated")
    return told


def announced_mtus(hardware: Hardware, read_mtu: Callable[[str], int] = bridge_mtu) -> dict[str, int]:
    """The MTU that each network card announces to its guest; cards that announce none are left out.

    Only virtio cards can, and it is that of their bridge, or a smaller one of the config. 1500 is announced by newer
    machines only. Blocks.
    Args: read_mtu: takes the name of a bridge.
    Raises: TunnelError: `netN: …`: no such bridge, or the MTU does not fit it.
    """
    mtus = {nic.key: _mtu(nic, read_mtu(nic.options["bridge"])) for nic in hardware.nics if _can_announce(nic)}
    always = hardware.machine.at_least(10, 0, 1)
    return {key: mtu for key, mtu in mtus.items() if always or mtu != _USUAL_MTU}


def _can_announce(nic: Nic) -> bool:
    return nic.options["model"] == "virtio" and "bridge" in nic.options


def _mtu(nic: Nic, bridge: int) -> int:
    mtu = int(nic.options.get("mtu", "1"))
    if mtu == 1:
        return bridge
    if not _LEAST_MTU <= mtu <= bridge:
        raise refuse(nic.key, f"mtu {mtu} is not between {_LEAST_MTU} and the bridge's {bridge}")
    return mtu
