"""Machines with nothing special: their defaults, versions, systems, network cards, boot order."""

from tests.machines.row import (
    AGENT,
    CARD,
    CARD_71,
    CARD_NEW,
    CD2,
    CPU,
    EDID_OFF,
    GENID,
    HYPER_V,
    NET0,
    NO_TICKS,
    Q35,
    Q35_OLD,
    SCSIHW0,
    SILENT,
    VMGENID,
    Row,
    scsi,
)

AGENT_PORT = "virtio-serial qga0 bus=pci.0 addr=0x8\nvirtserialport chardev=qga0 name=org.qemu.guest_agent.0"
SIMPLE = f"cores: 3\nmemory: 768\nostype: l26\nide2: none,media=cdrom\n{NET0}\n{GENID}\nbootdisk: scsi0"
DISK0 = "scsi0: local:100/vm-100-disk-0.qcow2,discard=on"
FIRST = scsi(0, "scsihw0 lun=0", boot=100)
VIRTIO_SCSI = f"virtio-scsi-pci {SCSIHW0}"
NEW_LINUX = {"options": "hpet=off"}
THREE = f"""scsi4: local:100/a.qcow2
virtio0: local:100/b.qcow2,iothread=1
virtio1: local:100/c.qcow2,iothread=1
ostype: l26
ide2: none,media=cdrom
{NET0}"""
BOTH_VIRTIO = """virtio-blk-pci virtio0 bus=pci.0 addr=0xa iothread=iothread-virtio0 drive=drive-virtio0 write-cache=on
virtio-blk-pci virtio1 bus=pci.0 addr=0xb iothread=iothread-virtio1 drive=drive-virtio1 write-cache=on"""
CARD_UNORDERED = CARD_NEW.replace(" bootindex=300", "")


def pinned(name: str, machine: str, more: str = "", *, devices: str = "", base: str = Q35, rom: str = "") -> Row:
    """A q35 machine with a version in its config."""
    kind = machine.partition("+")[0].removesuffix(".pxe")
    return Row(
        name=name,
        config=f"machine: {machine}\n{SIMPLE}\nscsihw: virtio-scsi-pci\n{DISK0}\n{more}",
        base=base,
        devices=f"{CD2} bootindex=200\n{VIRTIO_SCSI}\n{FIRST}\n{CARD}{rom}\n{SILENT}\n{VMGENID}\n{devices}",
        machine=kind,
        globals="",
        memory="768",
    )


def simple(name: str, newest: str, card: str, more: str = "") -> Row:
    return Row(
        name=name,
        config=f"{SIMPLE}\nscsihw: virtio-scsi-pci\n{DISK0}",
        devices=f"{CD2} bootindex=200\n{VIRTIO_SCSI}\n{FIRST}\n{card}\n{VMGENID}\n{more}",
        memory="768",
        newest=newest,
        machine=f"pc-i440fx-{newest}",
        **NEW_LINUX,
    )


