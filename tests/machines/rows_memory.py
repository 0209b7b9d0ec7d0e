"""Memory that is huge, hot-plugged or in nodes; processors of all kinds."""

from tests.machines.row import CARD_NEW, CPU, EDID_OFF, GENID, HYPER_V, NET0, NO_TICKS, SILENT, VMGENID, Row, scsi
from tests.machines.rows_plain import VIRTIO_SCSI

_NODES = "numa: 1\nsockets: 2\ncores: 2\nostype: l26"
_MODELS = """cpu-model: qemu64
    reported-model athlon
    flags +aes;+avx;-kvm_pv_unhalt
    hv-vendor-id testvend
    phys-bits 40

cpu-model: alldefault
"""
"""What this node's administrator has in cpu-models.conf."""
_CUSTOM = f"athlon +aes +avx enforce {HYPER_V} hv_vendor_id=testvend +kvm_pv_eoi -kvm_pv_unhalt vendor=AuthenticAMD"


def dimms(sizes_mib: tuple[int, ...]) -> str:
    return "\n".join(f"pc-dimm dimm{n} memdev=mem-dimm{n} node={n % 2}" for n in range(len(sizes_mib)))


def backends(sizes_mib: tuple[int, ...], pages: str = "") -> str:
    return " ".join(f"dimm{n}={size}{pages}" for n, size in enumerate(sizes_mib))


_SMALL = (512,) * 32 + (1024,) * 32 + (2048,) * 8
_GIGANTIC = (1024,) * 16


def memory(name: str, config: str, expected: str, devices: str = "") -> Row:
    return Row(name=name, config=f"{_NODES}\n{config}", memory=expected, devices=devices, options="hpet=off")


def windows(name: str, cpu: str, expected: str, *, system: str = "win10", note: str = "") -> Row:
    return Row(
        name=name,
        config=f"cpu: {cpu}\nostype: {system}",
        devices=f"{EDID_OFF}\n{SILENT}",
        machine="pc-i440fx-5.1",
        cpu=expected,
        globals=NO_TICKS,
        options="hpet=off",
        clock="driftfix=slew,base=localtime",
        note=note,
    )


ROWS = (
    memory(
        "memory-hotplug",
        "memory: 66560\nhotplug: memory",
        f"1024 slots=255 maxmem=524288 node0=512:0-1 node1=512:2-3 {backends(_SMALL)}",
        dimms(_SMALL),
    ),
    memory(
        "memory-hotplug-hugepages",
        "memory: 18432\nhotplug: memory\nhugepages: 1024",
        f"2048 slots=255 maxmem=524288 node0=1024:0-1/1024 node1=1024:2-3/1024 {backends(_GIGANTIC, '/1024')}",
        dimms(_GIGANTIC),
    ),
    memory("memory-hugepages-1g", "memory: 8192\nhugepages: 1024", "8192 node0=4096:0-1/1024 node1=4096:2-3/1024"),
    memory("memory-hugepages-2m", "memory: 8192\nhugepages: 2", "8192 node0=4096:0-1/2 node1=4096:2-3/2"),
    Row(
        name="cputype-icelake-client-deprecation",
        config="cpu: Icelake-Client\nostype: l26\nscsihw: virtio-scsi-pci\nscsi0: local:100/a.qcow2\nbootdisk: scsi0",
        devices=f"{VIRTIO_SCSI}\n{scsi(0, 'scsihw0 lun=0', boot=100)}",
        cpu="Icelake-Server enforce +kvm_pv_eoi +kvm_pv_unhalt vendor=GenuineIntel",
        options="hpet=off",
    ),
    windows(
        "cpu-level",
        "host,level=30,flags=+md-clear;+pdpe1gb;-hv-tlbflush",
        f"host level=30 -cet-ibt -cet-ss -hv-tlbflush {HYPER_V} +kvm_pv_eoi +kvm_pv_unhalt +md-clear +pdpe1gb",
        system="win11",
    ),
    windows("custom-cpu-model", "custom-qemu64,flags=+virt-ssbd", f"{_CUSTOM} +virt-ssbd phys-bits=40"),
    windows("custom-cpu-model-host-phys-bits", "custom-qemu64,phys-bits=host", f"{_CUSTOM} host-phys-bits=true"),
    Row(name="custom-cpu-model-defaults", config="cpu: custom-alldefault\nostype: l26", cpu=CPU, options="hpet=off"),
    Row(
        name="(none: everything about one node)",
        config=f"numa: 1\nnuma0: cpus=0,memory=512,hostnodes=0,policy=bind\n{NET0}\n{GENID}",
        memory="512 node0=512:0@bind",
        devices=f"{CARD_NEW}\n{VMGENID}",
    ),
)
CPU_MODELS = _MODELS
