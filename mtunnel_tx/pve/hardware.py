"""What a virtual machine is made of: a guest's config, read for a host that starts QEMU by itself.

What such a host cannot run is refused by the name of its key; nothing that a guest would notice is left out silently.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass

from mtunnel_tx.checks import CONTROL, FormatError, clean
from mtunnel_tx.errors import TunnelError, refuse
from mtunnel_tx.pve.booting import boot_indexes
from mtunnel_tx.pve.drive import Drive, drive_interface
from mtunnel_tx.pve.guestconf import GuestConfig
from mtunnel_tx.pve.guestformats import AGENT, CPU, MACHINE, MEMORY, RNG, SMBIOS, SPICE, VGA, WATCHDOG, check_value
from mtunnel_tx.pve.guestrules import find_strays, is_template, iter_drives, iter_nics
from mtunnel_tx.pve.machinetype import MachineType, parse_machine_type
from mtunnel_tx.pve.numa import NumaNode, read_numa
from mtunnel_tx.pve.property import PropertyFormat

MOST_NICS = 32
MOST_PROCESSORS = 255
MOST_PHYS_BITS = 52
MOST_QUEUES = 1021
"""Of a SCSI controller."""
_REFUSED = re.compile(
    r"hostpci\d+|usb\d+|virtiofs\d+|parallel\d+|hugepages|ivshmem|amd-sev|intel-tdx|audio0|tpmstate0|hookscript|vmstate"
)
_VGA_DEVICES = {
    "std": "VGA",
    "cirrus": "cirrus-vga",
    "vmware": "vmware-svga",
    "virtio": "virtio-vga",
}
_CIRRUS_MIB = ("4", "8", "16")
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

    `windows`: 5 is XP, 6 Vista, then Windows' own numbers; 0: something else. `arguments`: one line, as for a shell.
    """

    name: str | None
    machine: MachineType
    sleeps: Mapping[str, bool]
    memory_mib: int
    balloon: bool
    numa: tuple[NumaNode, ...]
    sockets: int
    cores: int
    vcpus: int
    cpu: Mapping[str, str]
    kvm: bool
    windows: int
    linux: bool
    ovmf: bool
    acpi: bool
    disks: tuple[GuestDisk, ...]
    efidisk: Drive | None
    scsihw: str
    nics: tuple[Nic, ...]
    agent: str | None
    serials: tuple[int, ...]
    vga: Mapping[str, str]
    shares_folder: bool
    smbios: Mapping[str, str]
    vmgenid: str | None
    rng: Mapping[str, str] | None
    watchdog: Mapping[str, str] | None
    tablet: bool
    clock: Mapping[str, str]
    stops_at_reboot: bool
    starts_frozen: bool
    arguments: str

    @property
    def vga_device(self) -> str | None:
        """QEMU's device; None: no screen, the console is a serial port or nothing."""
        return _VGA_DEVICES.get(self.vga.get("type", "cirrus" if 0 < self.windows < 6 else "std"))

    @property
    def has_clipboard(self) -> bool:
        """Proxmox gives it a serial port for the clipboard, and for SPICE where its screen might have that."""
        return self.vga.get("type", "").startswith("virtio") or "clipboard" in self.vga


def read_hardware(conf: GuestConfig, *, local: bool = False) -> Hardware:
    """Read a config.

    Args: local: it is this host's own, so that it may have `args`.
    Raises: TunnelError: `KEY: REASON` for what this host cannot run, or a value that does not fit its key.
    """
    return _hardware(conf, _checked(conf, local=local))


def _hardware(conf: GuestConfig, options: Mapping[str, str]) -> Hardware:
    """Everything there is, key by key, from options that were checked."""
    sockets, cores = _processors(options)
    memory_mib = int(_parse(MEMORY, options, "memory", "512")["current"])
    return Hardware(
        name=options.get("name"),
        machine=_machine_type(options),
        sleeps=_sleeps(options),
        memory_mib=memory_mib,
        balloon=options.get("balloon") != "0",
        numa=read_numa(options, sockets=sockets, cores=cores, memory_mib=memory_mib),
        sockets=sockets,
        cores=cores,
        vcpus=_vcpus(options, sockets * cores),
        cpu=_cpu(options),
        kvm=options.get("kvm", "1") == "1",
        windows=_WINDOWS.get(options.get("ostype", ""), 0),
        linux=options.get("ostype") == "l26",
        ovmf=options.get("bios") == "ovmf",
        acpi=options.get("acpi", "1") == "1",
        disks=_disks(conf),
        efidisk=dict(iter_drives(conf)).get("efidisk0"),
        scsihw=options.get("scsihw", "lsi"),
        nics=_nics(conf),
        agent=_agent(options),
        serials=tuple(number for number in range(4) if f"serial{number}" in options),
        vga=_vga(options),
        shares_folder=_shares_folder(options),
        smbios=_smbios(options),
        vmgenid=None if options.get("vmgenid", "0") == "0" else options["vmgenid"],
        rng=_rng(options),
        watchdog=_parse(WATCHDOG, options, "watchdog") or None,
        tablet=options.get("tablet", "0" if options.get("vga", "").startswith("serial") else "1") == "1",
        clock=_clock(options),
        stops_at_reboot=options.get("reboot") == "0",
        starts_frozen=options.get("freeze") == "1",
        arguments=options.get("args", ""),
    )


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
    if _REFUSED.fullmatch(key):
        raise refuse(key, "this host cannot run that")
    if key == "arch" and value != "x86_64":
        raise refuse(key, f"'{value}' is not for this host")
    if key.startswith("serial") and value != "socket":
        raise refuse(key, "only 'socket' can be run here")