ROWS = (
    Row(name="minimal-defaults", config=""),
    Row(
        name="minimal-defaults-to-new-machine",
        config="machine: pc-q35-42.9",
        refused="does not know machine type 'pc-q35-42.9'",
        there="refuses it",
    ),
    Row(
        name="minimal-defaults-unsupported-pve-version",
        config="machine: pc-q35-9.0+pve77",
        refused="revision +pve77 of machine version 9.0 is not known",
        there="refuses it",
    ),
    Row(
        name="old-unsupported-machine-version",
        config="machine: pc-i440fx-4.0",
        machine="pc-i440fx-4.0",
        devices=SILENT,
        globals="",
        there="refuses it since version 9.2, before that builds it",
        note="built where QEMU has it",
    ),
    Row(
        name="old-qemu",
        config="",
        newest="4.1",
        refused="this host's QEMU is version 4.1; 6.2 or newer is needed",
        there="refuses it",
    ),
    simple("simple1", "10.1", CARD_NEW),
    simple("simple-11.0-binary", "11.0", f"{CARD_NEW} host_tunnel=off"),
    Row(
        name="linux-bridges-qemu-11.1",
        config=f"{SIMPLE}\n{DISK0}",
        devices=f"""pci-bridge pci.4 chassis_nr=4 bus=pci.1 addr=0x1c
            {CD2} bootindex=200\nlsi {SCSIHW0}\n{scsi(0, "scsihw0 unit=0", boot=100)}
            {CARD_NEW} host_tunnel=off\n{VMGENID}""",
        memory="768",
        newest="11.1",
        machine="pc-i440fx-11.1",
        **NEW_LINUX,
    ),
    Row(
        name="simple-balloon-free-page-reporting",
        config=f"machine: pc-i440fx-6.2\n{SIMPLE}\nscsihw: virtio-scsi-pci\n{DISK0}",
        devices=f"{CD2} bootindex=200\n{VIRTIO_SCSI}\n{FIRST}\n{CARD}\n{VMGENID}",
        machine="pc-i440fx-6.2",
        globals="",
        memory="768",
    ),
    pinned("pinned-version", "pc-q35-5.0"),
    pinned("pinned-version (before it was 5.0)", "pc-q35-3.1", base=Q35_OLD),
    pinned("pinned-version-pxe", "pc-q35-5.1.pxe", rom=" romfile=pxe-virtio.rom"),
    pinned(
        "pinned-version-pxe-pve",
        "pc-q35-5.0+pve0.pxe",
        "rng0: source=/dev/urandom",
        devices="virtio-rng-pci rng=rng0 max-bytes=1024 period=1000 bus=pci.1 addr=0x1d",
        rom=" romfile=pxe-virtio.rom",
    ),
    Row(
        name="bootorder",
        config=f"boot: order=virtio1;net0;scsi4;ide2\n{THREE}",
        devices=f"""{CD2} bootindex=103\nlsi {SCSIHW0}\n{scsi(4, "scsihw0 unit=4", boot=102)}
            {BOTH_VIRTIO} bootindex=100\n{CARD_UNORDERED} bootindex=101""",
        **NEW_LINUX,
    ),
    Row(
        name="bootorder-legacy",
        config=f"boot: ndca\nbootdisk: virtio1\n{THREE}",
        devices=f"""{CD2} bootindex=200\nlsi {SCSIHW0}\n{scsi(4, "scsihw0 unit=4")}
            {BOTH_VIRTIO} bootindex=302\n{CARD_UNORDERED} bootindex=100""",
        **NEW_LINUX,
    ),
    Row(
        name="bootorder-empty",
        config=f"boot:  \n{THREE}",
        devices=f"{CD2}\nlsi {SCSIHW0}\n{scsi(4, 'scsihw0 unit=4')}\n{BOTH_VIRTIO}\n{CARD_UNORDERED}",
        **NEW_LINUX,
    ),
    Row(
        name="netdev",
        config=f"machine: pc-i440fx-5.0\nostype: l26\n{NET0},mtu=900",
        devices=f"{CARD} host_mtu=900\n{SILENT}",
        machine="pc-i440fx-5.0",
        globals="",
    ),
    Row(
        name="netdev-7.0-multiqueues",
        config=f"ostype: l26\nmachine: pc-i440fx-7.0\n{NET0},mtu=900,queues=2",
        devices=f"{CARD} vectors=6 mq=on host_mtu=900",
        machine="pc-i440fx-7.0",
        globals="",
    ),
    Row(name="netdev-7.1", config=f"ostype: l26\n{NET0},mtu=900", devices=f"{CARD_71} host_mtu=900", **NEW_LINUX),
    Row(
        name="netdev-7.1-multiqueues",
        config=f"ostype: l26\n{NET0},mtu=900,queues=2",
        devices=f"{CARD_71} vectors=6 mq=on packed=on host_mtu=900",
        **NEW_LINUX,
    ),
    Row(
        name="netdev_vxlan",
        config="ostype: l26\nnet0: virtio=02:00:00:00:00:01,bridge=narrow",
        devices=f"{CARD_71} host_mtu=1450",
        note="the bridge's MTU is 1450",
        **NEW_LINUX,
    ),
    Row(name="os-other", config="ostype: other"),
    Row(name="os-solaris", config="ostype: solaris", cpu=f"{CPU} -x2apic"),
    Row(
        name="startdate-l26",
        config="ostype: l26\nstartdate: 2006-06-17T16:01:21",
        clock="base=2006-06-17T16:01:21",
        **NEW_LINUX,
    ),
    Row(
        name="startdate-win11",
        config="ostype: win11\ntdf: 0\nstartdate: 2020-01-11",
        devices=f"{EDID_OFF}\n{SILENT}",
        machine="pc-i440fx-5.1",
        cpu=f"{CPU} {HYPER_V} -cet-ibt -cet-ss",
        globals=NO_TICKS,
        clock="base=2020-01-11",
        **NEW_LINUX,
    ),
    Row(name="qga-minimal", config="agent: 1", devices=AGENT_PORT),
    Row(name="qga-fs-freeze", config="agent: 1,freeze-fs=1", devices=AGENT_PORT),
    Row(name="qga-fs-freeze-backup-legacy", config="agent: enabled=1,freeze-fs-on-backup=0", devices=AGENT_PORT),
    Row(
        name="seabios_serial",
        config=f"{SIMPLE}\nscsihw: virtio-scsi-pci\n{DISK0}\nserial0: socket\nvga: serial0",
        devices=f"""-vga\n-tablet\nisa-serial chardev=serial0\n{CD2} bootindex=200\n{VIRTIO_SCSI}\n{FIRST}
            {CARD_NEW}\n{VMGENID}""",
        memory="768",
        options="hpet=off smm=off",
    ),
    Row(name="vnc-clipboard-std", config="vga: std,clipboard=vnc", devices=AGENT),
    Row(
        name="simple-x86-on-arm-host",
        config=f"arch: x86_64\nbios: ovmf\nefidisk0: local:100/e.qcow2,efitype=4m\n{NET0}\nostype: l26",
        devices=CARD_NEW,
        options="hpet=off pflash0=pflash0 pflash1=drive-efidisk0",
        note="as on a host with this processor",
    ),
)
