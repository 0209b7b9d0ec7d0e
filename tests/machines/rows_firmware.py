"""UEFI firmware, with and without its disk; TPMs; q35 machines that have both."""

from tests.machines.row import (
    CARD,
    CARD_NEW,
    GENID,
    HYPER_V,
    NATIVE_HOTPLUG,
    NET0,
    NO_TICKS,
    Q35,
    SILENT,
    SLEEPLESS_Q35,
    VMGENID,
    Row,
    scsi,
)

_FLASH = "pflash0=pflash0 pflash1=drive-efidisk0"
_EFI = "bios: ovmf\nefidisk0: local:100/e"
_TPM = "tpmstate0: local:100/t.raw,version=v2.0"
_TPM_DEVICE = "tpm-tis tpmdev=tpmdev"


def q35(name: str, kind: str, *, devices: str = "", created: str = "", **more: str) -> Row:
    """A Linux guest with firmware and a network card."""
    return Row(
        name=name,
        config=f"{_EFI}.qcow2\nmachine: {kind}\n{NET0}\nostype: l26\n{GENID}\n{created}",
        base=Q35,
        devices=f"{CARD}\n{VMGENID}\n{devices}",
        **{"machine": kind, "globals": "", "options": _FLASH, **more},
    )


_NEWEST = {"globals": f"{SLEEPLESS_Q35} {NATIVE_HOTPLUG}", "options": f"{_FLASH} hpet=off"}

ROWS = (
    Row(name="efi-raw", config=f"{_EFI}.raw", options=_FLASH, note="the flash has the size of its template"),
    Row(
        name="efi-raw-old",
        config=f"{_EFI}.raw\nmachine: pc-i440fx-4.1+pve0",
        devices=SILENT,
        machine="pc-i440fx-4.1",
        options=_FLASH,
        globals="",
        note="the flash has the size of its volume",
    ),
    Row(
        name="efi-raw-template",
        config=f"{_EFI}.raw\ntemplate: 1",
        refused="a template cannot be started",
        there="builds it, for backups",
    ),
    Row(
        name="simple1-template",
        config="sata0: local:100/a.qcow2\ntemplate: 1",
        refused="a template cannot be started",
        there="builds it, for backups",
    ),
    Row(
        name="efi-secboot-and-tpm",
        config=f"{_EFI}.raw,efitype=4m,pre-enrolled-keys=1\n{_TPM}",
        devices=_TPM_DEVICE,
        options=_FLASH,
    ),
    Row(
        name="efi-secboot-and-tpm-q35",
        config=f"{_EFI}.raw,efitype=4m,pre-enrolled-keys=1\n{_TPM}\nmachine: q35",
        base=Q35,
        devices=_TPM_DEVICE,
        machine="pc-q35-10.1",
        globals=SLEEPLESS_Q35,
        options=_FLASH,
    ),
    Row(name="efi-ovmf-without-efidisk", config="bios: ovmf", options=_FLASH, note="with variables for one run"),
    Row(
        name="efidisk-on-rbd",
        config=f"bios: ovmf\nefidisk0: rbd:vm-100-disk-1\n{NET0}\nnuma: 1\nostype: l26\n{GENID}",
        devices=f"{CARD_NEW}\n{VMGENID}",
        memory="512 node0=512:0",
        options=f"{_FLASH} hpet=off",
        note="for a volume that this host has as a block device",
    ),
    q35("q35-simple", "q35", devices=CARD_NEW, **{**_NEWEST, "machine": "pc-q35-10.1"}),
    q35("q35-simple-6.0", "pc-q35-6.0", devices=SILENT),
    q35("q35-simple-pinned-6.1", "pc-q35-6.1", devices=SILENT, created="meta: creation-qemu=6.1"),
    q35("q35-simple-7.0", "pc-q35-7.0", created="meta: creation-qemu=6.1"),
    Row(
        name="q35-scsihw2",
        config=f"{_EFI}.qcow2\nmachine: q35\n{NET0}\nostype: l26\n{GENID}\nbootdisk: scsi0\nscsi15: local:100/a.qcow2",
        base=Q35,
        devices=f"""pci-bridge pci.4 chassis_nr=4 bus=pci.1 addr=0x1c\nlsi scsihw2 bus=pci.4 addr=0x1
            {scsi(15, "scsihw2 unit=1")}\n{CARD_NEW} host_tunnel=off\n{VMGENID}""",
        newest="11.0",
        machine="pc-q35-11.0",
        **_NEWEST,
    ),
    Row(
        name="q35-windows-pinning",
        config="machine: q35\nmeta: creation-qemu=9.2.0,ctime=1741179133\nostype: win11",
        base=Q35,
        devices="VGA vga bus=pcie.0 addr=0x1 edid=off",
        machine="pc-q35-9.2",
        cpu=f"kvm64 enforce +kvm_pv_eoi +kvm_pv_unhalt +lahf_lm +sep {HYPER_V} -cet-ibt -cet-ss",
        globals=NO_TICKS,
        options="hpet=off",
        clock="driftfix=slew,base=localtime",
    ),
    Row(
        name="win11-amd-host-11.0+pve2",
        config="machine: pc-q35-11.0+pve2\nostype: win11\ncpu: host",
        newest="11.0",
        refused="revision +pve2 of machine version 11.0 is not known",
        note="what that revision changes is not known here",
    ),
)
