"""The devices of a virtual machine, with Proxmox's names and PCI addresses.

A migration's stream names each device by its place, so that a machine built here takes the state of one that Proxmox
built. Values go to QEMU as JSON, where no character has a meaning of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtunnel_tx.errors import TunnelError, refuse
from mtunnel_tx.pve.hardware import Hardware, Nic

_PCI = {
    "balloon0": (0, 3),
    "watchdog": (0, 4),
    "scsihw0": (0, 5),
    "pci.3": (0, 5),
    "scsihw1": (0, 6),
    "ahci0": (0, 7),
    "qga0": (0, 8),
    "spice": (0, 9),
    **{f"virtio{index}": (0, 10 + index) for index in range(6)},
    **{f"net{index}": (0, 18 + index) for index in range(6)},
    **{f"vga{index}": (0, 23 + index) for index in range(1, 4)},
    "pci.1": (0, 30),
    "pci.2": (0, 31),
    **{f"net{index}": (1, index - 5) for index in range(6, 32)},
    "xhci": (1, 27),
    "pci.4": (1, 28),
    "rng0": (1, 29),
    **{f"virtio{index}": (2, index - 5) for index in range(6, 16)},
    **{f"virtioscsi{index}": (3, 1 + index) for index in range(31)},
    "audio0": (2, 12),
    **{f"scsihw{index}": (4, index - 1) for index in range(2, 5)},
}
"""Bus and slot of each device; not the VGA's, which differs between machines."""

EHCI = (
    *(("ehci", "ich9-usb-ehci1", "1d.7", None, None), ("uhci-1", "ich9-usb-uhci1", "1d.0", "ehci.0", 0)),
    *(("uhci-2", "ich9-usb-uhci2", "1d.1", "ehci.0", 2), ("uhci-3", "ich9-usb-uhci3", "1d.2", "ehci.0", 4)),
)
"""A USB 2.0 controller with its companions: id, driver, address, id of the controller, its first port."""
_EHCI_2 = (
    *(("ehci-2", "ich9-usb-ehci2", "1a.7", None, None), ("uhci-4", "ich9-usb-uhci4", "1a.0", "ehci-2.0", 0)),
    *(("uhci-5", "ich9-usb-uhci5", "1a.1", "ehci-2.0", 2), ("uhci-6", "ich9-usb-uhci6", "1a.2", "ehci-2.0", 4)),
)
_DEFAULT_RNG = {"max_bytes": "1024", "period": "1000"}


def escaped(text: str | Path) -> str:
    """A value for an option that is no JSON: commas doubled."""
    return str(text).replace(",", ",,")


def as_json(values: Mapping[str, Any]) -> str:
    """One argument, in ASCII."""
    return json.dumps(values, separators=(",", ":"))


def device(driver: str, **properties: Any) -> list[str]:
    """A `-device`; None is left out, `_` in a name is `-`, but for names in `exact`."""
    exact: Mapping[str, Any] = properties.pop("exact", {})
    named = {key.replace("_", "-"): value for key, value in properties.items()}
    properties = {"driver": driver, **named, **exact}
    return ["-device", as_json({key: value for key, value in properties.items() if value is not None})]


def placed(name: str, driver: str, **properties: Any) -> list[str]:
    """A PCI device at its own address."""
    bus, slot = _PCI[name]
    return device(driver, bus=f"pci.{bus}", addr=f"{slot:#x}", **properties)


def bus_devices(hardware: Hardware, names: set[str]) -> list[str]:
    """The buses that every machine has, and those that hold one of `names`.

    Raises: TunnelError: `scsihw: …`: the machine has no bus for its controllers.
    """
    buses = {bus for name in names for bus, _ in (_PCI[name],)}
    machine = hardware.machine
    # With this controller Proxmox's machine has the bus, with or without disks.
    needs_third = 3 in buses or hardware.scsihw == "virtio-scsi-single"
    if needs_third and machine.is_q35 and not machine.at_least(4, 0):
        raise refuse("scsihw", "virtio-scsi-single with a q35 machine older than 4.0 cannot be run here")
    arguments = _q35_base(hardware) if machine.is_q35 else _i440fx_base()
    if needs_third and not machine.is_q35:
        arguments += placed("pci.3", "pci-bridge", id="pci.3", exact={"chassis_nr": 3})
    if 4 in buses or machine.at_least(11, 1):
        arguments += placed("pci.4", "pci-bridge", id="pci.4", exact={"chassis_nr": 4})
    return arguments


def _i440fx_base() -> list[str]:
    bridges = (placed(f"pci.{n}", "pci-bridge", id=f"pci.{n}", exact={"chassis_nr": n}) for n in (1, 2))
    return [argument for bridge in bridges for argument in bridge]


def _q35_base(hardware: Hardware) -> list[str]:
    arguments: list[str] = []
    for name, driver, addr, master, port in (*EHCI, *_EHCI_2):
        companion = {"masterbus": master, "firstport": port}
        arguments += device(driver, id=name, multifunction=True, bus="pcie.0", addr=addr, **companion)
    arguments += device("ich9-intel-hda", id="audio0", bus="pcie.0", addr="1b.0")
    newer = hardware.machine.at_least(4, 0)
    for port in range(1, 5):
        link = {"x-speed": "16", "x-width": "32"} if newer else {}
        where = {"bus": "pcie.0", "addr": f"1c.{port - 1}", "multifunction": True, "port": port, "chassis": port}
        driver = "pcie-root-port" if newer else "ioh3420"
        arguments += device(driver, id=f"ich9-pcie-port-{port}", **where, exact=link)
    arguments += device("i82801b11-bridge", id="pcidmi", bus="pcie.0", addr="1e.0")
    for number in range(4 if newer else 3):
        place = {"bus": "pcidmi", "addr": f"{number + 1}.0"}
        arguments += device("pci-bridge", id=f"pci.{number}", **place, exact={"chassis_nr": number + 1})
    return arguments


