"""A guest's display: its graphics card, and what belongs to SPICE and to the clipboard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mtunnel_tx.errors import refuse
from mtunnel_tx.pve.guestformats import SPICE, VGA

_DRIVERS = {"std": "VGA", "cirrus": "cirrus-vga", "vmware": "vmware-svga", "virtio": "virtio-vga"}
_CIRRUS_MIB = ("4", "8", "16")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDisplay:
    """`kind`: as in `vga`, e.g. `std`, `qxl2`, `serial0`; `memory_mib` None: QEMU's default.

    `clipboard`: the VNC server shares the guest's clipboard. `shares_folder`: a SPICE viewer may share a folder.
    `streaming`: as in `spice_enhancements`.
    """

    kind: str
    memory_mib: int | None = None
    clipboard: bool = False
    shares_folder: bool = False
    streaming: str | None = None

    @property
    def qxl_count(self) -> int:
        """How many QXL cards there are; 0: the display is another one."""
        return int(self.kind.removeprefix("qxl") or "1") if self.kind.startswith("qxl") else 0

    @property
    def driver(self) -> str | None:
        """QEMU's device; None: there is no graphics card, the console is a serial port or nothing."""
        return "qxl-vga" if self.qxl_count else _DRIVERS.get(self.kind)

    @property
    def has_spice(self) -> bool:
        """Whether Proxmox has a SPICE server for it."""
        return self.qxl_count > 0 or self.kind.startswith("virtio")

    @property
    def has_agent_port(self) -> bool:
        """Whether the guest has the serial port of SPICE's agent, which also serves the clipboard of VNC."""
        return self.has_spice or self.clipboard

    @property
    def has_folder_port(self) -> bool:
        """Whether the guest has the serial port for a viewer's folder."""
        return self.has_spice and self.shares_folder

    @property
    def is_text(self) -> bool:
        """Whether there is no graphics card."""
        return self.kind.startswith(("serial", "none"))


def read_display(options: Mapping[str, str], *, windows: int) -> GuestDisplay:
    """Read `vga` and `spice_enhancements`. Args: windows: as in Hardware. Raises: TunnelError: `vga: REASON`."""
    vga = VGA.parse(options["vga"]) if "vga" in options else {}
    spice = SPICE.parse(options["spice_enhancements"]) if "spice_enhancements" in options else {}
    kind = vga.get("type", "cirrus" if 0 < windows < 6 else "std")
    if kind == "virtio-gl":
        raise refuse("vga", f"'{kind}' needs the graphics card of one host, and cannot move")
    if kind == "cirrus" and vga.get("memory", "4") not in _CIRRUS_MIB:
        raise refuse("vga", f"cirrus has {', '.join(_CIRRUS_MIB)} MiB of memory, not {vga['memory']}")
    if kind.startswith("serial") and kind not in options:
        raise refuse("vga", f"there is no {kind}")
    return GuestDisplay(
        kind=kind,
        memory_mib=int(vga["memory"]) if "memory" in vga else None,
        clipboard="clipboard" in vga,
        shares_folder=spice.get("foldersharing") == "1",
        streaming=spice.get("videostreaming"),
    )
