"""QXL cards, SPICE, and USB ports for its viewers."""

from tests.machines.row import (
    AGENT,
    CARD,
    CARD_71,
    CPU,
    EHCI_I440FX,
    GENID,
    HYPER_V,
    NET0,
    NO_TICKS,
    Q35,
    SILENT,
    VMGENID,
    XHCI_NEW,
    XHCI_OLD,
    Row,
)

_QXL = "-tablet\nqxl-vga vga bus=pci.0 addr=0x2"
_SEVERAL = f"{_QXL} max_outputs=4"
_QXL_Q35 = "-tablet\nqxl-vga vga bus=pcie.0 addr=0x1 max_outputs=4"
_FOLDER = "virtserialport chardev=foldershare name=org.spice-space.webdav.0"
_REDIR = "usb-redir usbredirdev1 chardev=usbredirchardev1"
_MANY = "needs machine version 7.1, and ostype l26"


def old(name: str, config: str, devices: str, *, machine: str = "pc-i440fx-5.0", **more: str) -> Row:
    """A machine before 6.2 with a network card."""
    return Row(
        name=name,
        config=f"machine: {machine}\n{NET0}\n{GENID}\n{config}",
        devices=f"{CARD}\n{VMGENID}\n{SILENT}\n{devices}",
        machine=machine,
        **{"globals": "", **more},
    )


ROWS = (
    Row(name="os-l24", config="ostype: l24\nvga: qxl", devices=f"{_SEVERAL}\n{AGENT}"),
    Row(name="vnc-clipboard-spice", config="vga: qxl,clipboard=vnc", devices=f"{_SEVERAL}\n{AGENT}"),
    Row(
        name="spice-enhancments",
        config=f"machine: pc-i440fx-5.0\nspice_enhancements: foldersharing=1,videostreaming=all\nvga: qxl\n{GENID}",
        devices=f"{_SEVERAL}\n{AGENT}\n{_FOLDER}\n{VMGENID}\n{SILENT}",
        machine="pc-i440fx-5.0",
        globals="",
    ),
    old("spice-linux-4.1", "ostype: l26\nvga: qxl", f"{_SEVERAL}\n{AGENT}", machine="pc-i440fx-4.1"),
    old("spice-linux-5.0", "ostype: l26\nvga: qxl", f"{_SEVERAL}\n{AGENT}"),
    old(
        "spice-usb3",
        "ostype: l26\nvga: qxl\nusb1: spice,usb3=1",
        f"{_SEVERAL}\n{AGENT}\n{XHCI_OLD}\n{_REDIR} bus=xhci.0",
    ),
    old(
        "spice-usb3 (before it was 5.0)",
        "ostype: l26\nvga: qxl\nusb1: spice,usb3=1",
        f"{_QXL}\n{AGENT}\n{XHCI_OLD}\n{_REDIR} bus=xhci.0",
        machine="pc-i440fx-4.0",
    ),
    old(
        "spice-win",
        "ostype: win10\nvga: qxl2\nusb1: spice,usb3=1",
        f"""{_QXL}\nqxl vga1 ram_size=67108864 vram_size=33554432 bus=pci.0 addr=0x18
            {AGENT}\n{XHCI_OLD}\n{_REDIR} bus=xhci.0""",
        cpu=f"{CPU} {HYPER_V}",
        globals=NO_TICKS,
        options="hpet=off",
        clock="driftfix=slew,base=localtime",
    ),
    old(
        "q35-usb2",
        "ostype: l26\nvga: qxl\nusb1: spice",
        f"{_QXL_Q35}\n{AGENT}\n{_REDIR} bus=ehci.0",
        machine="pc-q35-5.0",
        base=Q35,
    ),
    old(
        "q35-usb3",
        "ostype: l26\nvga: qxl\nusb1: spice,usb3=1",
        f"{_QXL_Q35}\n{AGENT}\n{XHCI_OLD}\n{_REDIR} bus=xhci.0",
        machine="pc-q35-5.0",
        base=Q35,
    ),
    old(
        "(none: USB 2 ports of an old i440fx machine)",
        "ostype: l26\nusb1: spice",
        f"{EHCI_I440FX}\n{_REDIR} bus=ehci.0",
    ),
    Row(
        name="qemu-xhci-q35-7.1",
        config=f"machine: pc-q35-7.1\nostype: l26\n{NET0}\n{GENID}\nusb1: spice",
        base=Q35,
        devices=f"{CARD_71}\n{VMGENID}\n{XHCI_NEW}\n{_REDIR} bus=xhci.0 port=2",
        machine="pc-q35-7.1",
        globals="",
    ),
    Row(
        name="qemu-xhci-7.1",
        config="machine: pc-i440fx-7.1\nostype: l26\nvga: qxl\nusb1: spice\nusb5: spice\nusb13: host=1-14",
        refused="usb13: a USB device of one host cannot move",
    ),
    Row(
        name="(none: the same without the host's device)",
        config=f"machine: pc-i440fx-7.1\nostype: l26\n{NET0}\nvga: qxl\nusb1: spice\nusb5: spice",
        devices=f"""{_SEVERAL}\n{AGENT}\n{CARD_71}\n{XHCI_NEW}\n{_REDIR} bus=xhci.0 port=2
            usb-redir usbredirdev5 chardev=usbredirchardev5 bus=xhci.0 port=6""",
        machine="pc-i440fx-7.1",
        globals="",
    ),
    Row(
        name="usb13-error",
        config="machine: pc-i440fx-5.0\nostype: l26\nvga: qxl\nusb13: spice",
        machine="pc-i440fx-5.0",
        refused=_MANY,
        there="refuses it",
    ),
    Row(
        name="q35-usb13-error",
        config="machine: pc-q35-5.0\nostype: l26\nusb13: spice",
        refused=_MANY,
        there="refuses it",
    ),
    Row(name="ostype-usb13-error", config="ostype: w2k\nvga: qxl\nusb13: spice", refused=_MANY, there="refuses it"),
)
