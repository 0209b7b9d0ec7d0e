"""What a virtual machine is made of: a guest's config, read for a host that starts QEMU by itself.

What such a host cannot run is refused by the name of its key; nothing that a guest would notice is left out silently.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from mtunnel_tx.checks import FormatError, clean
from mtunnel_tx.errors import TunnelError, refuse
from mtunnel_tx.pve.booting import boot_indexes
from mtunnel_tx.pve.cpumodels import CpuModel, read_cpu
from mtunnel_tx.pve.display import GuestDisplay, read_display
from mtunnel_tx.pve.drive import Drive, drive_interface
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestformats import AUDIO, MACHINE, WATCHDOG, check_value
from mtunnel_tx.pve.guestrules import find_strays, is_template, iter_drives, iter_nics
from mtunnel_tx.pve.machinetype import MachineType, Version, creation_version, parse_machine_type, windows_version
from mtunnel_tx.pve.memory import GuestMemory, read_memory
from mtunnel_tx.pve.smallparts import has_tablet, parse_option, read_agent, read_clock, read_rng, read_smbios
from mtunnel_tx.pve.usb import UsbPort, check_usb_ports, read_usb_ports

MOST_NICS = 32
MOST_PROCESSORS = 255
MOST_QUEUES = 1021
"""Of a SCSI controller."""
_HARDWARE = "hardware of one host cannot move to another"
_REFUSED = {
    "hostpci": _HARDWARE,
    "parallel": _HARDWARE,
    "amd-sev": "a guest that is encrypted by one host's processor cannot move to another",
    "intel-tdx": "a guest that is encrypted by one host's processor cannot move to another",
    "virtiofs": "a folder of one host cannot move to another",
    "ivshmem": "memory that is shared with other programs of one host cannot move to another",
    "hookscript": "scripts of another host are not run here",
    "vmstate": "a saved state cannot be run here",
}
"""Keys that cannot be run here, without their numbers."""
_OLD_USB_WINDOWS = 7
_ACPI_HOTPLUG = (6, 1)
_MORE_SCSI = (4, 1, 2)
_LAST_OLD_SCSI = 13
_WINDOWS = {"wxp": 5, "w2k": 5, "w2k3": 5, "w2k8": 6, "wvista": 6, "win7": 7, "win8": 8, "win10": 10, "win11": 11}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDisk:
    """A drive with its place: `scsi0` is interface `scsi`, index 0; `boot_index` None: nothing boots from it."""

    key: str
    index: int
    drive: Drive
    boot_index: int | None

    @property
    def interface(self) -> str:
        """`ide`, `sata`, `scsi` or `virtio`."""
        return drive_interface(self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A network card: `options` as pve.nic reads them."""

    key: str
    index: int
    options: Mapping[str, str]
    boot_index: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A virtual machine as its config has it; property strings are taken apart and checked.

    `follows_qemu`: the config names no version of the machine. `created`: the QEMU version that made it, None: not
    known. `windows`: 5 is XP, 6 Vista, then Windows' own numbers; 0: another system. `arguments`: one line, as for a
    shell.
    """

    name: str | None
    machine: MachineType
    follows_qemu: bool
    created: Version | None
    sleeps: Mapping[str, bool]
    memory: GuestMemory
    balloon: bool
    sockets: int
    cores: int
    vcpus: int
    cpu: CpuModel
    kvm: bool
    windows: int
    linux: bool
    solaris: bool
    ovmf: bool
    acpi: bool
    disks: tuple[GuestDisk, ...]
    efidisk: Drive | None
    tpm: Drive | None
    scsihw: str
    nics: tuple[Nic, ...]
    agent: str | None
    serials: tuple[int, ...]
    display: GuestDisplay
    usb_ports: tuple[UsbPort, ...]
    smbios: Mapping[str, str]
    vmgenid: str | None
    rng: Mapping[str, str] | None
    watchdog: Mapping[str, str] | None
    sound: Mapping[str, str] | None
    tablet: bool
    keyboard: str | None
    clock: Mapping[str, str]
    stops_at_reboot: bool
    starts_frozen: bool
    arguments: str

    @property
    def has_native_hotplug(self) -> bool:
        """Whether PCI Express ports are hot-plugged by their own means, not by ACPI.

        QEMU 6.1 changed the default, which would rename the network cards of Linux guests made before. Machines with a
        version in their config stay as QEMU has them.
        """
        is_older = self.created is None or self.created < _ACPI_HOTPLUG
        is_concerned = self.machine.is_q35 and self.machine.at_least(*_ACPI_HOTPLUG) and self.linux
        return self.follows_qemu and is_older and is_concerned

    @property
    def has_xhci(self) -> bool:
        """Whether its USB ports are at the newer controller, which has more of them."""
        return self.machine.at_least(7, 1) and (self.linux or self.windows > _OLD_USB_WINDOWS)


def read_hardware(
    conf: GuestConfig, *, local: bool = False, cpu_models: Mapping[str, Mapping[str, str]] = MappingProxyType({})
) -> Hardware:
    """Read a config.

    Args: local: it is this host's own, so that it may have `args`. cpu_models: as pve.cpumodels reads them.
    Raises: TunnelError: `KEY: REASON` for what this host cannot run, or a value that does not fit its key.
    """
    return _hardware(conf, _checked(conf, local=local), cpu_models)


def _hardware(conf: GuestConfig, options: Mapping[str, str], cpu_models: Mapping[str, Mapping[str, str]]) -> Hardware:
    """Everything there is, key by key, from options that were checked."""
    sockets, cores = _processors(options)
    return Hardware(
        name=options.get("name"),
        machine=_machine_type(options),
        follows_qemu=_machine_type(options).version is None,
        created=creation_version(options.get("meta", "")),
        sleeps=_sleeps(options),
        memory=read_memory(options, sockets=sockets, cores=cores),
        balloon=options.get("balloon") != "0",
        sockets=sockets,
        cores=cores,
        vcpus=_vcpus(options, sockets * cores),
        cpu=read_cpu(options, cpu_models),
        kvm=options.get("kvm", "1") == "1",
        ovmf=options.get("bios") == "ovmf",
        acpi=options.get("acpi", "1") == "1",
        disks=_disks(conf),
        efidisk=dict(iter_drives(conf)).get("efidisk0"),
        tpm=_tpm(conf),
        scsihw=options.get("scsihw", "lsi"),
        nics=_nics(conf),
        agent=read_agent(options),
        serials=tuple(number for number in range(4) if f"serial{number}" in options),
        usb_ports=read_usb_ports(options),
        smbios=read_smbios(options),
        vmgenid=None if options.get("vmgenid", "0") == "0" else options["vmgenid"],
        rng=read_rng(options),
        watchdog=parse_option(WATCHDOG, options, "watchdog") or None,
        sound=parse_option(AUDIO, options, "audio0") or None,
        stops_at_reboot=options.get("reboot") == "0",
        starts_frozen=options.get("freeze") == "1",
        arguments=options.get("args", ""),
        **_for_its_system(options),
    )


def _for_its_system(options: Mapping[str, str]) -> dict[str, Any]:
    """The guest's system, and what depends on it or is for who sits before it."""
    windows = _windows(options)
    return {
        "windows": windows,
        "linux": options.get("ostype") == "l26",
        "solaris": options.get("ostype") == "solaris",
        "display": read_display(options, windows=windows),
        "clock": read_clock(options, windows=windows),
        "tablet": has_tablet(options),
        "keyboard": options.get("keyboard"),
    }


