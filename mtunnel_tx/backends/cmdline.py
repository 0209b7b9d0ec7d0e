"""QEMU's command line for a virtual machine: Proxmox's machine, on a host without Proxmox."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtunnel_tx.backends.cpu import cpu_argument
from mtunnel_tx.backends.devices import as_json, bus_devices, device, escaped, nic_device, serial_devices, small_devices
from mtunnel_tx.backends.displays import agent_port_devices, graphics_devices, spice_server
from mtunnel_tx.backends.drives import VolumeFile, controller_names, disk_devices
from mtunnel_tx.backends.firmware import firmware_devices, firmware_of
from mtunnel_tx.backends.host import PROGRAM, QemuHost
from mtunnel_tx.backends.memorydevices import dimm_devices, memory_arguments
from mtunnel_tx.backends.sound import sound_devices
from mtunnel_tx.backends.tpm import tpm_arguments
from mtunnel_tx.backends.usbdevices import tablet_device, usb_controllers, usb_ports
from mtunnel_tx.pve.hardware import Hardware

QMP_FD = 3
"""The number that the monitor's listening socket has in QEMU."""
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPlan:
    """Everything that the command line of one start depends on.

    `files`: drive key to its volume's file; `taps`: network card to the descriptors of its tap device in QEMU;
    `host_mtus`: network card to the MTU that it announces to the guest; `listen_on`: wait there for another host's
    state; `cpu`: the `-cpu` argument, if the source of a migration gives it; `tpm_fd`: QEMU's descriptor to the TPM.
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
    tpm_fd: int | None = None

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
        *firmware_devices(hardware, firmware_of(hardware), plan.files),
        *("-boot", "strict=on,reboot-timeout=1000"),
        *_vnc(plan),
        *("-cpu", cpu_argument(hardware, plan.host, told=plan.cpu), "-smp", _processors(hardware)),
        *memory_arguments(hardware.memory, hardware.cpu, plan.host.phys_bits),
        *dimm_devices(hardware.memory),
        *_power(plan),
        *bus_devices(hardware, {*controller_names(hardware), *_own_bus(hardware)}),
        *usb_controllers(hardware),
        *tablet_device(hardware),
        *usb_ports(hardware),
        *tpm_arguments(plan.tpm_fd),
        *(device("tpm-tis", tpmdev="tpmdev") if hardware.tpm else []),
        *graphics_devices(hardware),
        *serial_devices(hardware, plan.socket),
        *sound_devices(hardware, spice=plan.host.has_spice),
        *agent_port_devices(hardware.display, spice=plan.host.has_spice),
        *(spice_server(hardware.display, plan.socket("spice")) if plan.host.has_spice else []),
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


def _vnc(plan: StartPlan) -> list[str]:
    """The screen, and the layout of the keyboard before it."""
    if not plan.hardware.display.driver:
        return []
    layout = ["-k", plan.hardware.keyboard] if plan.hardware.keyboard else []
    return ["-vnc", f"unix:{escaped(plan.socket('vnc'))}", *layout]


def _processors(hardware: Hardware) -> str:
    most = hardware.sockets * hardware.cores
    return f"{hardware.vcpus},sockets={hardware.sockets},cores={hardware.cores},maxcpus={most}"


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
    if hardware.has_native_hotplug:
        arguments += ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
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
    if not hardware.ovmf and hardware.display.is_text:
        options.append("smm=off")
    if hardware.ovmf:
        options += ["pflash0=pflash0", "pflash1=drive-efidisk0"]
    return ",".join(options)


def _start(plan: StartPlan) -> list[str]:
    arguments = ["-no-reboot"] if plan.hardware.stops_at_reboot else []
    if plan.listen_on is not None:
        return [*arguments, "-incoming", f"unix:{plan.listen_on}", "-S"]
    return [*arguments, "-S"] if plan.hardware.starts_frozen else arguments
