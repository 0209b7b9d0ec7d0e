"""QEMU's command line for a virtual machine: Proxmox's machine, on a host without Proxmox."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtunnel_tx.backends.cpu import cpu_argument
from mtunnel_tx.backends.devices import (
    as_json,
    bus_devices,
    clipboard_devices,
    escaped,
    nic_device,
    serial_devices,
    small_devices,
    usb_devices,
    vga_devices,
)
from mtunnel_tx.backends.drives import VolumeFile, blockdev, controller_names, disk_devices
from mtunnel_tx.backends.host import PROGRAM, QemuHost, find_firmware
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.hardware import Hardware
from mtunnel_tx.pve.numa import NumaNode, span_numbers

QMP_FD = 3
"""The number that the monitor's listening socket has in QEMU."""
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPlan:
    """A start.

    `files`: drive key to its volume's file; `taps`: network card to the descriptors of its tap device, as QEMU knows
    them; `host_mtus`: network card to the MTU it tells the guest; `listen_on`: wait there for another host's state;
    `cpu`: the argument of `-cpu`, where the source of a migration says it.
    """

    vmid: int
    hardware: Hardware
    host: QemuHost
    runtime_dir: Path
    files: Mapping[str, VolumeFile]
    taps: Mapping[str, Sequence[int]] = field(default_factory=dict)
    host_mtus: Mapping[str, int] = field(default_factory=dict)
    listen_on: Path | None = None
    cpu: str | None = None

    @property
    def kvm(self) -> bool:
        """Whether the machine's own hardware runs the guest."""
        return self.host.runs_on_kvm(self.hardware)

    def socket(self, name: str) -> Path:
        """A UNIX socket of the VM's, e.g. `100.qga`."""
        return self.runtime_dir / f"{self.vmid}.{name}"


