"""Virtual machines that run on this node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mtunnel_tx.errors import Refusal, at_once
from mtunnel_tx.ports.programs import Program
from mtunnel_tx.ports.storage import Report
from mtunnel_tx.pve.guestconf import GuestConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """How a VM is started that waits for its state from another host.

    `migrate_socket`, `nbd_socket`: UNIX socket files to listen on (None: no NBD server); `exports`: drive key to volume
    id, each exported writable as `drive-KEY`; `postcopy`: it may run before all of its memory is here;
    the rest as the source sent it (protocol.md section 5, `start`).
    """

    migrate_socket: Path
    nbd_socket: Path | None
    exports: Mapping[str, str]
    from_node: str
    machine: str | None = None
    cpu: str | None = None
    nets_host_mtu: str | None = None
    spice_ticket: str | None = None
    postcopy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """What QEMU says: `status` as in query-status (`inmigrate`, `paused`, `running`, …), `off` where there is none.

    `whole`: query-migrate says completed here. `partly`: it says that enough is here for it to run, by post-copy;
    `cut`: and that the source, which has the rest, is out of reach.
    `dirty_end`: where it is off, why it ended (tail of its stderr).
    `accelerator`: `kvm`, `tcg` (emulated), or an empty text where it is off or not known.
    """

    status: str
    whole: bool = False
    partly: bool = False
    cut: bool = False
    dirty_end: str = ""
    accelerator: str = ""


class Hypervisor(Protocol):
    """The virtual machines that run on this node."""

    def check(self, conf: GuestConfig, refused: Refusal = at_once, machine: str | None = None) -> None:
        """Args: refused: takes each key that this host cannot run, and why. machine: the type that it runs with."""

    async def check_room(self, conf: GuestConfig, machine: str | None = None) -> None:
        """Whether a VM that passes `check` could be started now. Raises: TunnelError: no memory, no fitting bridge."""

    def running(self, vmid: int) -> bool:
        """Whether there is a live QEMU process; reads no socket."""

    def process(self, vmid: int) -> Program | None:
        """Which process the VM's QEMU is; None: there is none. Raises: BackendFailed: nobody knows."""

    async def state(self, vmid: int) -> MachineState:
        """Ask QEMU now; `off` where there is none."""

    async def start(self, vmid: int, conf: GuestConfig, incoming: Incoming, report: Report) -> int | None:
        """Start a VM paused, waiting for its state; its sockets listen when this returns.

        Returns: the SPICE port where there is one. Raises: BackendFailed: with QEMU's own reason; nothing is left then.
        """

    async def wait_whole(self, vmid: int) -> None:
        """Wait until the whole state has arrived. Raises: BackendFailed: QEMU ended before, with its reason."""

    async def check_postcopy(self) -> None:
        """Whether a VM may run here before all of its memory is here. Raises: BackendFailed: why not."""

    async def resume(self, vmid: int, *, partly: bool = False) -> None:
        """Running: nothing; paused: run; suspended: wake up; shut down: reset and run.

        Args: partly: also where a part of its memory is still to come, by post-copy.
        Raises: WrongState: it does not run: `VM N not running`, its state is not whole yet, or QEMU refuses. Any other
        error: it may run, or will.
        """

    async def stop(self, vmid: int) -> None:
        """QMP quit, then signals; success where it is off; sockets, pidfile and stderr file go too."""

    async def stop_nbd(self, vmid: int) -> None:
        """Raises: WrongState: `VM N not running`."""

    async def trim(self, vmid: int, report: Report) -> None:
        """Never an error: what stands in the way goes to `report`."""


class LocalHypervisor(Hypervisor, Protocol):
    """The virtual machines of a host without Proxmox, in the hands of whoever runs it."""

    def close(self) -> None:
        """Let go of all machines; they run on."""

    async def find_all(self) -> None:
        """See that every QEMU which runs can be found, also where the runtime directory was emptied."""

    def bridges(self) -> list[str]:
        """The bridges of this host that network cards can be plugged into."""

    def efi_template(self, *, enrolled: bool) -> Path:
        """What a new EFI disk of type 4m holds, a raw image.

        Args: enrolled: with the keys for secure boot. Raises: TunnelError: this host has no such firmware.
        """

    def recorded(self) -> list[int]:
        """The VMs that run by their record, with a config or without one."""

    async def local_start(self, vmid: int, conf: GuestConfig, report: Report) -> None:
        """Start a VM of this host. Raises: TunnelError: why it cannot be."""

    async def shutdown(self, vmid: int, wait_s: float) -> bool:
        """Press the power button and wait for the end. Returns: it ended. Raises: WrongState: `VM N not running`."""

    async def resize_disk(self, vmid: int, key: str, size_bytes: int) -> None:
        """Tell a running VM its disk's new size. Raises: BackendFailed: QEMU refuses; WrongState: it does not run."""

    async def console(self, vmid: int, name: str) -> Path:
        """The UNIX socket of a serial port (`serial0`) or of the screen (`vnc`).

        Raises: WrongState: it does not run, has no such thing, or somebody else is connected to the serial port.
        """
