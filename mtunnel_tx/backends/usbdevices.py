"""QEMU's USB controllers and devices."""

from __future__ import annotations

from mtunnel_tx.backends.devices import EHCI, device, placed
from mtunnel_tx.pve.hardware import Hardware
from mtunnel_tx.pve.usb import check_usb_ports


def usb_controllers(hardware: Hardware) -> list[str]:
    """The controllers; which ones there are depends on the ports, the machine and the guest system.

    Raises: TunnelError: `usbN: …`: the machine has fewer ports.
    """
    check_usb_ports(hardware.usb_ports, has_many=hardware.has_xhci)
    q35 = hardware.machine.is_q35
    arguments = [] if q35 else device("piix3-usb-uhci", id="uhci", bus="pci.0", addr="0x1.0x2")
    if hardware.has_xhci:
        more = placed("xhci", "qemu-xhci", id="xhci", p2=15, p3=15) if hardware.usb_ports else []
        return arguments + more
    if not q35 and any(not port.usb3 for port in hardware.usb_ports):
        arguments += _ehci_of_i440fx()
    if any(port.usb3 for port in hardware.usb_ports):
        arguments += placed("xhci", "nec-usb-xhci", id="xhci")
    return arguments


def _ehci_of_i440fx() -> list[str]:
    arguments: list[str] = []
    for name, driver, addr, master, port in EHCI:
        arguments += device(driver, id=name, multifunction=True, addr=addr, masterbus=master, firstport=port)
    return arguments


def tablet_device(hardware: Hardware) -> list[str]:
    """The pointer of a graphical display."""
    bus = "ehci.0" if hardware.machine.is_q35 else "uhci.0"
    return device("usb-tablet", id="tablet", bus=bus, port="1") if hardware.tablet else []


def usb_ports(hardware: Hardware) -> list[str]:
    """The ports that a SPICE viewer redirects its devices to."""
    arguments: list[str] = []
    for port in hardware.usb_ports:
        number = str(port.index + 1) if hardware.has_xhci else None
        bus = "xhci.0" if hardware.has_xhci or port.usb3 else "ehci.0"
        chardev = f"usbredirchardev{port.index}"
        arguments += ["-chardev", f"spicevmc,id={chardev},name=usbredir"]
        arguments += device("usb-redir", chardev=chardev, id=f"usbredirdev{port.index}", bus=bus, port=number)
    return arguments
