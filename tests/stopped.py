"""A host without running guests: the hypervisor for stopped VMs."""

from __future__ import annotations

from mtunnel_tx.errors import Refusal, WrongState, at_once
from mtunnel_tx.ports.machines import Incoming, MachineState
from mtunnel_tx.ports.programs import Program
from mtunnel_tx.ports.storage import Report
from mtunnel_tx.pve.guestconf import GuestConfig


class StoppedMachines:
    """Every VM is off (ports.Hypervisor)."""

    def running(self, _vmid: int) -> bool:
        """Never."""
        return False

    def process(self, _vmid: int) -> Program | None:
        """There is none."""
        return None

    def check(self, conf: GuestConfig, refused: Refusal = at_once, machine: str | None = None) -> None:
        """A VM that is never started may be anything."""

    async def check_room(self, conf: GuestConfig, machine: str | None = None) -> None:
        """It needs no room."""

    async def state(self, _vmid: int) -> MachineState:
        """Always off."""
        return MachineState(status="off")

    async def start(self, vmid: int, _conf: GuestConfig, _incoming: Incoming, _report: Report) -> int | None:
        """Refuse: there is no QEMU behind this."""
        raise WrongState(f"VM {vmid} cannot be started: running VMs are not received by this version")

    async def wait_whole(self, vmid: int) -> None:
        """There is no state to wait for."""
        raise WrongState(f"VM {vmid} not running")

    async def stop(self, vmid: int) -> None:
        """It is off already."""

    async def resume(self, vmid: int) -> None:
        """There is nothing to resume."""
        raise WrongState(f"VM {vmid} not running")

    async def stop_nbd(self, vmid: int) -> None:
        """There is nothing exported."""
        raise WrongState(f"VM {vmid} not running")

    async def trim(self, vmid: int, report: Report) -> None:
        """There is nobody to ask."""
        report(f"QEMU Guest Agent is not running - VM {vmid} not running")
