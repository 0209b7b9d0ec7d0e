"""The virtual machines of a host without Proxmox, in the hands of whoever runs it (ports.LocalHypervisor)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from mtunnel_tx.backends.firmware import find_variables
from mtunnel_tx.backends.machine import Machine
from mtunnel_tx.backends.qemu import QemuMachines
from mtunnel_tx.backends.scope import join_scope
from mtunnel_tx.backends.taps import list_bridges
from mtunnel_tx.errors import BackendFailed, TimedOut, WrongState
from mtunnel_tx.ports.storage import Report
from mtunnel_tx.pve.guestconf import GuestConfig

RESIZE_S = 30.0
_FREE_SOCKET = "disconnected:"


class LocalMachines(QemuMachines):
    """What the commands need besides what a migration needs."""

    def bridges(self) -> list[str]:
        """See ports.LocalHypervisor."""
        return list_bridges()

    def efi_template(self, *, enrolled: bool) -> Path:
        """See ports.LocalHypervisor."""
        return find_variables("4m", enrolled=enrolled)

    def recorded(self) -> list[int]:
        """See ports.LocalHypervisor."""
        names = (file.stem for file in self._runtime_dir.glob("*.pid"))
        return sorted(vmid for vmid in map(int, filter(str.isdecimal, names)) if self.running(vmid))

    async def local_start(self, vmid: int, conf: GuestConfig, report: Report) -> None:
        """See ports.LocalHypervisor."""
        await super().local_start(vmid, conf, report)
        await join_scope(self._reactor, os.environ, vmid, self._get(vmid).exit.pid, report)

    async def shutdown(self, vmid: int, wait_s: float) -> bool:
        """See ports.LocalHypervisor."""
        machine = self._get(vmid)
        async with machine.monitor() as monitor:
            await monitor.call("system_powerdown")
        if not await machine.exit.wait(wait_s):
            return False
        await self.stop(vmid)
        return True

    async def resize_disk(self, vmid: int, key: str, size_bytes: int) -> None:
        """See ports.LocalHypervisor."""
        async with self._get(vmid).monitor() as monitor:
            arguments = {"node-name": f"drive-{key}", "size": size_bytes}
            await monitor.call("block_resize", arguments, wait_s=RESIZE_S)

    async def console(self, vmid: int, name: str) -> Path:
        """See ports.LocalHypervisor."""
        machine = self._get(vmid)
        path = self._runtime_dir / f"{vmid}.{name}"
        if not path.is_socket():
            raise WrongState(f"VM {vmid} has no {name}")
        if name != "vnc" and await _is_taken(machine, name):
            raise WrongState(f"somebody else is connected to {name} of VM {vmid}")
        return path


async def _is_taken(machine: Machine, name: str) -> bool:
    """A serial port has one connection at a time, and the next one would wait without a word."""
    with suppress(BackendFailed, TimedOut):  # where its monitor does not answer, the port may
        async with machine.monitor() as monitor:
            ports = {port["label"]: port["filename"] for port in await monitor.call("query-chardev")}
            return not str(ports.get(name, _FREE_SOCKET)).startswith(_FREE_SOCKET)
    return False
