"""A host without running guests: the hypervisor for stopped VMs."""

from __future__ import annotations

from mtunnel_tx.errors import WrongState
from mtunnel_tx.ports import Report


class StoppedMachines:
    """Every VM is off (ports.Hypervisor)."""

    def running(self, _vmid: int) -> bool:
        """Never."""
        return False

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