def _windows(options: Mapping[str, str]) -> int:
    """Its version; 0: another system."""
    return _WINDOWS.get(options.get("ostype", ""), 0)


def resolve_machine(hardware: Hardware, known: Collection[str]) -> Hardware:
    """The hardware with a machine type that has a version.

    Args: known: the machine types of this host's QEMU.
    Raises: TunnelError: `KEY: REASON`: QEMU does not know it, or it has too few USB ports or SCSI disks.
    """
    pinned = windows_version(hardware.created) if hardware.windows else None
    try:
        resolved = replace(hardware, machine=hardware.machine.resolved(known, pinned))
    except FormatError as error:
        raise refuse("machine", str(error)) from error
    check_usb_ports(resolved.usb_ports, has_many=resolved.has_xhci)
    _check_age(resolved)
    return resolved


def _check_age(hardware: Hardware) -> None:
    """Old machines have fewer SCSI disks."""
    for disk in hardware.disks:
        if disk.interface == "scsi" and disk.index > _LAST_OLD_SCSI and not hardware.machine.at_least(*_MORE_SCSI):
            raise refuse(disk.key, "SCSI disks above scsi13 need machine version 4.1+pve2 or newer")


def _checked(conf: GuestConfig, *, local: bool) -> dict[str, str]:
    """Every value in the form it is kept in; a file on disk may hold anything."""
    for reason in find_strays(conf):
        raise TunnelError(reason)
    if is_template(conf):
        raise refuse("template", "a template cannot be started")
    if not local and "args" in conf.options:
        raise refuse("args", "arguments for QEMU are not taken from another host")
    checked: dict[str, str] = {}
    for key, value in sorted(conf.options.items()):
        try:
            checked[key] = check_value(key, value)
        except FormatError as error:
            raise refuse(clean(key), clean(str(error).strip().replace("\n", ": "))) from error
        _check_possible(key, checked[key])
    return checked