def _parse(form: PropertyFormat, options: Mapping[str, str], key: str, default: str = "") -> dict[str, str]:
    """A property string that `_checked` let pass; empty where it is absent."""
    text = options.get(key, default)
    return form.parse(text) if text else {}


def _machine_type(options: Mapping[str, str]) -> MachineType:
    machine = _parse(MACHINE, options, "machine")
    if "viommu" in machine:
        raise refuse("machine", "viommu cannot be run here")
    try:
        return parse_machine_type(machine.get("type", "pc"))
    except FormatError as error:
        raise refuse("machine", str(error)) from error


def _sleeps(options: Mapping[str, str]) -> dict[str, bool]:
    machine = _parse(MACHINE, options, "machine")
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


def _cpu(options: Mapping[str, str]) -> dict[str, str]:
    cpu = _parse(CPU, options, "cpu")
    if cpu.get("cputype", "").startswith("custom-"):
        raise refuse("cpu", f"there is no custom CPU model '{cpu['cputype']}' here")
    if "reported-model" in cpu:
        raise refuse("cpu", "reported-model cannot be run here")
    if not 32 <= int(cpu.get("phys-bits", "host").replace("host", "32")) <= MOST_PHYS_BITS:
        raise refuse("cpu", f"there are 32 to {MOST_PHYS_BITS} phys-bits, not {cpu['phys-bits']}")
    return cpu


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
        raise refuse(key, "the host's own CD-ROM drive cannot be used here")
    if drive.allocates or not (drive.has_volume or drive.is_cdrom):
        raise refuse(key, f"'{clean(drive.volume)}' is no volume")
    for option in ("snapshot", "scsiblock"):
        if drive.options.get(option) == "1":
            raise refuse(key, f"{option} cannot be run here")
    if int(drive.options.get("queues", "0")) > MOST_QUEUES:
        raise refuse(key, f"there are {MOST_QUEUES} queues at most")
    _check_peaks(key, drive.options)


def _check_peaks(key: str, options: Mapping[str, str]) -> None:
    """A peak below what is allowed all the time is none."""
    for name in (f"{what}{way}" for what in ("mbps", "iops") for way in ("", "_rd", "_wr")):
        peak = float(options.get(f"{name}_max", "0"))
        if 0 < peak < float(options.get(name, "0")):
            raise refuse(key, f"{name}_max is below {name}")


def _nics(conf: GuestConfig) -> tuple[Nic, ...]:
    nics, indexes = [], boot_indexes(conf)
    for key, options in iter_nics(conf):
        index = int(key.removeprefix("net"))
        if index >= MOST_NICS:
            raise refuse(key, f"there are {MOST_NICS} network cards at most")
        for option in ("tag", "trunks"):
            if option in options:
                raise refuse(key, f"VLANs ({option}) cannot be run here")
        if options["model"] == "ne2k_isa":
            raise refuse(key, "model ne2k_isa cannot be run here")
        nics.append(Nic(key=key, index=index, options=options, boot_index=indexes.get(key)))
    return tuple(nics)


def _agent(options: Mapping[str, str]) -> str | None:
    agent = _parse(AGENT, options, "agent")
    if agent.get("enabled") != "1":
        return None
    if agent.get("type") == "isa" and all(f"serial{number}" in options for number in range(4)):
        raise refuse("agent", "there are four ISA serial ports, and all have their use")
    return agent.get("type", "virtio")


def _vga(options: Mapping[str, str]) -> dict[str, str]:
    vga = _parse(VGA, options, "vga")
    kind = vga.get("type", "std")
    if kind.startswith("qxl") or kind == "virtio-gl":
        raise refuse("vga", f"'{kind}' cannot be run here")
    if kind == "cirrus" and vga.get("memory", "4") not in _CIRRUS_MIB:
        raise refuse("vga", f"cirrus has {', '.join(_CIRRUS_MIB)} MiB of memory, not {vga['memory']}")
    if kind.startswith("serial") and kind not in options:
        raise refuse("vga", f"there is no {kind}")
    return vga


def _shares_folder(options: Mapping[str, str]) -> bool:
    """Proxmox's machine has a port for that beside a screen that SPICE could show."""
    wanted = _parse(SPICE, options, "spice_enhancements").get("foldersharing") == "1"
    return wanted and _vga(options).get("type", "").startswith("virtio")


def _rng(options: Mapping[str, str]) -> dict[str, str] | None:
    rng = _parse(RNG, options, "rng0")
    if int(rng.get("max_bytes", "1")) > 0 and not 0 < int(rng.get("period", "1")) < 1 << 32:
        raise refuse("rng0", f"period is {rng['period']}, no number of milliseconds")
    return rng or None


def _smbios(options: Mapping[str, str]) -> dict[str, str]:
    """Type 1's fields as text."""
    fields = _parse(SMBIOS, options, "smbios1")
    encoded = fields.pop("base64", "0") == "1"
    return {key: _decoded(value) if encoded and key != "uuid" else value for key, value in fields.items()}


def _decoded(value: str) -> str:
    try:
        text = b64decode(value, validate=True).decode("utf-8")
    except ValueError as error:
        raise refuse("smbios1", "a value is not in base64") from error
    if CONTROL.search(text):
        raise refuse("smbios1", "a value has control characters")
    return text


def _clock(options: Mapping[str, str]) -> dict[str, str]:
    """Options of the real time clock; Windows keeps local time."""
    windows = options.get("ostype") in _WINDOWS
    clock = {}
    if options.get("tdf", "1" if windows and options.get("acpi") != "0" else "0") == "1":
        clock["driftfix"] = "slew"
    if options.get("startdate", "now") != "now":
        clock["base"] = options["startdate"]
    elif options.get("localtime", "1" if windows else "0") == "1":
        clock["base"] = "localtime"
    return clock
