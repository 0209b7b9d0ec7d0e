"""A guest's USB ports (`usbN`). Only those of SPICE can move; a device of the host cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mtunnel_tx.errors import refuse
from mtunnel_tx.pve.guestformats import INDEXED_KEYS, USB

_OLD_COUNT = 5
"""So many ports has a VM without the newer controller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsbPort:
    """A port that a SPICE viewer redirects its devices to. `usb3`: the config asks for USB 3."""

    index: int
    usb3: bool


def read_usb_ports(options: Mapping[str, str]) -> tuple[UsbPort, ...]:
    """Raises: TunnelError: `usbN: REASON`: a device of the host."""
    return tuple(
        _read_port(index, options[f"usb{index}"]) for index in range(INDEXED_KEYS["usb"]) if f"usb{index}" in options
    )


def _read_port(index: int, text: str) -> UsbPort:
    values = USB.parse(text)
    if values.get("host", "").lower() != "spice":
        raise refuse(f"usb{index}", "a USB device of one host cannot move to another")
    return UsbPort(index=index, usb3=values.get("usb3") == "1")


def check_usb_ports(ports: tuple[UsbPort, ...], *, has_many: bool) -> None:
    """Args: has_many: the machine has the newer controller. Raises: TunnelError: `usbN: REASON`."""
    for port in ports:
        if port.index >= _OLD_COUNT and not has_many:
            raise refuse(f"usb{port.index}", "needs machine version 7.1, and ostype l26 or Windows 8 or newer")