def command_line(plan: StartPlan) -> list[str]:
    """The program and all its arguments. Raises: TunnelError: `KEY: REASON`: something this host does not have."""
    hardware = plan.hardware
    return [
        *(PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-sandbox", _SANDBOX),
        *("-name", f"{escaped(hardware.name or f'vm{plan.vmid}')},debug-threads=on"),
        *("-chardev", f"socket,id=qmp,fd={QMP_FD},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        *_identity(hardware),
        *_firmware(plan),
        *("-boot", "strict=on,reboot-timeout=1000"),
        *_screen(plan),
        *("-cpu", cpu_argument(hardware, plan.host, told=plan.cpu), "-smp", _processors(hardware)),
        *_memory(hardware),
        *_power(plan),
        *bus_devices(hardware, {*controller_names(hardware), *_own_bus(hardware)}),
        *usb_devices(hardware),
        *vga_devices(hardware),
        *serial_devices(hardware, plan.socket),
        *clipboard_devices(hardware),
        *small_devices(hardware),
        *disk_devices(hardware, plan.files),
        *_networks(plan),
        *_clock(hardware),
        *("-machine", _machine(plan)),
        *_start(plan),
        *shlex.split(hardware.arguments),
    ]


def _identity(hardware: Hardware) -> list[str]:
    if not hardware.smbios:
        return []
    fields = ",".join(f"{key}={escaped(value)}" for key, value in sorted(hardware.smbios.items()))
    return ["-smbios", f"type=1,{fields}"]


def _firmware(plan: StartPlan) -> list[str]:
    """UEFI in two flash chips, the second is the EFI disk."""
    hardware = plan.hardware
    code = firmware_file(hardware)
    if code is None or hardware.efidisk is None:
        return []
    lower = {"driver": "file", "filename": str(code), "read-only": True}
    flash = {"driver": "raw", "node-name": "pflash0", "read-only": True, "file": lower}
    return ["-blockdev", as_json(flash), *blockdev("efidisk0", hardware.efidisk, plan.files["efidisk0"])]


def firmware_file(hardware: Hardware) -> Path | None:
    """The UEFI firmware; None: the VM has a BIOS. Raises: TunnelError: `bios: …`: it cannot be run here."""
    if not hardware.ovmf:
        return None
    if hardware.efidisk is None or hardware.efidisk.is_cdrom:
        raise TunnelError("bios: without an EFI disk, ovmf cannot be run here")
    # The firmware that guards its keys needs SMM, which Proxmox's i440fx machines do without.
    return find_firmware(hardware.efidisk.options.get("efitype", "2m"), secure=hardware.machine.is_q35)


def _screen(plan: StartPlan) -> list[str]:
    return ["-vnc", f"unix:{escaped(plan.socket('vnc'))}"] if plan.hardware.vga_device else []


def _processors(hardware: Hardware) -> str:
    most = hardware.sockets * hardware.cores
    return f"{hardware.vcpus},sockets={hardware.sockets},cores={hardware.cores},maxcpus={most}"


def _memory(hardware: Hardware) -> list[str]:
    arguments = ["-m", str(hardware.memory_mib)]
    for number, node in enumerate(hardware.numa):
        arguments += ["-object", as_json(_memory_backend(number, node))]
        cpus = "".join(f",cpus={span}" for span in node.cpus)
        arguments += ["-numa", f"node,nodeid={number}{cpus},memdev=ram-node{number}"]
    return arguments


def _memory_backend(number: int, node: NumaNode) -> dict[str, object]:
    backend: dict[str, object] = {
        "qom-type": "memory-backend-ram",
        "id": f"ram-node{number}",
        "size": node.memory_mib << 20,
    }
    if node.host_nodes:
        numbers = [number for span in node.host_nodes for number in span_numbers(span)]
        backend |= {"host-nodes": numbers, "policy": node.policy}
    return backend


def _power(plan: StartPlan) -> list[str]:
    """Sleep states, which newer machines have not, and the timer that Windows must not catch up with."""
    hardware = plan.hardware
    chip = "ICH9-LPC" if hardware.machine.is_q35 else "PIIX4_PM"
    modern = hardware.machine.at_least(9, 2, 1)
    arguments: list[str] = []
    if plan.kvm and hardware.windows >= 6:
        arguments += ["-global", "kvm-pit.lost_tick_policy=discard"]
    for state in ("s3", "s4"):
        if modern or state in hardware.sleeps:
            arguments += ["-global", f"{chip}.disable_{state}={int(not hardware.sleeps.get(state, False))}"]
    return arguments


def _own_bus(hardware: Hardware) -> set[str]:
    return {nic.key for nic in hardware.nics} | ({"rng0"} if hardware.rng else set())


def _networks(plan: StartPlan) -> list[str]:
    arguments: list[str] = []
    for nic in plan.hardware.nics:
        fds = plan.taps.get(nic.key)
        arguments += ["-netdev", as_json(_netdev(plan, nic.key, fds))]
        mtu = plan.host_mtus.get(nic.key)
        arguments += nic_device(nic, plan.hardware, host_mtu=mtu, roms=plan.host.roms)
    return arguments


def _netdev(plan: StartPlan, key: str, fds: Sequence[int] | None) -> dict[str, object]:
    if fds is None:
        return {"type": "user", "id": key}
    numbers = ":".join(map(str, fds))
    vhost = plan.kvm and plan.host.has_vhost_net
    return {"type": "tap", "id": key, "fd" if len(fds) == 1 else "fds": numbers, "vhost": vhost}


def _clock(hardware: Hardware) -> list[str]:
    return ["-rtc", ",".join(f"{key}={value}" for key, value in hardware.clock.items())] if hardware.clock else []


def _machine(plan: StartPlan) -> str:
    hardware = plan.hardware
    options = [f"type={hardware.machine.name}", f"accel={'kvm' if plan.kvm else 'tcg'}"]
    if hardware.windows >= 6 or (hardware.linux and hardware.machine.at_least(10, 1)):
        options.append("hpet=off")
    if not hardware.acpi:
        options.append("acpi=off")
    if not hardware.ovmf and hardware.vga.get("type", "").startswith(("serial", "none")):
        options.append("smm=off")
    if hardware.ovmf:
        options += ["pflash0=pflash0", "pflash1=drive-efidisk0"]
    return ",".join(options)


def _start(plan: StartPlan) -> list[str]:
    arguments = ["-no-reboot"] if plan.hardware.stops_at_reboot else []
    if plan.listen_on is not None:
        return [*arguments, "-incoming", f"unix:{plan.listen_on}", "-S"]
    return [*arguments, "-S"] if plan.hardware.starts_frozen else arguments
