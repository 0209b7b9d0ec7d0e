"""A VM as an OVF describes it (DSP0243; VMware's and VirtualBox's additions). Pure.

What has no counterpart here is named in the blueprint's notes, and left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from mtunnel_tx.checks import clean
from mtunnel_tx.errors import BadRequest
from mtunnel_tx.guests.blueprint import Blueprint, BlueprintDisk, boot_order, name_from
from mtunnel_tx.guests.xmltree import XmlElement, parse_xml
from mtunnel_tx.pve.driveformats import DRIVES_PER_INTERFACE


class _Kind(StrEnum):
    """Resource types of CIM that are understood."""

    PROCESSOR = "3"
    MEMORY = "4"
    IDE = "5"
    SCSI = "6"
    ETHERNET = "10"
    CD = "15"
    DVD = "16"
    DISK = "17"
    SATA = "20"
    USB = "23"
    SCREEN = "24"


_CONTROLLERS = {_Kind.IDE: "ide", _Kind.SCSI: "scsi", _Kind.SATA: "sata"}
# Each VM has a USB controller and a screen.
_NEEDLESS = frozenset({_Kind.USB, _Kind.SCREEN})
_SCSI_MODELS = {"virtualscsi": "pvscsi", "virtio-scsi": "virtio-scsi-pci"}
_SCSI_FOR_LINUX = "virtio-scsi-pci"
_NIC_MODELS = {
    "e1000": "e1000",
    "e1000e": "e1000e",
    "vmxnet3": "vmxnet3",
    "pcnet32": "pcnet",
    "virtio": "virtio",
    "82540em": "e1000",
    "82545em": "e1000-82545em",
}
_NIC_FALLBACK = "e1000"
_LINUX_IDS = frozenset(map(str, (36, 79, 80, 82, 83, 84, 85, 89, 90, 91, 92, *range(93, 103), 106, 107, 108, 109)))
_LINUX_WORDS = re.compile(r"linux|ubuntu|debian|centos|rhel|red ?hat|suse|fedora|oracle|photon|alma|rocky|coreos", re.I)
_WINDOWS = (
    ("win11", re.compile(r"windows ?11|windows ?(?:server)? ?202[25]|windows11|windows2022|windows12", re.I)),
    ("win10", re.compile(r"windows ?10|windows ?9|windows ?(?:server)? ?201[69]|windows2019|windows2016", re.I)),
    ("win8", re.compile(r"windows ?8|windows ?(?:server)? ?2012", re.I)),
    ("win7", re.compile(r"windows ?7|windows ?(?:server)? ?2008 ?r2", re.I)),
    ("w2k8", re.compile(r"windows ?(?:server)? ?2008|longhorn", re.I)),
    ("w2k3", re.compile(r"win(?:dows)?(?:server|net)? ?2003|winnet", re.I)),
    ("wxp", re.compile(r"win(?:dows)? ?xp", re.I)),
    ("win10", re.compile(r"windows", re.I)),
)
_UNITS = re.compile(r"byte(?:\s*\*\s*(2|10)\s*\^\s*(\d{1,2}))?", re.IGNORECASE)
_OLD_UNITS = {"": 1, "bytes": 1, "kilobytes": 1 << 10, "megabytes": 1 << 20, "gigabytes": 1 << 30}


@dataclass(slots=True)
class _Reading:
    """What was found so far."""

    options: dict[str, str] = field(default_factory=dict)
    disks: list[BlueprintDisk] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    nics: dict[str, str] = field(default_factory=dict)
    isos: dict[str, str] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)


def read_ovf(data: bytes, bridges: Mapping[str, str]) -> Blueprint:
    """Read the description.

    Args: bridges: what to plug cards of an OVF's network into, by its name; `""`: those of all others.
    Raises: BadRequest: it is no OVF, or describes something that is no single VM.
    """
    envelope = parse_xml(data, "the OVF")
    systems = list(envelope.all("VirtualSystem"))
    if envelope.name != "Envelope" or envelope.first("VirtualSystemCollection") or len(systems) != 1:
        raise BadRequest("the OVF does not describe one VM alone")
    system = systems[0]
    reading = _Reading()
    _read_system(system, reading)
    _read_items(envelope, system, bridges, reading)
    options = {**reading.options, **reading.nics}
    options["boot"] = boot_order(*(disk.key for disk in reading.disks[:1]), *reading.isos, *reading.nics)
    return Blueprint(
        options=options, disks=tuple(reading.disks), isos=reading.isos, notes=tuple(map(clean, reading.notes))
    )


def _read_system(system: XmlElement, reading: _Reading) -> None:
    options = reading.options
    options["name"] = name_from(system.value("Name") or system.attributes.get("id", ""))
    options["ostype"] = _os_type(system)
    hardware = system.first("VirtualHardwareSection") or XmlElement("")
    vmware = {item.attributes.get("key"): item.attributes.get("value", "") for item in hardware.all("Config")}
    virtualbox = system.attribute("type", "Machine", "Hardware", "Firmware")
    if "efi" in (vmware.get("firmware", "").lower(), virtualbox.lower()):
        options["bios"] = "ovmf"
    if description := system.value("AnnotationSection", "Annotation"):
        options["description"] = description
    known = {"Info", "Name", "OperatingSystemSection", "VirtualHardwareSection", "AnnotationSection", "Machine"}
    reading.notes += [f"section '{part.name}' is left out" for part in system.children if part.name not in known]


def _os_type(system: XmlElement) -> str:
    section = system.first("OperatingSystemSection") or XmlElement("")
    words = " ".join([section.value("Description"), section.attributes.get("osType", ""), section.value("OSType")])
    if _LINUX_WORDS.search(words) or (not words.strip() and section.attributes.get("id") in _LINUX_IDS):
        return "l26"
    return next((name for name, pattern in _WINDOWS if pattern.search(words)), "other")


def _read_items(envelope: XmlElement, system: XmlElement, bridges: Mapping[str, str], reading: _Reading) -> None:
    items = list(_items(system))
    controllers = {item.value("InstanceID"): item for item in items if item.value("ResourceType") in _CONTROLLERS}
    images = _Images(envelope)
    for item in items:
        match item.value("ResourceType"):
            case _Kind.PROCESSOR:
                _read_processors(item, reading)
            case _Kind.MEMORY:
                reading.options["memory"] = str(max(16, _amount(item) >> 20))
            case _Kind.ETHERNET:
                _read_nic(item, bridges, reading)
            case _Kind.DISK:
                _read_disk(item, controllers, images, reading)
            case _Kind.CD | _Kind.DVD:
                _read_cd(item, images, reading)
            case kind if kind not in _CONTROLLERS and kind not in _NEEDLESS:
                reading.notes.append(f"'{item.value('ElementName')}' (resource type {kind}) is left out")


def _items(system: XmlElement) -> Iterator[XmlElement]:
    """The hardware; of a list of configurations only the default one counts, which is the first."""
    for name in ("Item", "StorageItem", "EthernetPortItem"):
        for item in system.all("VirtualHardwareSection", name):
            if "configuration" not in item.attributes:
                yield item


def _read_processors(item: XmlElement, reading: _Reading) -> None:
    total = _number(item.value("VirtualQuantity"), "processors")
    per_socket = _number(item.value("CoresPerSocket") or str(total), "cores of a socket")
    if total % per_socket:
        raise BadRequest(f"the OVF has {total} processors, {per_socket} on each socket")
    reading.options |= {"cores": str(per_socket), "sockets": str(total // per_socket)}


def _read_nic(item: XmlElement, bridges: Mapping[str, str], reading: _Reading) -> None:
    network, model = item.value("Connection"), item.value("ResourceSubType")
    known = _NIC_MODELS.get(model.lower().strip())
    if known is None:
        reading.notes.append(f"network card '{model}' is {_NIC_FALLBACK} here")
    bridge = bridges.get(network, bridges.get("", ""))
    if network not in bridges:
        reading.notes.append(f"network '{network}' is {f'bridge {bridge}' if bridge else 'that of the host'} here")
    plug = f",bridge={bridge}" if bridge else ""
    reading.nics[f"net{len(reading.nics)}"] = f"{known or _NIC_FALLBACK}{plug}"


class _Images:
    """The files and disks that the envelope lists."""

    def __init__(self, envelope: XmlElement) -> None:
        self._files = {item.attributes.get("id", ""): item for item in envelope.all("References", "File")}
        self._disks = {item.attributes.get("diskId", ""): item for item in envelope.all("DiskSection", "Disk")}

    def file(self, reference: str) -> str:
        """A file's name. Raises: BadRequest."""
        if reference not in self._files:
            raise BadRequest(f"the OVF lists no file '{clean(reference)}'")
        attributes = self._files[reference].attributes
        if "compression" in attributes or "chunkSize" in attributes:
            raise BadRequest(f"'{clean(attributes.get('href', ''))}' is compressed or in pieces, which is not taken")
        return attributes.get("href", "")

    def disk(self, key: str, resource: str) -> BlueprintDisk:
        """The disk that a `HostResource` names. Raises: BadRequest."""
        kind, _, reference = resource.removeprefix("ovf:").strip("/").partition("/")
        if kind == "file":
            return BlueprintDisk(key=key, image=self.file(reference))
        if kind != "disk" or reference not in self._disks:
            raise BadRequest(f"the OVF has no disk '{clean(resource)}'")
        attributes = self._disks[reference].attributes
        if "parentRef" in attributes:
            raise BadRequest(f"disk '{clean(reference)}' stands on another one, which is not taken")
        unit = _unit(attributes.get("capacityAllocationUnits", ""))
        size_bytes = _number(attributes.get("capacity", ""), "a disk's capacity") * unit
        image = self.file(attributes["fileRef"]) if "fileRef" in attributes else ""
        return BlueprintDisk(key=key, size_bytes=size_bytes, image=image)


