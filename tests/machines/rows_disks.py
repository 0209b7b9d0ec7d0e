"""Disks, CD-ROM drives and their controllers, on all kinds of storages."""

from tests.machines.row import (
    CARD_NEW,
    CD2,
    GENID,
    NATIVE_HOTPLUG,
    NET0,
    Q35,
    SCSIHW0,
    SLEEPLESS_Q35,
    VMGENID,
    Row,
    scsi,
)
from tests.machines.rows_plain import FIRST, NEW_LINUX, SIMPLE, VIRTIO_SCSI

_CACHES = (("", "on"), (",cache=writeback", "on"), (",cache=writethrough", "off"), (",cache=directsync", "off"))
_SCSI = "bootdisk: scsi0\nscsi0: local:100/a.qcow2\nscsihw: virtio-scsi-pci"
_THREADED = "virtio-blk-pci virtio0 bus=pci.0 addr=0xa iothread=iothread-virtio0 drive=drive-virtio0 write-cache=on"
_SPREAD = (0, 1, 5, 9, 16)
_ISOS = """ide0: local:iso/zero.iso,media=cdrom
ide1: local:iso/one.iso,media=cdrom
ide2: local:iso/two.iso,media=cdrom
ide3: local:iso/three.iso,media=cdrom"""


def cached(name: str, volume: str, first: int = 0, more: int = 0, *, system: bool = True) -> Row:
    """Four disks, or eight, of a storage, one for each way of caching."""
    disks = [(index, *_CACHES[index % 4]) for index in range(4 + more)]
    lines = "\n".join(f"scsi{index}: {volume},discard=on{option}" for index, option, _ in disks)
    devices = "\n".join(
        scsi(index, f"scsihw0 lun={index}", cache=cache, boot=100 if index == first else None)
        for index, _, cache in disks
    )
    if not system:
        return Row(
            name=name,
            config=f"bootdisk: scsi0\nscsihw: virtio-scsi-pci\n{lines}",
            devices=f"{VIRTIO_SCSI}\n{devices}",
        )
    return Row(
        name=name,
        config=f"{SIMPLE}\nscsihw: virtio-scsi-pci\n{lines}",
        devices=f"{CD2} bootindex=200\n{VIRTIO_SCSI}\n{devices}\n{CARD_NEW}\n{VMGENID}",
        memory="768",
        note="" if volume.startswith("local") else "for a volume that this host has as a block device",
        **NEW_LINUX,
    )


def spread(scsihw: str, controllers: str, places: dict[int, str]) -> Row:
    """Five disks at places far apart."""
    options = ("", ",cache=writeback", ",cache=writethrough", ",cache=directsync", ",cache=directsync")
    caches = ("on", "on", "off", "off", "off")
    lines = "\n".join(f"scsi{n}: lvm:vm-100-disk-{n}{option}" for n, option in zip(_SPREAD, options, strict=True))
    devices = "\n".join(
        scsi(n, places[n], cache=cache, boot=100 if n == 0 else None) for n, cache in zip(_SPREAD, caches, strict=True)
    )
    return Row(
        name=f"scsihw-{scsihw}",
        config=f"bootdisk: scsi0\nscsihw: {scsihw}\n{lines}",
        devices=f"{controllers}\n{devices}",
    )


def lsi(driver: str) -> Row:
    controllers = f"""pci-bridge pci.4 chassis_nr=4 bus=pci.1 addr=0x1c
        {driver} {SCSIHW0}\n{driver} scsihw1 bus=pci.0 addr=0x6\n{driver} scsihw2 bus=pci.4 addr=0x1"""
    return spread(driver, controllers, {n: f"scsihw{n // 7} unit={n % 7}" for n in _SPREAD})


def isos(name: str, places: tuple[str, ...], **more: str) -> Row:
    drives = "\n".join(
        f"ide-cd ide{n} {place} drive=drive-ide{n} bootindex={200 + n}" for n, place in enumerate(places)
    )
    return Row(
        name=name,
        config=f"{_ISOS}\n{_SCSI}\nostype: l26\n{NET0}\n{GENID}\nmachine: {'q35' if 'base' in more else 'pc'}",
        devices=f"{drives}\n{VIRTIO_SCSI}\n{FIRST}\n{CARD_NEW}\n{VMGENID}",
        **{**NEW_LINUX, **more},
    )


ROWS = (
    Row(
        name="aio",
        config="\n".join(
            f"scsi{n}: local:100/{n}.raw,discard=on,aio={'native' if n % 2 else 'threads'}" for n in range(14)
        )
        + "\nboot:  ",
        devices=f"lsi {SCSIHW0}\nlsi scsihw1 bus=pci.0 addr=0x6\n"
        + "\n".join(scsi(n, f"scsihw{n // 7} unit={n % 7}") for n in range(14)),
    ),
    cached("simple-btrfs", "local:100/a.raw"),
    cached("simple-rbd", "rbd:vm-100-disk-0", more=4),
    cached("simple-zfs-over-iscsi", "zfs:vm-100-disk-0"),
    cached("simple-cifs", "local:100/a.raw"),
    cached("simple-lvm", "lvm:vm-100-disk-0", system=False),
    cached("simple-lvmthin", "thin:vm-100-disk-0", system=False),
    Row(
        name="simple-virtio-blk",
        config=f"{SIMPLE.replace('scsi0', 'virtio0')}\nvirtio0: local:100/a.qcow2,discard=on,iothread=1",
        devices=f"""{CD2} bootindex=200
            {_THREADED} bootindex=100
            {CARD_NEW}\n{VMGENID}""",
        memory="768",
        **NEW_LINUX,
    ),
    lsi("lsi"),
    lsi("lsi53c810"),
    spread("megasas", f"megasas {SCSIHW0}", {n: f"scsihw0 lun={n}" for n in _SPREAD}),
    spread("pvscsi", f"pvscsi {SCSIHW0}", {n: f"scsihw0 unit={n}" for n in _SPREAD}),
    spread(
        "virtio-scsi-single",
        "pci-bridge pci.3 chassis_nr=3 bus=pci.0 addr=0x5\n"
        + "\n".join(f"virtio-scsi-pci virtioscsi{n} bus=pci.3 addr={n + 1:#x}" for n in _SPREAD),
        {n: f"virtioscsi{n} lun={n}" for n in _SPREAD},
    ),
    isos("ide", ("bus=ide.0 unit=0", "bus=ide.0 unit=1", "bus=ide.1 unit=0", "bus=ide.1 unit=1")),
    isos(
        "q35-ide",
        ("bus=ide.0 unit=0", "bus=ide.2 unit=0", "bus=ide.1 unit=0", "bus=ide.3 unit=0"),
        base=Q35,
        machine="pc-q35-10.1",
        globals=f"{SLEEPLESS_Q35} {NATIVE_HOTPLUG}",
    ),
    Row(
        name="ide-no-media-error",
        config="ide2: local:iso/two.iso,media=disk\nide3: local:iso/three.iso",
        refused="explicit 'media=cdrom' is required",
        there="refuses it",
    ),
    Row(
        name="simple-backingchain",
        config="scsi0: chain:100/vm-100-disk-0.qcow2",
        devices=f"lsi {SCSIHW0}\n{scsi(0, 'scsihw0 unit=0', boot=100)}",
        start_refused="an image that stands on another file, by snapshots outside of it, is not opened",
    ),
)
