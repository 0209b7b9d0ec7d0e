"""What one config of Proxmox's own test set must become: devices with ids and addresses, options, or a refusal.

The expectations say what a guest sees, in lines `DRIVER [ID] KEY=VALUE …`. What every machine has stands once, below.
"""

from dataclasses import dataclass

NET0 = "net0: virtio=02:00:00:00:00:01,bridge=br0"
"""A virtio card on a bridge whose MTU is 1500."""
CARD = "virtio-net-pci net0 mac=02:00:00:00:00:01 netdev=net0 bus=pci.0 addr=0x12 bootindex=300"
CARD_71 = f"{CARD} rx_queue_size=1024 tx_queue_size=256"
CARD_NEW = f"{CARD_71} host_mtu=1500"
GENID = "vmgenid: c1b6e5a0-93a4-4d2a-9f2e-0a4b6c8d0e11"
VMGENID = "vmgenid guid=c1b6e5a0-93a4-4d2a-9f2e-0a4b6c8d0e11"
CD2 = "ide-cd ide2 bus=ide.1 unit=0"
SCSIHW0 = "scsihw0 bus=pci.0 addr=0x5"
REPORTING = "virtio-balloon-pci balloon0 bus=pci.0 addr=0x3 free-page-reporting=on"
SILENT = "virtio-balloon-pci balloon0 bus=pci.0 addr=0x3"
EDID_OFF = "VGA vga bus=pci.0 addr=0x2 edid=off"
XHCI_NEW = "qemu-xhci xhci p2=15 p3=15 bus=pci.1 addr=0x1b"
XHCI_OLD = "nec-usb-xhci xhci bus=pci.1 addr=0x1b"
AGENT = "virtio-serial spice bus=pci.0 addr=0x9\nvirtserialport chardev=vdagent name=com.redhat.spice.0"
CPU = "kvm64 enforce +kvm_pv_eoi +kvm_pv_unhalt +lahf_lm +sep"
HYPER_V = " ".join(
    f"hv_{word}"
    for word in (
        "ipi", "relaxed", "reset", "runtime", "spinlocks=0x1fff", "stimer", "synic", "time", "vapic", "vpindex",
    )
)  # fmt: skip
SLEEPLESS = "PIIX4_PM.disable_s3=1 PIIX4_PM.disable_s4=1"
SLEEPLESS_Q35 = "ICH9-LPC.disable_s3=1 ICH9-LPC.disable_s4=1"
NATIVE_HOTPLUG = "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"
NO_TICKS = "kvm-pit.lost_tick_policy=discard"

