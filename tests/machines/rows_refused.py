"""What cannot move, because it is hardware of one host; and other processors."""

from tests.machines.row import NET0, Row

_HARDWARE = "hardware of one host cannot move to another"
_ENCRYPTED = "a guest that is encrypted by one host's processor cannot move to another"
_VIOMMU = "viommu is for hardware of one host, which cannot move to another"


def refused(name: str, config: str, reason: str = _HARDWARE, there: str = "builds it") -> Row:
    return Row(name=name, config=config, refused=reason, there=there)


ROWS = (
    refused("aarch64/simple-arm", f"arch: aarch64\n{NET0}", "'aarch64' is not for this host"),
    refused("aarch64/simple-arm-host", f"arch: aarch64\ncpu: host\n{NET0}", "'aarch64' is not for this host"),
    refused("i440fx-win10-hostpci", "hostpci0: 0f:f2.0\nostype: win10"),
    refused("q35-win10-hostpci", "machine: q35\nhostpci0: 0f:f2.0,pcie=1\nostype: win10"),
    refused("q35-win7-hostpci", "machine: q35\nhostpci0: 0f:f2.0\nostype: win7"),
    refused("q35-linux-hostpci", "machine: q35\nhostpci0: 00:43.1\nhostpci3: 00:f4.0,pcie=1"),
    refused("q35-linux-hostpci-driver-keep", "machine: q35\nhostpci0: 00:43.1,driver=keep"),
    refused("q35-linux-hostpci-mapping", "machine: q35\nhostpci0: mapping=gpu"),
    refused("q35-linux-hostpci-multifunction", "machine: q35\nhostpci0: f0:43,pcie=1"),
    refused(
        "q35-linux-hostpci-template", "machine: q35\nhostpci0: 00:ff.1\ntemplate: 1", "a template cannot be started"
    ),
    refused("q35-linux-hostpci-x-pci-overrides", "machine: q35\nhostpci1: d0:13.0,vendor-id=0x1234,pcie=1"),
    refused("linux-hostpci-legacy-igd", "hostpci0: 00:02.0,legacy-igd=1"),
    refused(
        "q35-linux-ivshmem",
        "machine: q35\nivshmem: size=512",
        "memory that is shared with other programs of one host cannot move to another",
    ),
    refused("sev-std", "bios: ovmf\namd-sev: type=std", _ENCRYPTED),
    refused("sev-es", "bios: ovmf\namd-sev: type=es", _ENCRYPTED),
    refused("sev-snp", "bios: ovmf\namd-sev: type=snp", _ENCRYPTED),
    refused("scsiblk", "scsi0: /dev/sdg,scsiblock=1,size=32G"),
    refused("simple-disk-passthrough", "ide2: cdrom,media=cdrom\nscsi0: /dev/sda\nscsi1: /mnt/file.raw"),
    refused("i440fx-viommu-virtio", "machine: pc,viommu=virtio", _VIOMMU),
    refused("i440fx-viommu-intel", "machine: pc,viommu=intel", _VIOMMU, "refuses it"),
    refused("q35-viommu-intel", "machine: q35,viommu=intel", _VIOMMU),
    refused("q35-viommu-intel-aw-bits", "machine: q35,viommu=intel,aw-bits=39", _VIOMMU),
    refused("q35-viommu-intel-guest-phys-bits", "machine: q35,viommu=intel\ncpu: host,guest-phys-bits=39", _VIOMMU),
    refused("q35-viommu-virtio", "machine: q35,viommu=virtio", _VIOMMU),
    refused("q35-viommu-virtio-aw-bits", "machine: q35,viommu=virtio,aw-bits=64", _VIOMMU),
    refused("q35-no-viommu-with-aw-bits", "machine: q35,aw-bits=39", "aw-bits need a viommu", "refuses it"),
)
