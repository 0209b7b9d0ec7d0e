"""QEMU's devices of a display: graphics cards, SPICE, and the ports of its agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtunnel_tx.backends.devices import device, escaped, placed
from mtunnel_tx.pve.display import GuestDisplay
from mtunnel_tx.pve.hardware import Hardware

_FOLDER_PORT = "org.spice-space.webdav.0"
_AGENT_PORT = "com.redhat.spice.0"
_QXL_MORE: dict[str, Any] = {"ram_size": 64 << 20, "vram_size": 32 << 20}
"""The memory of a second and further QXL card."""
_QXL_ONE = ("-global", "qxl-vga.ram_size=134217728", "-global", "qxl-vga.vram_size=67108864")


def graphics_devices(hardware: Hardware) -> list[str]:
    """The graphics cards: one, except for Windows with several QXL displays."""
    display = hardware.display
    if display.driver is None:
        return []
    bus, addr = ("pcie.0", "0x1") if hardware.machine.is_q35 else ("pci.0", "0x2")
    edid = False if display.driver == "VGA" and hardware.windows and not hardware.ovmf else None
    exact = {"edid": edid, **_outputs(hardware), **_card_memory(display)}
    arguments = device(display.driver, id="vga", bus=bus, addr=addr, exact=exact)
    if display.qxl_count <= 1:
        return arguments
    if not hardware.windows:
        return [*arguments, *_qxl_globals(display)]
    for number in range(1, display.qxl_count):
        exact = {**(_card_memory(display) or _QXL_MORE), **_outputs(hardware)}
        arguments += placed(f"vga{number}", "qxl", id=f"vga{number}", exact=exact)
    return arguments


def _outputs(hardware: Hardware) -> dict[str, Any]:
    """One QXL card has up to four displays, but not for Windows and Solaris."""
    several = hardware.display.qxl_count and not hardware.windows and not hardware.solaris
    return {"max_outputs": 4} if several and hardware.machine.at_least(4, 1) else {}


def _card_memory(display: GuestDisplay) -> dict[str, Any]:
    memory_mib = display.memory_mib
    if memory_mib is None:
        return {}
    if display.kind.startswith("virtio"):
        return {"max_hostmem": memory_mib << 20}
    if display.qxl_count:
        return {"vgamem_mb": memory_mib, "ram_size_mb": memory_mib * 4, "vram_size_mb": memory_mib * 2}
    return {"vgamem_mb": memory_mib}


def _qxl_globals(display: GuestDisplay) -> list[str]:
    """Linux has all its QXL displays on one card, with the memory of all."""
    if display.memory_mib is None:
        return list(_QXL_ONE)
    memory_bytes = display.memory_mib * display.qxl_count << 20
    sizes = {"ram_size": 4 * memory_bytes, "vram_size": 2 * memory_bytes}
    return [word for name, size in sizes.items() for word in ("-global", f"qxl-vga.{name}={size}")]


def agent_port_devices(display: GuestDisplay, *, spice: bool) -> list[str]:
    """The serial port of SPICE's agent, which also serves the clipboard of VNC.

    Args: spice: QEMU has a SPICE server; without one nothing is connected to the ports.
    """
    if not display.has_agent_port:
        return []
    chardev = "spicevmc,id=vdagent,name=vdagent" if spice and display.has_spice else "null,id=vdagent"
    if display.clipboard:
        chardev = "qemu-vdagent,id=vdagent,name=vdagent,clipboard=on"
    arguments = [*placed("spice", "virtio-serial", id="spice"), "-chardev", chardev]
    arguments += device("virtserialport", chardev="vdagent", name=_AGENT_PORT)
    if display.has_folder_port:
        folder = f"spiceport,id=foldershare,name={_FOLDER_PORT}" if spice else "null,id=foldershare"
        arguments += ["-chardev", folder, *device("virtserialport", chardev="foldershare", name=_FOLDER_PORT)]
    return arguments


def spice_server(display: GuestDisplay, path: Path) -> list[str]:
    """A SPICE server on a UNIX socket, which only this host's administrator can open."""
    if not display.has_spice:
        return []
    streaming = f",streaming-video={display.streaming}" if display.streaming else ""
    return ["-spice", f"unix=on,addr={escaped(path)},disable-ticketing=on,seamless-migration=on{streaming}"]