I440FX = f"""
pci-bridge pci.1 chassis_nr=1 bus=pci.0 addr=0x1e
pci-bridge pci.2 chassis_nr=2 bus=pci.0 addr=0x1f
piix3-usb-uhci uhci bus=pci.0 addr=0x1.0x2
usb-tablet tablet bus=uhci.0 port=1
VGA vga bus=pci.0 addr=0x2
{REPORTING}
"""
_EHCI = """
ich9-usb-ehci1 ehci multifunction=on bus=pcie.0 addr=1d.7
ich9-usb-uhci1 uhci-1 multifunction=on bus=pcie.0 addr=1d.0 masterbus=ehci.0 firstport=0
ich9-usb-uhci2 uhci-2 multifunction=on bus=pcie.0 addr=1d.1 masterbus=ehci.0 firstport=2
ich9-usb-uhci3 uhci-3 multifunction=on bus=pcie.0 addr=1d.2 masterbus=ehci.0 firstport=4
ich9-usb-ehci2 ehci-2 multifunction=on bus=pcie.0 addr=1a.7
ich9-usb-uhci4 uhci-4 multifunction=on bus=pcie.0 addr=1a.0 masterbus=ehci-2.0 firstport=0
ich9-usb-uhci5 uhci-5 multifunction=on bus=pcie.0 addr=1a.1 masterbus=ehci-2.0 firstport=2
ich9-usb-uhci6 uhci-6 multifunction=on bus=pcie.0 addr=1a.2 masterbus=ehci-2.0 firstport=4
ich9-intel-hda audio0 bus=pcie.0 addr=1b.0
i82801b11-bridge pcidmi bus=pcie.0 addr=1e.0
pci-bridge pci.0 bus=pcidmi addr=1.0 chassis_nr=1
pci-bridge pci.1 bus=pcidmi addr=2.0 chassis_nr=2
pci-bridge pci.2 bus=pcidmi addr=3.0 chassis_nr=3
usb-tablet tablet bus=ehci.0 port=1
VGA vga bus=pcie.0 addr=0x1
"""
_PORT = "ich9-pcie-port-{0} multifunction=on bus=pcie.0 addr=1c.{1} port={0} chassis={0}"
_PORTS = "\n".join(f"pcie-root-port {_PORT.format(n, n - 1)} x-speed=16 x-width=32" for n in range(1, 5))
_OLD_PORTS = "\n".join(f"ioh3420 {_PORT.format(n, n - 1)}" for n in range(1, 5))
Q35 = f"{_EHCI}{_PORTS}\npci-bridge pci.3 bus=pcidmi addr=4.0 chassis_nr=4\n{REPORTING}\n"
Q35_OLD = f"{_EHCI}{_OLD_PORTS}\n{REPORTING}\n"
EHCI_I440FX = """
ich9-usb-ehci1 ehci multifunction=on addr=1d.7
ich9-usb-uhci1 uhci-1 multifunction=on addr=1d.0 masterbus=ehci.0 firstport=0
ich9-usb-uhci2 uhci-2 multifunction=on addr=1d.1 masterbus=ehci.0 firstport=2
ich9-usb-uhci3 uhci-3 multifunction=on addr=1d.2 masterbus=ehci.0 firstport=4
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A config by the name that it has in Proxmox's set.

    `devices`: beside those of `base`; a line with the id of one of them takes its place, `-ID` removes it. `options`:
    of `-machine`, but for type and accelerator. `newest`: the version that an unversioned machine type becomes.
    `refused`: by us, with this text in the reason; `start_refused`: the machine is the same, but a start is refused,
    for this reason. `there`: what Proxmox does.
    """

    name: str
    config: str
    base: str = I440FX
    devices: str = ""
    machine: str = "pc-i440fx-10.1"
    options: str = ""
    globals: str = SLEEPLESS
    cpu: str = CPU
    memory: str = "512"
    clock: str = ""
    newest: str = "10.1"
    refused: str = ""
    there: str = "builds it"
    note: str = ""
    start_refused: str = ""

    @property
    def lines(self) -> set[str]:
        """Every device, with its properties in order."""
        found: dict[str, str] = {}
        for line in map(str.strip, f"{self.base}\n{self.devices}".splitlines()):
            if line.startswith("-"):
                del found[line[1:]]
            elif line:
                found[_identity(line)] = _sorted(line)
        return set(found.values())


def _identity(line: str) -> str:
    """The id; a device without one is known by all that it is."""
    words = line.split()
    return words[1] if len(words) > 1 and "=" not in words[1] else line


def _sorted(line: str) -> str:
    driver, *words = line.split()
    return " ".join(
        [driver, *(word for word in words if "=" not in word), *sorted(word for word in words if "=" in word)]
    )


def scsi(index: int, place: str, *, boot: int | None = None, cache: str = "on") -> str:
    """A SCSI disk. Args: place: controller, and `unit` or `lun`."""
    controller, _, at = place.partition(" ")
    name, number = at.split("=")
    where = f"scsi-id={number}" if name == "unit" else f"channel=0 scsi-id=0 lun={number}"
    order = "" if boot is None else f" bootindex={boot}"
    drive = f"drive=drive-scsi{index} device_id=drive-scsi{index} write-cache={cache}"
    return f"scsi-hd scsi{index} bus={controller}.0 {where} {drive}{order}"