def serial_devices(hardware: Hardware, socket: Callable[[str], Path]) -> list[str]:
    """Serial ports, each at a UNIX socket, and the guest agent's."""
    arguments: list[str] = []
    for number in hardware.serials:
        arguments += _socket(f"serial{number}", socket(f"serial{number}"))
        arguments += device("isa-serial", chardev=f"serial{number}")
    if hardware.agent:
        arguments += _socket("qga0", socket("qga"))
    if hardware.agent == "isa":
        arguments += device("isa-serial", chardev="qga0")
    elif hardware.agent == "virtio":
        arguments += placed("qga0", "virtio-serial", id="qga0")
        arguments += device("virtserialport", chardev="qga0", name="org.qemu.guest_agent.0")
    return arguments


def _socket(name: str, path: Path) -> list[str]:
    return ["-chardev", f"socket,id={name},path={escaped(path)},server=on,wait=off"]


def small_devices(hardware: Hardware) -> list[str]:
    """Generation id, random numbers, balloon, watchdog."""
    arguments: list[str] = []
    if hardware.vmgenid:
        arguments += device("vmgenid", guid="auto" if hardware.vmgenid == "1" else hardware.vmgenid)
    if hardware.rng and hardware.machine.at_least(4, 1, 2):
        arguments += _rng({**_DEFAULT_RNG, **hardware.rng})
    if hardware.balloon:
        reporting = True if hardware.machine.at_least(6, 2) else None
        arguments += placed("balloon0", "virtio-balloon-pci", id="balloon0", free_page_reporting=reporting)
    if hardware.watchdog:
        arguments += _watchdog(hardware.watchdog)
    return arguments


def _rng(rng: Mapping[str, str]) -> list[str]:
    source = as_json({"qom-type": "rng-random", "id": "rng0", "filename": rng["source"]})
    limited = int(rng["max_bytes"]) > 0
    limit = {"max_bytes": int(rng["max_bytes"]), "period": int(rng["period"])} if limited else {}
    return ["-object", source, *placed("rng0", "virtio-rng-pci", rng="rng0", **limit)]


def _watchdog(watchdog: Mapping[str, str]) -> list[str]:
    model = watchdog.get("model", "i6300esb")
    arguments = placed("watchdog", model) if model == "i6300esb" else device(model)
    return arguments + (["-watchdog-action", watchdog["action"]] if "action" in watchdog else [])


def nic_device(nic: Nic, hardware: Hardware, *, host_mtu: int | None, roms: frozenset[str] | None) -> list[str]:
    """A network card.

    Args: host_mtu: the MTU that it tells the guest. roms: the boot ROMs there are; a card without its ROM has none.
    """
    virtio = nic.options["model"] == "virtio"
    driver = "virtio-net-pci" if virtio else nic.options["model"]
    tuning = dict(_virtio_tuning(nic, hardware, host_mtu)) if virtio else {}
    return placed(
        nic.key,
        driver,
        id=nic.key,
        mac=nic.options.get("macaddr"),
        netdev=nic.key,
        bootindex=nic.boot_index,
        romfile=_romfile("virtio" if virtio else driver, hardware, roms),
        exact=tuning,
    )


def _virtio_tuning(nic: Nic, hardware: Hardware, host_mtu: int | None) -> Iterator[tuple[str, Any]]:
    queues = int(nic.options.get("queues", "0"))
    if queues > 1:
        yield "vectors", queues * 2 + 2
        yield "mq", True
    if hardware.machine.at_least(7, 1):
        if queues > 1:
            yield "packed", True
        yield "rx_queue_size", 1024
        yield "tx_queue_size", 256
    if host_mtu:
        yield "host_mtu", host_mtu
    if hardware.machine.at_least(11, 0) and nic.options.get("host-tunnel") != "1":
        yield "host_tunnel", False


def _romfile(card: str, hardware: Hardware, roms: frozenset[str] | None) -> str | None:
    """None: QEMU's own choice; empty: none."""
    if hardware.machine.pxe and card in ("virtio", "e1000", "rtl8139", "ne2k_pci", "pcnet"):
        return f"pxe-{'virtio' if card == 'virtio' else card}.rom"
    if roms is not None and card in ("virtio", "e1000", "e1000e", "rtl8139", "ne2k_pci", "pcnet", "vmxnet3"):
        return None if f"efi-{card}.rom" in roms else ""
    return None


def read_host_mtus(text: str | None) -> dict[str, int]:
    """`net0=1500,net1=9000`, as the source sends it. Raises: TunnelError."""
    mtus: dict[str, int] = {}
    for part in filter(None, (text or "").split(",")):
        key, _, value = part.partition("=")
        if not (key.startswith("net") and value.isascii() and value.isdigit() and int(value) <= 65535):
            raise TunnelError("nets-host-mtu: value does not match the regex pattern")
        mtus[key] = int(value)
    return mtus
