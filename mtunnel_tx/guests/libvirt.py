"""A VM as libvirt defines it (https://libvirt.org/formatdomain.html). Pure.

What has no counterpart here is named in the blueprint's notes, and left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BadRequest
from mtunnel_tx.guests.blueprint import EFI_DISK, EFI_OPTIONS, Blueprint, BlueprintDisk, boot_order, name_from
from mtunnel_tx.guests.xmltree import XmlElement, parse_xml
from mtunnel_tx.pve.driveformats import DRIVES_PER_INTERFACE

_UNITS = {"b": 1, "bytes": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_NIC_MODELS = {
    "virtio": "virtio",
    "virtio-net-pci": "virtio",
    "e1000": "e1000",
    "e1000e": "e1000e",
    "rtl8139": "rtl8139",
    "pcnet": "pcnet",
    "vmxnet3": "vmxnet3",
    "ne2k_pci": "ne2k_pci",
}
_NIC_FALLBACK = "e1000"
_SCSI_MODELS = {
    "virtio-scsi": "virtio-scsi-pci",
    "lsilogic": "lsi",
    "lsisas1068": "megasas",
    "lsisas1078": "megasas",
    "vmpvscsi": "pvscsi",
}
_BUSES = {"virtio": "virtio", "scsi": "scsi", "sata": "sata", "ide": "ide"}
_MACHINE = re.compile(r"(?:pc-)?(q35|i440fx|pc)(?:-.*)?")
_VGA = {"cirrus": "cirrus", "vmvga": "vmware", "virtio": "virtio", "vga": "std"}
_NEEDLESS = frozenset(
    {"emulator", "controller", "input", "graphics", "memballoon", "console", "channel", "audio", "redirdev"}
)
_IMAGE_FORMATS = frozenset({"raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"})
_MOST_DEVICES = 1 << 20


@dataclass(slots=True)
class _Domain:
    """What was found so far.

    `kinds`: kinds of devices in the order they are tried; where devices have places of their own, none. `boots`: each
    bootable device with its place.
    """

    kinds: tuple[str, ...] = ("hd",)

    options: dict[str, str] = field(default_factory=dict)
    disks: list[BlueprintDisk] = field(default_factory=list)
    isos: dict[str, str] = field(default_factory=dict)
    nics: dict[str, str] = field(default_factory=dict)
    boots: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)


def read_domain(data: bytes, bridges: Mapping[str, str]) -> Blueprint:
    """Read a definition, as `virsh dumpxml` shows it.

    Args: bridges: what to plug cards of a libvirt network into, by its name; `""`: those of all others.
    Raises: BadRequest: it is none, or of a VM that cannot be made here.
    """
    root = parse_xml(data, "the libvirt definition")
    if root.name != "domain" or root.attributes.get("type") not in ("kvm", "qemu"):
        raise BadRequest("the libvirt definition is not that of a VM of type kvm or qemu")
    domain = _Domain(kinds=_boot_kinds(root))
    _read_system(root, domain)
    readers: Mapping[str, Callable[[XmlElement, _Domain], None]] = {
        "disk": _read_disk,
        "interface": lambda item, found: _read_nic(item, found, bridges),
        "serial": _read_serial,
        "video": _read_video,
        "rng": lambda _, found: found.options.update(rng0="source=/dev/urandom"),
        "watchdog": _read_watchdog,
        "tpm": lambda _, found: found.notes.append("the TPM's state is not taken along: add tpmstate0 by hand"),
    }
    for item in (child for devices in root.all("devices") for child in devices.children):
        if item.name in readers:
            readers[item.name](item, domain)
        elif item.name not in _NEEDLESS:
            domain.notes.append(f"device '{item.name}' is left out")
    if any(item.attribute("name", "target") == "org.qemu.guest_agent.0" for item in root.all("devices", "channel")):
        domain.options["agent"] = "1"
    return _blueprint(domain)


def _boot_kinds(root: XmlElement) -> tuple[str, ...]:
    if any(item.first("boot") for devices in root.all("devices") for item in devices.children):
        return ()
    return tuple(item.attributes.get("dev", "") for item in root.all("os", "boot")) or ("hd",)


def _blueprint(domain: _Domain) -> Blueprint:
    order = sorted(domain.boots, key=lambda key: domain.boots[key])
    return Blueprint(
        options={**domain.options, **domain.nics, "boot": boot_order(*order)},
        disks=tuple(domain.disks),
        isos=domain.isos,
        notes=tuple(map(clean, domain.notes)),
    )


def _read_system(root: XmlElement, domain: _Domain) -> None:
    options = domain.options
    options["name"] = name_from(root.value("name"))
    options["memory"] = str(max(16, _bytes(root.first("memory")) >> 20))
    _read_processors(root, options)
    if root.attribute("arch", "os", "type") not in ("", "x86_64"):
        raise BadRequest(f"the VM is for {clean(root.attribute('arch', 'os', 'type'))} processors")
    machine = _MACHINE.fullmatch(root.attribute("machine", "os", "type"))
    if machine and machine[1] == "q35":
        options["machine"] = "q35"
    elif root.attribute("machine", "os", "type") and not machine:
        domain.notes.append(f"machine '{root.attribute('machine', 'os', 'type')}' is pc here")
    if root.first("os", "loader") or root.attribute("firmware", "os") == "efi":
        options["bios"] = "ovmf"
        if variables := root.value("os", "nvram"):
            kind = root.attribute("format", "os", "nvram") or "raw"
            domain.disks.append(BlueprintDisk(key=EFI_DISK, image=variables, format=kind, options=EFI_OPTIONS))
    if model := _scsi_controller(root):
        options["scsihw"] = model
    if root.first("os", "kernel"):
        domain.notes.append("the kernel that libvirt gives to the VM is left out: it boots from its disks")
    if root.attribute("offset", "clock") == "localtime":
        options["localtime"] = "1"
    if description := root.value("description"):
        options["description"] = description
    options["ostype"] = _os_type(root)


def _os_type(root: XmlElement) -> str:
    """libosinfo's word for the guest's system."""
    word = root.attribute("id", "metadata", "libosinfo", "os").lower()
    if "microsoft.com/win" not in word:
        return "l26"
    version = word.rpartition("/win/")[2]
    return {"11": "win11", "2k22": "win11", "8": "win8", "2k12": "win8", "7": "win7", "xp": "wxp"}.get(version, "win10")


def _read_processors(root: XmlElement, options: dict[str, str]) -> None:
    count = _whole(root.value("vcpu") or "1", "vcpu")
    sockets = 1
    if topology := root.first("cpu", "topology"):
        sockets = _whole(topology.attributes.get("sockets", "1"), "sockets")
    if count % sockets:
        sockets = 1
    options |= {"sockets": str(sockets), "cores": str(count // sockets)}
    if root.attribute("mode", "cpu") in ("host-passthrough", "host-model", "maximum"):
        options["cpu"] = "host"


def _read_disk(item: XmlElement, domain: _Domain) -> None:
    kind = item.attributes.get("device", "disk")
    target, bus = item.attribute("dev", "target"), item.attribute("bus", "target")
    if kind not in ("disk", "cdrom") or bus not in _BUSES:
        domain.notes.append(f"{kind} '{target}' on bus '{bus}' is left out")
        return
    source = item.attribute("file", "source") or item.attribute("dev", "source")
    if kind == "cdrom":
        key = _take_key("ide" if bus in ("ide", "virtio", "scsi") else bus, domain)
        domain.options |= {} if source else {key: "none,media=cdrom"}
        domain.isos |= {key: source} if source else {}
    else:
        key = _take_key(_BUSES[bus], domain)
        domain.disks.append(_disk(key, source, target, item))
    _note_boot(item, key, "cdrom" if kind == "cdrom" else "hd", domain)


def _disk(key: str, source: str, target: str, item: XmlElement) -> BlueprintDisk:
    if not source:
        kind = item.attributes.get("type", "file")
        raise BadRequest(f"disk '{clean(target)}' of type '{clean(kind)}' is neither a file nor a device of this host")
    format = item.attribute("type", "driver") or "raw"
    if format not in _IMAGE_FORMATS:
        raise BadRequest(f"disk '{clean(target)}' has format '{clean(format)}', which is not taken")
    return BlueprintDisk(key=key, image=source, format=format)


def _read_nic(item: XmlElement, domain: _Domain, bridges: Mapping[str, str]) -> None:
    model = item.attribute("type", "model") or "rtl8139"
    if model not in _NIC_MODELS:
        domain.notes.append(f"network card '{model}' is {_NIC_FALLBACK} here")
    network = item.attribute("network", "source")
    own = item.attribute("bridge", "source") if item.attributes.get("type") == "bridge" else ""
    bridge = own or bridges.get(network, bridges.get("", ""))
    if not own and network not in bridges:
        what = f"network '{network}'" if network else f"interface of type '{item.attributes.get('type')}'"
        domain.notes.append(f"{what} is {f'bridge {bridge}' if bridge else 'that of the host'} here")
    key = f"net{len(domain.nics)}"
    address = item.attribute("address", "mac").upper()
    words = [f"{_NIC_MODELS.get(model, _NIC_FALLBACK)}{f'={address}' if address else ''}"]
    words += [f"bridge={bridge}"] if bridge else []
    words += ["link_down=1"] if item.attribute("state", "link") == "down" else []
    domain.nics[key] = ",".join(words)
    _note_boot(item, key, "network", domain)


def _note_boot(item: XmlElement, key: str, kind: str, domain: _Domain) -> None:
    order = item.attribute("order", "boot")
    if order:
        domain.boots[key] = _whole(order, "boot order")
    elif kind in domain.kinds:
        domain.boots[key] = _MOST_DEVICES * domain.kinds.index(kind) + len(domain.boots)


def _read_serial(_item: XmlElement, domain: _Domain) -> None:
    used = [key for key in domain.options if key.startswith("serial")]
    if len(used) < 4:
        domain.options[f"serial{len(used)}"] = "socket"


def _read_video(item: XmlElement, domain: _Domain) -> None:
    model = item.attribute("type", "model")
    domain.options["vga"] = _VGA.get(model, "std")
    if model not in ("vga", "cirrus", "vmvga", "virtio"):
        domain.notes.append(f"screen '{model}' is std here")


def _read_watchdog(item: XmlElement, domain: _Domain) -> None:
    model, action = item.attributes.get("model", ""), item.attributes.get("action", "reset")
    if model in ("i6300esb", "ib700") and action in ("reset", "shutdown", "poweroff", "pause", "none"):
        domain.options["watchdog"] = f"model={model},action={action}"
    else:
        domain.notes.append(f"watchdog '{model}' is left out")


def _take_key(bus: str, domain: _Domain) -> str:
    for index in range(DRIVES_PER_INTERFACE[bus]):
        key = f"{bus}{index}"
        if key not in domain.keys:
            domain.keys.add(key)
            return key
    raise BadRequest(f"the VM has more than {DRIVES_PER_INTERFACE[bus]} {bus} drives")


def _scsi_controller(root: XmlElement) -> str | None:
    """The SCSI controller's model as the config has it; None: there is none, or one without a like."""
    models = (item.attributes.get("model", "") for item in root.all("devices", "controller"))
    return next((_SCSI_MODELS[model] for model in models if model in _SCSI_MODELS), None)


def _bytes(memory: XmlElement | None) -> int:
    if memory is None:
        raise BadRequest("the libvirt definition tells no memory")
    unit = memory.attributes.get("unit", "KiB").lower().removesuffix("ib")
    if unit not in _UNITS:
        raise BadRequest(f"the libvirt definition counts in '{clean(unit)}', which is not understood")
    return _whole(memory.text, "memory") * _UNITS[unit]


def _whole(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:16]) > 0 and len(text) <= 15):
        raise BadRequest(f"the libvirt definition has no number where its {what} should be: '{clean(text)}'")
    return int(text)