def _check_possible(key: str, value: str) -> None:
    if reason := _REFUSED.get(key.rstrip("0123456789")):
        raise refuse(key, reason)
    if key == "arch" and value != "x86_64":
        raise refuse(key, f"'{value}' is not for this host")
    if key.startswith("serial") and value != "socket":
        raise refuse(key, f"only 'socket' can be run here: {_HARDWARE}")


def _machine_type(options: Mapping[str, str]) -> MachineType:
    machine = parse_option(MACHINE, options, "machine")
    if "viommu" in machine:
        raise refuse("machine", "viommu is for hardware of one host, which cannot move to another")
    if "aw-bits" in machine:
        raise refuse("machine", "aw-bits need a viommu")
    try:
        return parse_machine_type(machine.get("type", "pc"))
    except FormatError as error:
        raise refuse("machine", str(error)) from error


def _sleeps(options: Mapping[str, str]) -> dict[str, bool]:
    machine = parse_option(MACHINE, options, "machine")
    return {state: machine[f"enable-{state}"] == "1" for state in ("s3", "s4") if f"enable-{state}" in machine}


def _processors(options: Mapping[str, str]) -> tuple[int, int]:
    """Sockets, and cores of each."""
    sockets, cores = int(options.get("sockets", "1")), int(options.get("cores", "1"))
    if sockets * cores > MOST_PROCESSORS:
        raise refuse("cores" if "cores" in options else "sockets", f"there are {MOST_PROCESSORS} processors at most")
    return sockets, cores


def _vcpus(options: Mapping[str, str], most: int) -> int:
    vcpus = int(options.get("vcpus", most))
    if vcpus > most:
        raise refuse("vcpus", f"there are {most} at most")
    return vcpus


def _disks(conf: GuestConfig) -> tuple[GuestDisk, ...]:
    disks, indexes = [], boot_indexes(conf)
    for key, drive in iter_drives(conf):
        interface = drive_interface(key)
        if interface in ("efidisk", "tpmstate", "unused"):
            continue
        _check_drive(key, drive)
        index = int(key.removeprefix(interface))
        disks.append(GuestDisk(key=key, index=index, drive=drive, boot_index=indexes.get(key)))
    return tuple(sorted(disks, key=lambda disk: (disk.interface, disk.index)))


def _check_drive(key: str, drive: Drive) -> None:
    if drive.volume == "cdrom":
        raise refuse(key, f"the host's own CD-ROM drive: {_HARDWARE}")
    if drive.volume.partition(":")[2].startswith("iso/") and not drive.is_cdrom:
        raise refuse(key, "explicit 'media=cdrom' is required for iso images")
    if drive.allocates or not (drive.has_volume or drive.is_cdrom):
        raise refuse(key, f"'{clean(drive.volume)}' is no volume")
    if drive.options.get("scsiblock") == "1":
        raise refuse(key, f"scsiblock: {_HARDWARE}")
    if drive.options.get("snapshot") == "1":
        raise refuse(key, "snapshot cannot be run here")
    if int(drive.options.get("queues", "0")) > MOST_QUEUES:
        raise refuse(key, f"there are {MOST_QUEUES} queues at most")
    _check_peaks(key, drive.options)


def _check_peaks(key: str, options: Mapping[str, str]) -> None:
    """A peak below what is allowed all the time is none."""
    for name in (f"{what}{way}" for what in ("mbps", "iops") for way in ("", "_rd", "_wr")):
        peak = float(options.get(f"{name}_max", "0"))
        if 0 < peak < float(options.get(name, "0")):
            raise refuse(key, f"{name}_max is below {name}")


def _tpm(conf: GuestConfig) -> Drive | None:
    drive = dict(iter_drives(conf)).get("tpmstate0")
    if drive is not None and (drive.allocates or not drive.has_volume or drive.volume.endswith((".qcow2", ".vmdk"))):
        raise refuse("tpmstate0", f"'{clean(drive.volume)}' is no raw volume")
    return drive


def _nics(conf: GuestConfig) -> tuple[Nic, ...]:
    nics, indexes = [], boot_indexes(conf)
    for key, options in iter_nics(conf):
        index = int(key.removeprefix("net"))
        if index >= MOST_NICS:
            raise refuse(key, f"there are {MOST_NICS} network cards at most")
        for option in ("tag", "trunks"):
            if option in options and "bridge" not in options:
                raise refuse(key, f"VLANs ({option}) need a bridge")
        if options["model"] == "ne2k_isa":
            raise refuse(key, "model ne2k_isa cannot be run here")
        nics.append(Nic(key=key, index=index, options=options, boot_index=indexes.get(key)))
    return tuple(nics)
