"""UEFI firmware (OVMF): its files on this host, and the two flash chips of a virtual machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mtunnel_tx.backends.devices import as_json
from mtunnel_tx.backends.drives import VolumeFile, blockdev
from mtunnel_tx.errors import TunnelError
from mtunnel_tx.pve.drive import Drive
from mtunnel_tx.pve.hardware import Hardware

EFIDISK = "efidisk0"
_FOLDERS = (Path("/usr/share/pve-edk2-firmware"), Path("/usr/share/OVMF"), Path("/usr/share/edk2/x64"))
_CODE = {"2m": ("OVMF_CODE.fd",), "4m": ("OVMF_CODE_4M.fd", "OVMF_CODE.4m.fd")}
_CODE_SECURE = ("OVMF_CODE_4M.secboot.fd", "OVMF_CODE.secboot.4m.fd")
_VARIABLES = {"2m": ("OVMF_VARS.fd",), "4m": ("OVMF_VARS_4M.fd", "OVMF_VARS.4m.fd")}
_VARIABLES_ENROLLED = ("OVMF_VARS_4M.ms.fd",)
_VARIABLES_BYTES = {"2m": 131072, "4m": 540672}


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """`code`: the program; `kind`: `2m` or `4m`, as in `efitype`."""

    code: Path
    kind: str


def firmware_of(hardware: Hardware) -> Firmware | None:
    """The firmware of a VM; None: it has a BIOS. Raises: TunnelError: `bios: …`: this host has none that fits."""
    if not hardware.ovmf:
        return None
    if hardware.efidisk is not None and hardware.efidisk.is_cdrom:
        raise TunnelError("bios: an EFI disk is no CD-ROM")
    kind = hardware.efidisk.options.get("efitype", "2m") if hardware.efidisk is not None else "2m"
    # The firmware that protects its keys needs SMM, which Proxmox's i440fx machines do not have.
    return Firmware(code=find_firmware(kind, secure=hardware.machine.is_q35), kind=kind)


def find_firmware(kind: str, *, secure: bool) -> Path:
    """The UEFI firmware for an EFI disk of a kind (`2m`, `4m`).

    Raises: TunnelError: `bios: …`: this host has none that fits.
    """
    return _find(_CODE_SECURE if secure and kind == "4m" else _CODE[kind], kind)


def find_variables(kind: str, *, enrolled: bool) -> Path:
    """The template of a new EFI disk. Args: enrolled: with Microsoft's keys. Raises: TunnelError: `bios: …`."""
    return _find(_VARIABLES_ENROLLED if enrolled and kind == "4m" else _VARIABLES[kind], kind)


def _find(names: tuple[str, ...], kind: str) -> Path:
    for file in (folder / name for folder in _FOLDERS for name in names):
        if file.is_file():
            return file
    raise TunnelError(f"bios: this host has no OVMF firmware for an EFI disk of type {kind}")


def firmware_devices(hardware: Hardware, firmware: Firmware | None, files: Mapping[str, VolumeFile]) -> list[str]:
    """The firmware in one flash chip, and its variables, on the EFI disk, in another."""
    if firmware is None:
        return []
    lower = {"driver": "file", "filename": str(firmware.code), "read-only": True}
    flash = {"driver": "raw", "node-name": "pflash0", "read-only": True, "file": lower}
    # Before 4.1+pve2 the chip is as large as the volume.
    size_bytes = _VARIABLES_BYTES[firmware.kind] if hardware.machine.at_least(4, 1, 2) else None
    drive = hardware.efidisk or Drive("none")
    return ["-blockdev", as_json(flash), *blockdev(EFIDISK, drive, files[EFIDISK], size_bytes=size_bytes)]