def _read_disk(item: XmlElement, controllers: Mapping[str, XmlElement], images: _Images, reading: _Reading) -> None:
    controller = controllers.get(item.value("Parent"))
    kind = controller.value("ResourceType") if controller else _Kind.SATA
    bus = _scsi_bus(controller, reading) if controller and kind == _Kind.SCSI else _CONTROLLERS[_Kind(kind)]
    reading.disks.append(images.disk(_take_key(bus, reading), item.value("HostResource")))


def _scsi_bus(controller: XmlElement, reading: _Reading) -> str:
    """The same controller where there is one like it; else one that the guest's system has a driver for."""
    model = controller.value("ResourceSubType")
    like = _SCSI_MODELS.get(model.lower())
    if like is None and reading.options["ostype"] != "l26":
        _note_once(reading, f"SCSI controller '{model}' has no like here: its disks are on SATA")
        return "sata"
    if like is None:
        _note_once(reading, f"SCSI controller '{model}' is {_SCSI_FOR_LINUX} here")
    reading.options.setdefault("scsihw", like or _SCSI_FOR_LINUX)
    return "scsi"


def _read_cd(item: XmlElement, images: _Images, reading: _Reading) -> None:
    resource = item.value("HostResource")
    if resource:
        reading.isos[_take_key("ide", reading)] = images.disk("", resource).image
    else:
        reading.options[_take_key("ide", reading)] = "none,media=cdrom"


def _take_key(bus: str, reading: _Reading) -> str:
    for index in range(DRIVES_PER_INTERFACE[bus]):
        key = f"{bus}{index}"
        if key not in reading.keys:
            reading.keys.add(key)
            return key
    raise BadRequest(f"the OVF has more than {DRIVES_PER_INTERFACE[bus]} {bus} drives")


def _note_once(reading: _Reading, note: str) -> None:
    if note not in reading.notes:
        reading.notes.append(note)


def _amount(item: XmlElement) -> int:
    """Bytes."""
    return _number(item.value("VirtualQuantity"), "an amount of memory") * _unit(item.value("AllocationUnits"))


def _unit(text: str) -> int:
    match = _UNITS.fullmatch(text.strip())
    if match:
        return int(pow(int(match[1] or 1), int(match[2] or 0)))
    if text.strip().lower() not in _OLD_UNITS:
        raise BadRequest(f"the OVF counts in '{clean(text)}', which is not understood")
    return _OLD_UNITS[text.strip().lower()]


def _number(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 15 and int(text) > 0):
        raise BadRequest(f"the OVF has no number where {what} should be: '{clean(text)}'")
    return int(text)
